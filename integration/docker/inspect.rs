//! What can be seen of an engine host from outside.

use std::collections::BTreeMap;
use std::process::Child;

use serde_json::Value;

use super::EngineHost;

impl EngineHost {
    /// How many addresses the host has handed out, in all rings.
    pub fn used(&self) -> u64 {
        self.status()["ipam"]["rings"].as_array().into_iter().flatten().filter_map(|ring| ring["used"].as_u64()).sum()
    }

    /// weft's interfaces.
    pub fn interfaces(&self) -> Vec<String> {
        let names = self.ns.net(async |net| net.names().await).expect("interfaces");
        let ours = |name: &String| ["weft", "wt", "wd", "wq", "wv", "wp"].iter().any(|prefix| name.starts_with(prefix));
        names.into_iter().filter(ours).collect()
    }

    /// How much of the kernel, of the mesh and of the process the router uses: links, routes, rules, leases, endpoints that are
    /// known, names, descriptors.
    pub fn footprint(&self) -> BTreeMap<&'static str, usize> {
        let lines = |command: &[&str]| String::from_utf8_lossy(&self.run(command).stdout).lines().count();
        let status = self.status();
        let counted = |of: &Value| of.as_array().map_or(0, Vec::len);
        let router = self.router().as_ref().map_or(0, Child::id);
        let descriptors = std::fs::read_dir(format!("/proc/{router}/fd")).map_or(0, Iterator::count);
        BTreeMap::from([
            ("links", lines(&["ip", "-o", "link"])),
            ("routes", lines(&["ip", "route", "show", "table", "all"])),
            ("rules", lines(&["ip", "rule"])),
            ("firewall", lines(&["nft", "-s", "list", "table", "inet", "weft"])),
            ("leases", self.used() as usize),
            ("endpoints", counted(&status["endpoints"])),
            ("names", counted(&status["dns"]["names"])),
            ("descriptors", descriptors),
        ])
    }

    /// What the router logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("router.log")).unwrap_or_default()
    }
}
