//! What can be seen of an engine host from outside.

use std::collections::{BTreeMap, BTreeSet};
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
    /// known, names, connections by UNIX sockets, with the engine for one, and other descriptors.
    pub fn footprint(&self) -> BTreeMap<&'static str, usize> {
        let lines = |command: &[&str]| String::from_utf8_lossy(&self.run(command).stdout).lines().count();
        let status = self.status();
        let counted = |of: &Value| of.as_array().map_or(0, Vec::len);
        let router = self.router().as_ref().map_or(0, Child::id);
        let (unix, others) = descriptors(router);
        BTreeMap::from([
            ("links", lines(&["ip", "-o", "link"])),
            ("routes", lines(&["ip", "route", "show", "table", "all"])),
            ("rules", lines(&["ip", "rule"])),
            ("firewall", lines(&["nft", "-s", "list", "table", "inet", "weft"])),
            ("leases", self.used() as usize),
            ("endpoints", counted(&status["endpoints"])),
            ("names", counted(&status["dns"]["names"])),
            ("connections", unix),
            ("descriptors", others),
        ])
    }

    /// What the router logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("router.log")).unwrap_or_default()
    }
}

/// Counts the descriptors of a process: those of UNIX sockets, and all others.
fn descriptors(process: u32) -> (usize, usize) {
    let sockets = std::fs::read_to_string(format!("/proc/{process}/net/unix")).unwrap_or_default();
    let inodes: BTreeSet<&str> = sockets.lines().filter_map(|line| line.split_whitespace().nth(6)).collect();
    let entries = std::fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    let open = entries.filter_map(|entry| std::fs::read_link(entry.path()).ok()?.into_os_string().into_string().ok());
    let is_unix = |open: &String| {
        let inode = open.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
        inode.is_some_and(|inode| inodes.contains(inode))
    };
    let (unix, others): (Vec<String>, Vec<String>) = open.partition(is_unix);
    (unix.len(), others.len())
}
