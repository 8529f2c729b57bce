//! `weft status`: what the router reports, for people and for programs.

use std::fmt::Write;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Failure, Result};

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
    /// Packets that went no further, by reason.
    Drops,
}

impl Topic {
    /// The keys of the report that tell of it.
    fn keys(self) -> &'static [&'static str] {
        match self {
            Topic::Peers => &["peers"],
            Topic::Links => &["links"],
            Topic::Routes => &["routes"],
            Topic::Endpoints => &["endpoints"],
            Topic::Dns => &["dns", "endpoints"],
            Topic::Ipam => &["ipam"],
            Topic::Targets => &["targets"],
            Topic::Drops => &["drops"],
        }
    }
}

/// Returns what the report says of a topic, or all of it.
pub fn part(report: Value, topic: Option<Topic>) -> Value {
    match (report, topic) {
        (Value::Object(report), Some(topic)) => {
            report.into_iter().filter(|(key, _)| topic.keys().contains(&key.as_str())).collect()
        }
        (report, _) => report,
    }
}

/// The report for people.
pub fn print(report: &Value, topic: Option<Topic>) -> Result<String> {
    let rows = |key: &str, columns: &[&str]| {
        let list = report[key].as_array().ok_or_else(|| Failure::new("the router answered something strange"))?;
        Ok::<_, Failure>(table(list, columns))
    };
    match topic {
        None => summary(report),
        Some(Topic::Peers) => rows("peers", PEERS),
        Some(Topic::Links) => rows("links", &["from", "to", "cost", "metered"]),
        Some(Topic::Routes) => rows("routes", &["to", "via", "backup", "avoided", "cost", "metered", "max_datagram"]),
        Some(Topic::Endpoints) => {
            rows("endpoints", &["segment", "host", "ips", "names", "health", "ports", "mac", "id"])
        }
        Some(Topic::Targets) => rows("targets", &["name", "addresses", "peer", "state"]),
        Some(Topic::Ipam) => print_ipam(&report["ipam"]),
        Some(Topic::Dns) => print_dns(report),
        Some(Topic::Drops) => Ok(object(&report["drops"])),
    }
}

/// How it stands, what is wrong first.
fn summary(report: &Value) -> Result<String> {
    let mut text = String::new();
    let list = |key: &str| report[key].as_array().map_or(&[][..], Vec::as_slice);
    // Writing to a String cannot fail.
    for problem in list("problems") {
        let _ = writeln!(text, "PROBLEM: {}", plain(problem));
    }
    let peers = list("peers");
    let missing = peers.iter().filter(|peer| peer["state"] != "connected");
    let missing: Vec<String> =
        missing.map(|peer| format!("{} ({})", plain(&peer["name"]), plain(&peer["state"]))).collect();
    if !missing.is_empty() {
        let _ = writeln!(text, "NOT REACHED: {}; see: weft why HOST", missing.join(", "));
    }
    let dropping = report["dropping"].as_object().into_iter().flatten();
    let dropping: Vec<String> = dropping.map(|(reason, count)| format!("{} {reason}", plain(count))).collect();
    if !dropping.is_empty() {
        let _ = writeln!(
            text,
            "LOST lately: {}; see: weft events --since 10m, and docs/operations.md",
            dropping.join(", ")
        );
    }
    let (ipam, docker) = (&report["ipam"], &report["docker"]);
    let engine = if docker["plugin"].is_null() { "off".to_owned() } else { plain(&docker["engine"]) };
    let (used, owned) = (plain(&ipam["used"]), plain(&ipam["owned"]));
    let facts = [
        ("host", format!("{} ({})", plain(&report["name"]), cell("peer_id", &report["peer_id"]))),
        ("version", plain(&report["version"])),
        ("addresses", plain(&report["addresses"])),
        ("advertised", plain(&report["advertised"]["udp"])),
        ("peers", format!("{} of {} connected", peers.len() - missing.len(), peers.len())),
        ("endpoints", list("endpoints").len().to_string()),
        ("range", format!("{} ({used} of {owned} used here)", plain(&ipam["range"]))),
        ("domain", plain(&report["dns"]["domain"])),
        ("docker", format!("engine {engine}, networks {}", plain(&docker["networks"]))),
    ];
    for (name, value) in facts {
        let _ = writeln!(text, "{name:<11} {value}");
    }
    if !peers.is_empty() {
        text.push('\n');
        text.push_str(&table(peers, PEERS));
    }
    Ok(text)
}

