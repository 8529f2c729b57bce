//! What is counted as it happens, because nothing else keeps it.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// The name under which unknown calls are counted together.
pub const UNKNOWN_CALL: &str = "unknown";

/// The name of a label, and its value.
pub type Label = (&'static str, String);

/// Counters and histograms; clones count together.
#[derive(Clone, Debug)]
pub struct Tallies {
    path_changes: Family<[Label; 1], Counter>,
    relays_avoided: Counter,
    sessions: Counter,
    dns_questions: Family<[Label; 1], Counter>,
    dns_time: Histogram,
    plugin_calls: Family<[Label; 2], Counter>,
    plugin_time: Histogram,
    flow_records: Family<[Label; 1], Counter>,
    flow_packets_ignored: Counter,
    flows: Gauge,
}

impl Default for Tallies {
    fn default() -> Self {
        let tallies = Tallies {
            path_changes: Family::default(),
            relays_avoided: Counter::default(),
            sessions: Counter::default(),
            dns_questions: Family::default(),
            // From 10 µs, which an answer from memory takes, to 2.6 s.
            dns_time: Histogram::new(exponential_buckets(1e-5, 4.0, 10)),
            plugin_calls: Family::default(),
            // From 1 ms to 8.2 s: a call is answered after 4.7 s at the latest.
            plugin_time: Histogram::new(exponential_buckets(1e-3, 2.0, 14)),
            flow_records: Family::default(),
            flow_packets_ignored: Counter::default(),
            flows: Gauge::default(),
        };
        // A series that is there from the start has a rate from its first event on.
        for cause in ["up", "moved"] {
            tallies.path_changes.get_or_create_owned(&[("cause", cause.to_owned())]);
        }
        for result in ["sent", "lost"] {
            tallies.flow_records.get_or_create_owned(&[("result", result.to_owned())]);
        }
        let unknown = [("call", UNKNOWN_CALL.to_owned()), ("result", "refused".to_owned())];
        tallies.plugin_calls.get_or_create_owned(&unknown);
        tallies
    }
}

impl Tallies {
    /// A direct link came up, moved or went down; the causes are few fixed words.
    pub fn path_change(&self, cause: &'static str) {
        self.path_changes.get_or_create_owned(&[("cause", cause.to_owned())]).inc();
    }

    /// A relay is avoided on the way to one host.
    pub fn relay_avoided(&self) {
        self.relays_avoided.inc();
    }

    /// A session was agreed on.
    pub fn session(&self) {
        self.sessions.inc();
    }

    /// How many sessions were agreed on.
    pub fn sessions(&self) -> u64 {
        self.sessions.get()
    }

    /// Questions came to one of few results, each in this time.
    pub fn dns_questions(&self, result: &'static str, count: u32, time: Duration) {
        self.dns_questions.get_or_create_owned(&[("result", result.to_owned())]).inc_by(count.into());
        (0..count).for_each(|_| self.dns_time.observe(time.as_secs_f64()));
    }

    /// A call of the engine was answered; calls that weft does not know have one name together.
    pub fn plugin_call(&self, call: &str, is_done: bool, time: Duration) {
        let result = if is_done { "done" } else { "refused" };
        self.plugin_calls.get_or_create_owned(&[("call", call.to_owned()), ("result", result.to_owned())]).inc();
        self.plugin_time.observe(time.as_secs_f64());
    }

    /// Counts flow records, by result: `sent` or `lost`.
    pub fn flow_records(&self, result: &'static str, count: u64) {
        self.flow_records.get_or_create_owned(&[("result", result.to_owned())]).inc_by(count);
    }

    /// Counts packets that are in no flow record, since there were too many flows.
    pub fn flow_packets_ignored(&self, count: u64) {
        self.flow_packets_ignored.inc_by(count);
    }

    /// Sets how many flows wait for their record.
    pub fn flows_held(&self, count: usize) {
        self.flows.set(count as i64);
    }

    /// Adds all of them to a registry, whose names get the prefix `weft`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("weft");
        let Tallies {
            path_changes,
            relays_avoided,
            sessions: _,
            dns_questions,
            dns_time,
            plugin_calls,
            plugin_time,
            flow_records,
            flow_packets_ignored,
            flows,
        } = self.clone();
        registry.register("path_changes", "Direct links that came up, moved or went down, by cause", path_changes);
        registry.register(
            "relays_avoided",
            "Times that a relay was avoided on the way to a host, for what went by it did not arrive",
            relays_avoided,
        );
        registry.register("dns_questions", "Questions for names, by what came of them", dns_questions);
        registry.register_with_unit("dns", "Time until a question was answered", Unit::Seconds, dns_time);
        registry.register("plugin_calls", "Calls of the Docker engine, by what came of them", plugin_calls);
        registry.register_with_unit(
            "plugin",
            "Time until a call of the Docker engine was answered",
            Unit::Seconds,
            plugin_time,
        );
        registry.register("flow_records", "Records of flows, by what came of them", flow_records);
        registry.register(
            "flow_packets_ignored",
            "Packets in no record of a flow, for there were too many flows",
            flow_packets_ignored,
        );
        registry.register("flows", "Flows that are counted and have no record yet", flows);
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::prometheus_text;

    use super::*;

    #[test]
    fn what_clones_count_is_counted_together() {
        let tallies = Tallies::default();
        let mut registry = Registry::default();
        tallies.register(&mut registry);
        let clone = tallies.clone();
        clone.path_change("moved");
        clone.dns_questions("answered", 3, Duration::from_micros(20));
        tallies.dns_questions("answered", 1, Duration::from_millis(1));
        tallies.plugin_call("NetworkDriver.Join", false, Duration::from_millis(30));
        tallies.session();
        assert_eq!(clone.sessions(), 1);
        let mut text = String::new();
        prometheus_text::encode(&mut text, &registry).unwrap();
        for line in [
            "weft_path_changes_total{cause=\"moved\"} 1",
            "weft_dns_questions_total{result=\"answered\"} 4",
            "weft_dns_seconds_bucket{le=\"4e-05\"} 3",
            "weft_dns_seconds_count 4",
            "weft_plugin_calls_total{call=\"NetworkDriver.Join\",result=\"refused\"} 1",
            "weft_plugin_seconds_count 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
