//! What happened, in words.

use std::time::Duration;

use serde_json::Value;

/// An entry of the recorder in a line, without its time.
pub fn words(event: &Value) -> String {
    // Names and texts of others must not steer a terminal.
    raw(event).chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}

fn raw(event: &Value) -> String {
    let text = |key: &str| event[key].as_str().unwrap_or("?").to_owned();
    let peer = text("peer");
    match event["event"].as_str().unwrap_or_default() {
        "started" => format!("the router started (weft {})", text("version")),
        "stopped" => "the router was told to stop".into(),
        "clock_moved" => {
            format!("the clock moved by {} s, or the host slept", event["seconds"])
        }
        "link_up" => format!("link to {peer} up at {}", text("remote")),
        "link_moved" => format!("link to {peer} moved to {}", text("remote")),
        "link_down" => format!("link to {peer} down: {}", text("cause")),
        "path" => format!("frames to {peer} {}", way(event)),
        "link" => {
            let rtt = Duration::from_micros(event["rtt_us"].as_u64().unwrap_or(0)).as_secs_f64() * 1e3;
            format!("link to {peer}: {rtt:.1} ms, {} % lost", event["loss_percent"])
        }
        "peer_gone" => format!("host {peer} is gone"),
        "peer_back" => format!("host {peer} is there"),
        "target_silent" => format!("{} does not answer at {}", text("name"), text("address")),
        "relay_avoided" => {
            let relay = text("relay");
            format!("what goes to {peer} by {relay} does not arrive: other ways are taken for {} s", event["seconds"])
        }
        "marks_lost" => format!("the network to {peer} drops packets marked AF21: none are marked any more"),
        "conflict" => format!("{} is also claimed by {}, which has the older right", text("what"), text("by")),
        "fenced" => format!("{} is another host's: its endpoint here is cut off", text("address")),
        "cloned" => format!("two hosts live with one key: {}", text("key")),
        "reincarnated" => "records of an earlier life of this host were found".into(),
        "dropped" => format!("lost or refused within a minute: {} {}", event["count"], text("reason")),
        "call_refused" => format!("refused {} of the Docker engine: {}", text("call"), text("why")),
        // Of a newer version.
        _ => event.to_string(),
    }
}

/// How frames go.
pub fn way(entry: &Value) -> String {
    let by = entry["transport"].as_str().map(|transport| format!(" by {transport}")).unwrap_or_default();
    match (entry["path"].as_str(), entry["via"].as_str()) {
        (Some("direct"), _) => format!("go straight{by}"),
        (Some("relay"), Some(via)) => format!("go by way of {via}{by}"),
        (Some("relay"), None) => format!("are relayed{by}"),
        _ => "have no path".into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_entry_is_one_line_of_words() {
        let path = json!({ "event": "path", "peer": "h1", "path": "relay", "via": "h2", "transport": "udp" });
        assert_eq!(words(&path), "frames to h1 go by way of h2 by udp");
        assert_eq!(words(&json!({ "event": "of a newer version" })), "{\"event\":\"of a newer version\"}");
        let refused = json!({ "event": "call_refused", "call": "a", "why": "\u{1b}[2J\n" });
        assert_eq!(words(&refused), "refused a of the Docker engine: ?[2J?");
    }
}
