//! Metrics in Prometheus text (version 0.0.4); names and units follow <https://prometheus.io/docs/practices/naming/>.
//!
//! The number of time series is bounded: `MAX_PEERS` peers and `MAX_ENDPOINTS` endpoints of this host have some each; what is left out
//! is counted.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use weft_mesh::node::{Measures, PeerState, PeerStatus};

pub use prometheus_client::encoding::prometheus_text::CONTENT_TYPE;

use super::tallies::Label;
use crate::attach::traffic::{self, Traffic};
use crate::daemon::api::Api;
use crate::daemon::status;
use crate::error::{Doing, Result};

/// Peers, in the order of their labels, and endpoints of this host that have time series of their own.
const MAX_PEERS: usize = 1000;
const MAX_ENDPOINTS: usize = 1000;

/// Reads all metrics of a router.
pub async fn read(api: &Api) -> Result<String> {
    let measures = api.node.measures().await?;
    let attachments = api.attachments.all().await;
    let traffic = tokio::task::spawn_blocking(move || traffic::read(&attachments));
    let traffic = traffic.await.doing(|| "cannot read the interfaces' counters".into())??;
    let mut readings = readings(&measures, &traffic);
    let drops = status::lost(&measures.refused, api);
    readings.push(Reading::counts(
        "dropped",
        "Packets, frames and records that were lost or refused, by reason",
        drops.map(|(reason, count)| (vec![("reason", reason.to_owned())], count)),
    ));
    readings.push(Reading::counts(
        "handshakes",
        "Handshakes, by what came of them",
        [("completed", api.observers.tallies.sessions()), ("refused", measures.refused.handshakes)]
            .map(|(result, count)| (vec![("result", result.to_owned())], count)),
    ));
    let mut registry = Registry::default();
    api.observers.tallies.register(&mut registry);
    registry.sub_registry_with_prefix("weft").register_collector(Box::new(Readings(readings)));
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry).doing(|| "cannot put the metrics into words".into())?;
    Ok(text)
}

/// What the node and the kernel say.
fn readings(measures: &Measures, traffic: &[Traffic]) -> Vec<Reading> {
    let Measures { peers, rings, refused, relayed_bytes, load, own_endpoints, records } = measures;
    let none = Vec::new;
    let states = [PeerState::Connected, PeerState::Connecting, PeerState::Unreachable, PeerState::Dead];
    let by_state = states.map(|state| {
        let count = peers.iter().filter(|peer| peer.state == state).count();
        (vec![("state", state.name().to_owned())], count as f64)
    });
    let listed = &peers[..peers.len().min(MAX_PEERS)];
    let linked = || listed.iter().filter(|peer| peer.remote.is_some());
    let of_link = |value: fn(&PeerStatus) -> Option<f64>| {
        linked().filter_map(move |peer| Some((labels(peer), value(peer)?))).collect::<Vec<_>>()
    };
    let of_peer = |value: fn(&PeerStatus) -> u64| listed.iter().map(move |peer| (labels(peer), value(peer)));
    let addresses = rings.iter().flat_map(|ring| {
        let states = [
            ("free", ring.owned.saturating_sub(ring.used)),
            ("used", ring.used),
            ("unreachable", ring.unreachable),
            ("unopened", ring.unopened),
        ];
        states
            .map(|(state, count)| (vec![("range", ring.range.clone()), ("state", state.to_owned())], f64::from(count)))
    });
    let kinds =
        records.iter().map(|(kind, count)| (*kind, *count as u64)).chain([("unknown", refused.unknown_records)]);
    let omitted = [("peer", peers.len() - listed.len()), ("endpoint", traffic.len().saturating_sub(MAX_ENDPOINTS))];
    let of_endpoint = |value: fn(&Traffic) -> u64| {
        traffic.iter().take(MAX_ENDPOINTS).map(move |traffic| (names(traffic), value(traffic)))
    };
    vec![
        Reading::gauges(
            "build_info",
            "The version that runs",
            [(vec![("version", env!("CARGO_PKG_VERSION").to_owned())], 1.0)],
        ),
        Reading::gauges("peers", "Other hosts, by how they stand", by_state),
        Reading::gauges(
            "link_rtt_seconds",
            "Smoothed round-trip time of a direct link",
            of_link(|peer| Some(peer.rtt_us? as f64 / 1e6)),
        ),
        Reading::gauges("link_loss_ratio", "Share of lost pings on a direct link, of late", of_link(|peer| peer.loss)),
        Reading::gauges(
            "link_mtu_bytes",
            "Largest frame that a direct link takes whole",
            of_link(|peer| Some(peer.mtu? as f64)),
        ),
        Reading::counts("peer_received_bytes", "Bytes received in sessions with a peer", of_peer(|peer| peer.rx_bytes)),
        Reading::counts("peer_sent_bytes", "Bytes sent in sessions with a peer", of_peer(|peer| peer.tx_bytes)),
        Reading::counts("relayed_bytes", "Bytes relayed for other hosts", [(none(), *relayed_bytes)]),
        Reading::gauges(
            "relay_load",
            "Load of this host as a relay, 0 to 4: with each step it wins half as often against others of the same cost",
            [(none(), f64::from(*load))],
        ),
        Reading::gauges(
            "records",
            "Valid records held, of this host and others, by kind",
            kinds.map(|(kind, count)| (vec![("kind", kind.to_owned())], count as f64)),
        ),
        Reading::gauges(
            "ipam_addresses",
            "Addresses of this host, of hosts that cannot be reached, and of no host, by range and state",
            addresses,
        ),
        Reading::gauges("endpoints", "Endpoints of this host", [(none(), *own_endpoints as f64)]),
        Reading::counts(
            "endpoint_received_bytes",
            "Bytes that an endpoint of this host received",
            of_endpoint(|traffic| traffic.received),
        ),
        Reading::counts(
            "endpoint_sent_bytes",
            "Bytes that an endpoint of this host sent",
            of_endpoint(|traffic| traffic.sent),
        ),
        Reading::gauges(
            "metrics_omitted",
            "Peers and endpoints that have no time series of their own, because there are too many",
            omitted.map(|(kind, count)| (vec![("kind", kind.to_owned())], count as f64)),
        ),
    ]
}

