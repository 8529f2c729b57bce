//! The report: one JSON object.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use weft_mesh::egress::DropReason;
use weft_mesh::node::{EndpointStatus, PeerStatus, Refusals, RingReport, Status, TargetState};
use weft_mesh::records::EndpointId;

use crate::daemon::api::Api;
use crate::docker;
use crate::error::{Doing, Result};

/// Addresses that are always left of a host's windows: the network's own, the gateway's, the broadcast one's.
const MIN_LEFT: u32 = 3;
/// How long drops are told of after they were found, in milliseconds.
const LATE: u64 = 90_000;

/// Reads the report of a running router.
pub async fn read(api: &Api) -> Result<Value> {
    let status = api.node.status().await?;
    let unproven = api.attachments.unproven().await;
    let api = api.clone();
    // A large mesh takes milliseconds.
    let report = tokio::task::spawn_blocking(move || report(&status, &unproven, &api)).await;
    report.doing(|| "cannot report".into())
}

/// What a status request answers: every key is there, empty where a part is not built or switched off.
fn report(status: &Status, unproven: &[Ipv4Addr], api: &Api) -> Value {
    // A new field has to be placed here.
    let Status {
        name,
        peer_id,
        cloned,
        peers,
        links,
        routes,
        endpoints: _,
        targets,
        addresses,
        advertised,
        marks: _,
        load: _,
        rings: _,
        fenced: _,
        refused: _,
        records_digest,
    } = status;
    let options = &api.options;
    let engine = api.docker.as_ref().and_then(|docker| docker.engine_version());
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "name": name,
        "peer_id": peer_id,
        "cloned": cloned,
        "addresses": addresses,
        "advertised": advertised,
        "problems": problems(status, unproven, api),
        "peers": peers.iter().map(|peer| with_tls(peer, api)).collect::<Vec<Value>>(),
        "links": links,
        "routes": routes,
        "endpoints": endpoints(status, api),
        "targets": targets,
        "records_digest": records_digest,
        "ipam": ipam(status, &options.range.to_string()),
        "dns": dns(api),
        "drops": drops(status, api),
        "dropping": dropping(api),
        "docker": {
            "plugin": api.docker.as_ref().map(|_| docker::NAME),
            "engine": engine.as_deref(),
            "networks": api.docker.as_ref().map(|docker| docker.network_names()).unwrap_or_default(),
            "firewalls": api.docker.as_ref().map(|docker| docker.obstacles()).unwrap_or_default(),
        },
    })
}

/// Relays that do not carry what goes by them, a line each.
fn avoided(status: &Status) -> Vec<String> {
    let mut by_relay: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for route in &status.routes {
        route.avoided.iter().for_each(|relay| by_relay.entry(relay).or_default().push(&route.to));
    }
    let line = |(relay, hosts): (&str, Vec<&str>)| {
        let others = if hosts.len() > 1 { format!(" and {} more", hosts.len() - 1) } else { String::new() };
        let first = hosts.first().unwrap_or(&"?");
        format!(
            "what goes to {first}{others} by {relay} does not arrive, though the link with {relay} is up: other ways are taken; look at \
             weft status drops on {relay}"
        )
    };
    by_relay.into_iter().map(line).collect()
}

/// What is wrong and what to do about it, a line each.
fn problems(status: &Status, unproven: &[Ipv4Addr], api: &Api) -> Vec<String> {
    let mut problems = Vec::new();
    if status.cloned {
        problems.push(
            "another host lives with this host's key (a cloned machine?): on the copy, stop weft and remove identity and \
             store.redb from its state directory"
                .to_owned(),
        );
    }
    for target in &status.targets {
        let silent = || target.addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", ");
        match target.state {
            TargetState::Silent => problems.push(format!(
                "{} does not answer at {}: is weft up there, does UDP get through, and has it the same secret?",
                target.name,
                silent()
            )),
            TargetState::Trying if target.addresses.is_empty() => {
                problems.push(format!(
                    "the name of peer {} cannot be looked up: check it, or this host's DNS",
                    target.name
                ));
            }
            _ => {}
        }
    }
    if !status.marks {
        problems.push(
            "a network here drops packets marked AF21: this router marks none, and small packets may wait behind large transfers"
                .to_owned(),
        );
    }
    problems.extend(avoided(status));
    if status.load > 0 {
        problems.push(format!(
            "this host is busy all the time and relays for others, who prefer other relays of the same cost (load {} of 4): let more \
             hosts relay, or see weft why for direct links that are missing",
            status.load
        ));
    }
    for ring in &status.rings {
        problems.extend(ring.contested.iter().map(|subnet| {
            format!(
                "addresses of the network {subnet} here are handed out in the mesh's own range {}, too, since two parts of the mesh \
                 met or this host was given up: create that network again with another subnet",
                ring.range
            )
        }));
    }
    problems.extend(status.rings.iter().filter_map(run_out));
    problems.extend(unproven.iter().map(|ip| {
        format!(
            "{ip} is a running container's since before the store was lost, and no ring has given it to this host yet; if it cannot, \
             detach the container and attach it anew (see: weft status ipam)"
        )
    }));
    problems.extend(api.overlap.clone());
    problems.extend(api.store.problem());
    problems.extend(api.observers.collector.load().as_deref().cloned());
    problems.extend(api.docker.iter().flat_map(|docker| docker.problems()));
    problems
}