/// Where names are answered, and which there are.
fn print_dns(report: &Value) -> Result<String> {
    let dns = &report["dns"];
    let containers = &dns["containers"];
    let mut text = format!(
        "domain: {}\nlisten: {}\ncontainers: {} by their own resolver, {} by their gateway only\n\n",
        plain(&dns["domain"]),
        plain(&dns["listen"]),
        plain(&containers["redirected"]),
        plain(&containers["by_gateway"])
    );
    let mut rows = Vec::new();
    for endpoint in report["endpoints"].as_array().into_iter().flatten() {
        for name in endpoint["names"].as_array().into_iter().flatten() {
            rows.push(json!({
                "name": name, "network": endpoint["segment"], "ips": endpoint["ips"], "host": endpoint["host"],
                "health": endpoint["health"],
            }));
        }
    }
    rows.extend(dns["added"].as_array().into_iter().flatten().cloned());
    rows.sort_by_key(|row| plain(&row["name"]));
    text.push_str(&table(&rows, &["name", "network", "ips", "host", "health"]));
    Ok(text)
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

const PEERS: &[&str] = &[
    "name",
    "state",
    "path",
    "via",
    "transport",
    "tls",
    "remote",
    "cipher",
    "rtt_us",
    "loss",
    "mtu",
    "rx_bytes",
    "tx_bytes",
    "peer_id",
];

/// The heading of a column.
fn heading(column: &str) -> String {
    match column {
        "rtt_us" => "RTT".into(),
        "rx_bytes" => "RECEIVED".into(),
        "tx_bytes" => "SENT".into(),
        other => other.to_uppercase(),
    }
}

fn object(value: &Value) -> String {
    let Some(object) = value.as_object() else { return String::new() };
    object.iter().map(|(key, value)| format!("{key}: {}\n", plain(value))).collect()
}

fn table(rows: &[Value], columns: &[&str]) -> String {
    let mut cells = vec![columns.iter().map(|column| heading(column)).collect::<Vec<String>>()];
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

/// Bytes in the largest unit that leaves a digit before the point.
fn amount(bytes: f64) -> String {
    let units = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    match units.into_iter().find(|(size, _)| bytes >= *size) {
        Some((size, unit)) => format!("{:.1} {unit}", bytes / size),
        None => format!("{bytes:.0} B"),
    }
}

/// Colours what needs a look in a report for people.
pub fn coloured(text: &str) -> String {
    let (alarm, warning, plain) = ("\x1b[1;31m", "\x1b[33m", "\x1b[0m");
    let line = |line: &str| match () {
        () if line.starts_with("PROBLEM") => format!("{alarm}{line}{plain}\n"),
        () if line.starts_with("NOT REACHED") || line.starts_with("LOST") => format!("{warning}{line}{plain}\n"),
        () => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

/// Keys by their first digits, times in milliseconds, amounts in their unit, the rest as it is.
fn cell(column: &str, value: &Value) -> String {
    match (column, value.as_f64()) {
        ("peer_id", _) => plain(value).chars().take(8).collect(),
        ("rtt_us", Some(micros)) => format!("{:.2} ms", micros / 1e3),
        ("rx_bytes" | "tx_bytes", Some(bytes)) => amount(bytes),
        ("loss", Some(loss)) => format!("{:.0} %", loss * 100.0),
        _ => plain(value),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_one_object_with_the_keys_of_the_whole_report() {
        let report =
            json!({ "version": "1", "peers": [{ "name": "a" }], "dns": { "domain": "weft." }, "endpoints": [] });
        assert_eq!(part(report.clone(), Some(Topic::Peers)), json!({ "peers": [{ "name": "a" }] }));
        assert_eq!(part(report.clone(), Some(Topic::Dns)), json!({ "dns": { "domain": "weft." }, "endpoints": [] }));
        assert_eq!(part(report.clone(), None), report);
    }

    #[test]
    fn what_is_wrong_comes_first_with_what_is_missing_and_what_is_dropped() {
        let peer =
            |name: &str, state: &str| json!({ "name": name, "state": state, "rx_bytes": 1_500_000, "loss": 0.02 });
        let report = json!({
            "version": "1", "name": "h0", "problems": ["the disk is full: make room"],
            "peers": [peer("h1", "connected"), peer("h2", "dead")], "dropping": { "tap_full": 7 }, "endpoints": [],
        });
        let text = print(&report, None).unwrap();
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("PROBLEM: the disk is full: make room"));
        assert_eq!(lines.next(), Some("NOT REACHED: h2 (dead); see: weft why HOST"));
        assert!(lines.next().is_some_and(|line| line.starts_with("LOST lately: 7 tap_full;")));
        assert!(text.contains("1 of 2 connected") && text.contains("1.5 MB") && text.contains("2 %"), "{text}");
        assert_eq!(coloured(&text).lines().filter(|line| line.contains('\x1b')).count(), 3);
        assert_eq!([999.0, 1000.0, 2.5e9].map(amount), ["999 B", "1.0 kB", "2.5 GB"]);
    }
}