/// Nicknames may be equal: the key tells peers apart.
fn labels(peer: &PeerStatus) -> Labels {
    vec![("peer", peer.name.clone()), ("peer_id", peer.peer_id.chars().take(PEER_ID_DIGITS).collect())]
}

/// Digits of a key that metrics give: as many as hosts are told apart by.
const PEER_ID_DIGITS: usize = 12;

fn names(traffic: &Traffic) -> Labels {
    let Traffic { endpoint, segment, name, .. } = traffic;
    vec![("endpoint", endpoint.clone()), ("segment", segment.clone()), ("name", name.clone())]
}

type Labels = Vec<Label>;

/// The time series of one metric.
#[derive(Debug)]
struct Reading {
    name: &'static str,
    help: &'static str,
    series: Series,
}

#[derive(Debug)]
enum Series {
    /// They only grow while the router runs.
    Counts(Vec<(Labels, u64)>),
    Gauges(Vec<(Labels, f64)>),
}

impl Reading {
    fn counts(name: &'static str, help: &'static str, series: impl IntoIterator<Item = (Labels, u64)>) -> Reading {
        Reading { name, help, series: Series::Counts(series.into_iter().collect()) }
    }

    fn gauges(name: &'static str, help: &'static str, series: impl IntoIterator<Item = (Labels, f64)>) -> Reading {
        Reading { name, help, series: Series::Gauges(series.into_iter().collect()) }
    }
}

#[derive(Debug)]
struct Readings(Vec<Reading>);

impl Collector for Readings {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        use prometheus_client::encoding::NoLabelSet;
        for Reading { name, help, series } in &self.0 {
            match series {
                Series::Counts(rows) => {
                    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
                    for (labels, value) in rows {
                        metric.encode_family(labels)?.encode_counter::<NoLabelSet, _, u64>(value, None)?;
                    }
                }
                Series::Gauges(rows) => {
                    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
                    for (labels, value) in rows {
                        metric.encode_family(labels)?.encode_gauge(value)?;
                    }
                }
            }
        }
        Ok(())
    }
}