/// A ring that has next to nothing left, neither here nor in windows that this host could open.
fn run_out(ring: &RingReport) -> Option<String> {
    let left = ring.owned.saturating_sub(ring.used);
    let is_out = ring.unopened == 0 && ring.used > 0 && left <= (ring.owned / 10).max(MIN_LEFT);
    is_out.then(|| {
        format!(
            "the range {} runs out of addresses: this host uses {} of its {}, and no host has more to open: remove endpoints, take back what \
             hosts have that are gone (weft reclaim HOST), or create the network with a larger subnet",
            ring.range, ring.used, ring.owned
        )
    })
}

/// A peer as the node reports it, and whether its link is inside TLS, of which the node knows nothing.
fn with_tls(peer: &PeerStatus, api: &Api) -> Value {
    let by_tcp = peer.remote.filter(|_| peer.transport == Some("tcp"));
    let mut value = json!(peer);
    value["tls"] = json!(by_tcp.is_some_and(|remote| api.connections.is_in_tls(remote)));
    value
}

/// Endpoints as the node reports them, those of an engine with their published ports.
fn endpoints(status: &Status, api: &Api) -> Value {
    let published = api.docker.as_ref().map(|docker| docker.published()).unwrap_or_default();
    let with_ports = |endpoint: &EndpointStatus| {
        let mut value = json!(endpoint);
        let id: Option<EndpointId> = hex::decode(&endpoint.id).ok().and_then(|id| id.try_into().ok());
        value["ports"] = json!(id.and_then(|id| published.get(&id)).map_or(&[][..], Vec::as_slice));
        value
    };
    status.endpoints.iter().map(with_ports).collect()
}

fn drops(status: &Status, api: &Api) -> Value {
    let all = dropped(&status.refused, api);
    all.map(|(name, count)| (name.to_owned(), json!(count))).collect::<Map<String, Value>>().into()
}

/// What was lost or refused of late, by reason: as of the last look, once a minute.
fn dropping(api: &Api) -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64);
    let (entries, _) = api.observers.recorder.entries(now.saturating_sub(LATE), 0);
    let dropped = entries.iter().filter(|entry| entry["event"] == "dropped");
    let by_reason = dropped.filter_map(|entry| Some((entry["reason"].as_str()?.to_owned(), entry["count"].clone())));
    by_reason.collect::<Map<String, Value>>().into()
}

/// Counters of what is no loss: frames that the bridge delivers itself, and records that are held and not understood.
const NO_LOSS: [&str; 2] = ["local", "records_unknown"];

/// What was lost or refused, by reason: all that is dropped but what others deliver.
pub fn lost(refused: &Refusals, api: &Api) -> impl Iterator<Item = (&'static str, u64)> {
    dropped(refused, api).filter(|(reason, _)| !NO_LOSS.contains(reason))
}

/// Everything that was dropped or refused, by reason: by the packet workers, by sockets and TAPs, by the node.
fn dropped(refused: &Refusals, api: &Api) -> impl Iterator<Item = (&'static str, u64)> {
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let by_reason = DropReason::ALL.map(|reason| (reason.name(), count(&api.counters.dropped[reason as usize])));
    let others = [
        ("receive_full", count(&api.counters.receive_full)),
        ("tap_full", count(&api.counters.tap_full)),
        ("send_failed", count(&api.counters.send_failed)),
        ("punts_lost", count(&api.counters.punts_lost)),
        ("tcp_full", count(&api.connections.dropped)),
        ("tcp_refused", count(&api.connections.refused)),
        ("waiting_frames", refused.waiting_frames),
        ("handshakes_refused", refused.handshakes),
        ("swim_packets_refused", refused.swim_packets),
        ("record_batches_refused", refused.record_batches),
        ("records_refused", refused.records),
        ("records_unknown", refused.unknown_records),
    ];
    by_reason.into_iter().chain(others)
}

fn dns(api: &Api) -> Value {
    let (listen, served, unserved) = api.dns.as_ref().map(|dns| dns.places()).unwrap_or_default();
    json!({
        "domain": api.options.dns_domain,
        "listen": listen,
        "entries": api.names.load().len(),
        "added": api.names.load().added(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_said_to_run_out_only_if_nothing_can_be_opened() {
        let ring = |owned, used, unopened| RingReport {
            range: "10.50.0.0/28".into(),
            state: "ready",
            waiting_for: Vec::new(),
            owned,
            used,
            unreachable: 0,
            unopened,
            voters: Vec::new(),
            contested: Vec::new(),
        };
        assert!(run_out(&ring(16, 13, 0)).is_some_and(|line| line.contains("uses 13 of its 16")));
        assert!(run_out(&ring(16, 13, 16)).is_none() && run_out(&ring(16, 5, 0)).is_none());
        assert!(run_out(&ring(0, 0, 0)).is_none(), "a ring that this host has no part of");
    }
}
