//! `weft status`: one JSON object, and the same for people.

use std::fmt::Write;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use weft_mesh::node::Status;

use crate::control::Api;
use crate::docker;
use crate::error::{Failure, Result};

/// What a status request answers: every key is there, empty where a part is not built or switched off.
pub fn report(status: &Status, api: &Api) -> Value {
    let options = &api.options;
    let engine = api.docker.as_ref().and_then(|docker| docker.engine_version.load_full());
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "name": status.name,
        "peer_id": status.peer_id,
        "cloned": status.cloned,
        "peers": status.peers,
        "links": status.links,
        "routes": status.routes,
        "endpoints": status.endpoints,
        "targets": status.targets,
        "ipam": ipam(status, &options.range.to_string()),
        "dns": dns(api),
        "docker": {
            "plugin": api.docker.as_ref().map(|_| docker::NAME),
            "engine": engine.as_deref(),
            "networks": api.docker.as_ref().map(|docker| docker.network_names()).unwrap_or_default(),
        },
    })
}

fn dns(api: &Api) -> Value {
    let (listen, served, unserved) = api.dns.as_ref().map(|dns| dns.places()).unwrap_or_default();
    json!({
        "domain": api.options.dns_domain,
        "listen": listen,
        "entries": api.names.load().len(),
        "containers": { "redirected": served, "by_gateway": unserved },
    })
}

/// The mesh's own range, and below it the rings of all networks.
fn ipam(status: &Status, range: &str) -> Value {
    let own = status.rings.iter().find(|ring| ring.range == range);
    json!({
        "range": range,
        "state": own.map_or("waiting", |ring| ring.state),
        "waiting_for": own.map_or(&[][..], |ring| &ring.waiting_for),
        "owned": own.map_or(0, |ring| ring.owned),
        "used": own.map_or(0, |ring| ring.used),
        "unreachable": own.map_or(0, |ring| ring.unreachable),
        "fenced": status.fenced,
        "rings": status.rings,
    })
}

/// What may be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Topic {
    /// Other hosts.
    Peers,
    /// Links of the whole mesh.
    Links,
    /// Routes from here.
    Routes,
    /// Containers.
    Endpoints,
    /// Names.
    Dns,
    /// Addresses.
    Ipam,
    /// Hosts to link to.
    Targets,
}

/// The report for people.
pub fn print(report: &Value, topic: Option<Topic>) -> Result<String> {
    let rows = |key: &str, columns: &[&str]| {
        let list = report[key].as_array().ok_or_else(|| Failure::new("the router answered something strange"))?;
        Ok::<_, Failure>(table(list, columns))
    };
    match topic {
        None => {
            let mut text = format!(
                "weft {} on {} ({})\n",
                plain(&report["version"]),
                plain(&report["name"]),
                cell("peer_id", &report["peer_id"])
            );
            if report["cloned"] == true {
                text.push_str("another host lived with this host's key within the last minute: see the log\n");
            }
            let count = |key: &str| report[key].as_array().map_or(0, Vec::len);
            let connected =
                report["peers"].as_array().into_iter().flatten().filter(|p| p["state"] == "connected").count();
            // Writing to a String cannot fail.
            let _ = writeln!(text, "peers: {connected} of {} connected", count("peers"));
            let _ = writeln!(text, "endpoints: {}", count("endpoints"));
            let _ = writeln!(text, "range: {}", plain(&report["ipam"]["range"]));
            if count("peers") > 0 {
                text.push('\n');
                text.push_str(&rows("peers", PEERS)?);
            }
            Ok(text)
        }
        Some(Topic::Peers) => rows("peers", PEERS),
        Some(Topic::Links) => rows("links", &["from", "to", "cost"]),
        Some(Topic::Routes) => rows("routes", &["to", "via", "backup", "cost", "max_datagram"]),
        Some(Topic::Endpoints) => rows("endpoints", &["segment", "host", "ips", "names", "mac", "id"]),
        Some(Topic::Targets) => rows("targets", &["name", "addresses", "peer", "state"]),
        Some(Topic::Ipam) => print_ipam(&report["ipam"]),
        Some(Topic::Dns) => Ok(object(&report["dns"])),
    }
}

fn print_ipam(ipam: &Value) -> Result<String> {
    let mut text = String::new();
    let fenced = plain(&ipam["fenced"]);
    if fenced != "-" {
        text = format!("cut off, for another host has their addresses: {fenced}; detach and attach them anew\n");
    }
    match ipam["rings"].as_array() {
        Some(rings) if !rings.is_empty() => {
            text.push_str(&table(rings, &["range", "state", "owned", "used", "unreachable", "voters", "waiting_for"]));
        }
        _ => text.push_str(&format!(
            "no address of {} was asked for yet: the ring begins with the first\n",
            plain(&ipam["range"])
        )),
    }
    Ok(text)
}

const PEERS: &[&str] =
    &["name", "peer_id", "state", "path", "via", "remote", "cipher", "rtt_us", "mtu", "rx_bytes", "tx_bytes"];

fn object(value: &Value) -> String {
    let Some(object) = value.as_object() else { return String::new() };
    object.iter().map(|(key, value)| format!("{key}: {}\n", plain(value))).collect()
}

fn table(rows: &[Value], columns: &[&str]) -> String {
    let mut cells = vec![columns.iter().map(|column| column.to_uppercase()).collect::<Vec<String>>()];
    cells.extend(rows.iter().map(|row| columns.iter().map(|column| cell(column, &row[*column])).collect()));
    let widths: Vec<usize> =
        (0..columns.len()).map(|i| cells.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in cells {
        let line: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Keys by their first digits, the rest as it is.
fn cell(column: &str, value: &Value) -> String {
    let text = plain(value);
    if column == "peer_id" { text.chars().take(8).collect() } else { text }
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        Value::Array(list) if list.is_empty() => "-".into(),
        Value::Array(list) => list.iter().map(plain).collect::<Vec<_>>().join(","),
        Value::Object(object) => {
            object.iter().map(|(key, value)| format!("{key} {}", plain(value))).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    }
}
