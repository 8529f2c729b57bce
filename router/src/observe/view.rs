//! What the page shows: rows by key, of which a client is sent those that changed.
//!
//! Keys are `host/ID`, `link/ID/ID`, `endpoint/ID/ENDPOINT` and `fact/NAME`; an ID is the beginning of a host's key, since nicknames need not be unique.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

/// Digits of a key that tell hosts apart.
const ID_DIGITS: usize = 12;
/// What of the report is shown as it is.
const FACTS: [&str; 8] = ["version", "name", "problems", "dropping", "drops", "ipam", "dns", "docker"];

/// The rows.
#[derive(Default)]
pub struct View(BTreeMap<String, Value>);

/// Rows that are new or have changed since an earlier view, and keys of those that are gone.
#[derive(Serialize, PartialEq, Debug)]
pub struct Changes<'a> {
    rows: BTreeMap<&'a str, &'a Value>,
    gone: Vec<&'a str>,
}

impl View {
    /// The rows of a report of `weft status`.
    pub fn of(mut report: Value) -> View {
        let own = id(&report["peer_id"]).to_owned();
        let mut rows: BTreeMap<String, Value> =
            FACTS.iter().map(|fact| (format!("fact/{fact}"), report[*fact].take())).collect();
        rows.insert("fact/own".into(), json!(own));
        let name = rows["fact/name"].clone();
        rows.insert(
            format!("host/{own}"),
            json!({ "name": name, "state": "here", "addresses": report["addresses"].take() }),
        );
        for mut peer in list(&mut report["peers"]) {
            let key = format!("host/{}", id(&peer["peer_id"]));
            for (measured, digits) in [("rtt_us", 2), ("rx_bytes", 3), ("tx_bytes", 3)] {
                peer[measured] = rounded(&peer[measured], digits);
            }
            rows.insert(key, peer);
        }
        for link in list(&mut report["links"]) {
            let (from, to) = (id(&link["from_id"]), id(&link["to_id"]));
            let key = format!("link/{}/{}", from.min(to), from.max(to));
            // Both ends announce it; frames one way cost what this end says.
            let cost = link["cost"].as_u64().max(rows.get(&key).and_then(|row| row["cost"].as_u64()));
            rows.insert(key, json!({ "cost": cost }));
        }
        for endpoint in list(&mut report["endpoints"]) {
            let id = endpoint["id"].as_str().unwrap_or_default();
            rows.insert(format!("endpoint/{}/{id}", self::id(&endpoint["host_id"])), endpoint);
        }
        View(rows)
    }

    /// What changed since an earlier view; none if nothing did.
    pub fn since<'a>(&'a self, before: &'a View) -> Option<Changes<'a>> {
        let changed = self.0.iter().filter(|(key, row)| before.0.get(*key) != Some(row));
        let gone = before.0.keys().filter(|key| !self.0.contains_key(*key));
        let changes = Changes {
            rows: changed.map(|(key, row)| (key.as_str(), row)).collect(),
            gone: gone.map(String::as_str).collect(),
        };
        Some(changes).filter(|changes| !changes.rows.is_empty() || !changes.gone.is_empty())
    }
}

fn id(key: &Value) -> &str {
    let key = key.as_str().unwrap_or_default();
    key.get(..ID_DIGITS).unwrap_or(key)
}

fn list(value: &mut Value) -> Vec<Value> {
    match value.take() {
        Value::Array(list) => list,
        _ => Vec::new(),
    }
}

/// What is measured differs each time: with fewer digits, rows that say nothing new stay as they are.
fn rounded(value: &Value, digits: u32) -> Value {
    let Some(value) = value.as_u64() else { return Value::Null };
    let unit = 10_u64.pow((value.max(1).ilog10() + 1).saturating_sub(digits));
    json!((value + unit / 2) / unit * unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Value {
        json!({
            "name": "h0", "peer_id": "000000000000aaaa", "problems": [], "addresses": ["192.0.2.1:6783"],
            "peers": [{ "name": "h1", "peer_id": "111111111111bbbb", "state": "connected", "rtt_us": 1234, "rx_bytes": 98765, "tx_bytes": 7 }],
            "links": [
                { "from_id": "111111111111", "to_id": "000000000000", "cost": 12 },
                { "from_id": "000000000000", "to_id": "111111111111", "cost": 10 },
            ],
            "endpoints": [{ "id": "ff", "host": "h1", "host_id": "111111111111", "names": ["web"] }],
        })
    }

    #[test]
    fn a_report_becomes_rows_that_are_told_apart_by_keys() {
        let view = View::of(report());
        let row = |key: &str| &view.0[key];
        assert_eq!(row("host/000000000000")["state"], "here");
        assert_eq!(row("host/111111111111")["rtt_us"], 1200);
        assert_eq!(
            (&row("host/111111111111")["rx_bytes"], &row("host/111111111111")["tx_bytes"]),
            (&json!(98800), &json!(7))
        );
        assert_eq!(*row("link/000000000000/111111111111"), json!({ "cost": 12 }));
        assert_eq!(row("endpoint/111111111111/ff")["names"][0], "web");
        assert_eq!(*row("fact/own"), "000000000000");
    }

    #[test]
    fn only_what_changed_is_told() {
        let before = View::of(report());
        assert!(before.since(&before).is_none());
        let mut later = report();
        later["peers"][0]["rtt_us"] = json!(1249);
        assert_eq!(View::of(later.clone()).since(&before), None, "it is measured, and much the same");
        later["peers"][0]["state"] = json!("unreachable");
        later["links"] = json!([]);
        let view = View::of(later);
        let changes = view.since(&before).unwrap();
        assert_eq!(changes.rows.keys().copied().collect::<Vec<_>>(), ["host/111111111111"]);
        assert_eq!(changes.gone, ["link/000000000000/111111111111"]);
        let all = before.0.len();
        assert_eq!(before.since(&View::default()).map(|changes| changes.rows.len()), Some(all));
    }
}
