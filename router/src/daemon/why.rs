//! `weft why`: the path between two places, and what keeps it from being a better one.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use weft_mesh::explanation::{
    CandidateAccount, Explanation, HolderAccount, LinkAccount, Mapping, Outcome, Place, Right, Standing,
};
use weft_mesh::records::Health;

use crate::daemon::api::Api;
use crate::dns;
use crate::error::Result;

/// A path to be explained.
#[derive(Serialize, Deserialize)]
pub struct Question {
    /// Where the path begins; none: at this host.
    pub from: Option<String>,
    /// Where it ends.
    pub to: String,
    /// The time that is asked about, in milliseconds since 1970; none: now.
    #[serde(default)]
    pub at: Option<u64>,
}

/// Reads why the path between two places is as it is; without `from`, from this host.
pub async fn read(api: &Api, from: Option<&str>, to: &str) -> Result<Value> {
    let relative = |name: &str| dns::relative(name, &api.options.dns_domain).to_owned();
    Ok(report(&*api.node.explain(from.map(relative), relative(to)).await?))
}

/// The answer, which is printed as JSON. Times are seconds since 1970.
fn report(explanation: &Explanation) -> Value {
    let Explanation { from, to, hops, holders, link, .. } = explanation;
    let at = |ago: Duration| SystemTime::now().checked_sub(ago)?.duration_since(UNIX_EPOCH).ok().map(|at| at.as_secs());
    let changes = link.iter().flat_map(|link| &link.changes);
    let mappings = link.as_ref().map(|link| json!({ "here": link.nats[0], "peer": link.nats[1] }));
    json!({
        "from": from.to_string(),
        "to": to.to_string(),
        "from_id": from.peer_id,
        "to_id": to.peer_id,
        "path": path(explanation),
        "hops": hops,
        "holders": holders.iter().map(holder_json).collect::<Vec<_>>(),
        "reasons": reasons(explanation),
        "remedies": remedies(explanation),
        "since": link.as_ref().and_then(|link| link.since).and_then(at),
        "candidates": link.as_ref().map(|link| &link.candidates[..]).unwrap_or_default(),
        "nats": mappings,
        "changes": changes.map(|(ago, what)| json!({ "at": at(*ago), "what": what })).collect::<Vec<_>>(),
    })
}

fn holder_json(HolderAccount { place, segment, ips, standing, right }: &HolderAccount) -> Value {
    let (range, window_of) = match right {
        Some(Right::Window { range, host }) => (Some(range), host.as_ref()),
        Some(Right::ByHand) | None => (None, None),
    };
    json!({
        "host": place.host,
        "host_id": place.peer_id,
        "endpoint": place.endpoint,
        "segment": segment,
        "ips": ips,
        "health": place.health,
        "answered": *standing == Standing::Answered,
        "standing": standing,
        "range": range,
        "window_of": window_of,
    })
}

fn path(Explanation { is_one_host, hops, .. }: &Explanation) -> &'static str {
    match hops.len() {
        0 if *is_one_host => "direct",
        0 => "none",
        1 => "direct",
        _ => "relay",
    }
}

/// Why the path, and what is at its ends, is as it is, a line each.
fn reasons(explanation: &Explanation) -> Vec<String> {
    let held = explanation.holders.iter().map(|holder| self::holder(holder, &explanation.from));
    let ill = [&explanation.from, &explanation.to].into_iter().filter_map(unhealthy);
    let narrow = explanation.link.as_ref().and_then(|link| link.narrows).filter(|_| explanation.hops.len() == 1);
    let narrow = narrow.map(|[path, own]| {
        format!(
            "the network between takes packets of {path} bytes at most, and this host {own}: larger ones go in pieces"
        )
    });
    let untold = Some(explanation.untold_holders).filter(|untold| *untold > 0);
    let untold = untold.map(|untold| format!("and {untold} more have it"));
    let avoided = explanation.avoided.iter().map(|relay| {
        format!("what goes there by {relay} does not arrive, though the link with {relay} is up: {relay} is avoided")
    });
    held.chain(untold).chain(ill).chain(of_the_path(explanation)).chain(narrow).chain(avoided).collect()
}

/// Whether a holder of the name or address is what an asker gets, and why.
fn holder(holder: &HolderAccount, asker: &Place) -> String {
    let HolderAccount { place, segment, ips, standing, right } = holder;
    let ips = ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let what = match segment {
        Some(segment) => format!("{place} in {segment} ({ips})"),
        None => format!("{ips}, added on {place}"),
    };
    let unanswered = match standing {
        Standing::Answered => None,
        Standing::Ill => Some(place.health.map_or("not healthy", Health::word)),
        Standing::Unreachable => Some("its host cannot be reached"),
        Standing::OtherNetwork => Some("it is in another network than who asks"),
    };
    let and = unanswered.map(|why| format!("; {why}")).unwrap_or_default();
    match right {
        Some(Right::Window { range, host: Some(host) }) if *host == place.host => {
            format!("{what} has the address out of its host's part of {range}{and}")
        }
        Some(Right::Window { range, host: Some(host) }) => {
            format!("{what} says that it has the address, which is in the part of {range} that {host} hands out{and}")
        }
        Some(Right::Window { range, host: None }) => {
            format!("{what} has the address, which is in a part of {range} that no host hands out now{and}")
        }
        Some(Right::ByHand) => {
            format!("{what} has the address by hand: it is in no range out of which weft hands out{and}")
        }
        None => match unanswered {
            None => format!("answered: {what}"),
            Some(_) if *standing == Standing::OtherNetwork => {
                format!("not answered to {asker}: {what}: no network in common")
            }
            Some(why) => format!("not answered: {what}: {why}"),
        },
    }
}

fn unhealthy(place: &Place) -> Option<String> {
    let endpoint = place.endpoint.as_ref()?;
    match place.health? {
        Health::Healthy => None,
        Health::Starting => {
            Some(format!("{endpoint} is starting: its names lead to healthy endpoints, if others have them"))
        }
        Health::Unhealthy => {
            Some(format!("{endpoint} is unhealthy: its names lead to healthy endpoints, if others have them"))
        }
    }
}

fn of_the_path(explanation: &Explanation) -> Vec<String> {
    let Explanation { from, to, is_one_host, hops, stubs, avoided: _, link, holders: _, untold_holders: _ } =
        explanation;
    if *is_one_host {
        return vec![format!("both are on {}: what they say does not leave it", from.host)];
    }
    let peer = peer(explanation);
    let is_direct = hops.len() == 1;
    let Some(link) = link else {
        let reason = match from.is_here || to.is_here {
            true => format!("nothing is known of {peer} but its name"),
            false if !stubs.is_empty() => relays_nothing(stubs),
            false => format!("run this on {} to see what was tried: weft why {}", from.host, to.host),
        };
        return if is_direct { Vec::new() } else { vec![reason] };
    };
    let is_tcp = hops.first().is_some_and(|hop| hop.transport == Some("tcp"));
    let mut reasons = Vec::new();
    match () {
        () if is_direct && is_tcp => {
            reasons.push("UDP is not answered between them: they go by TCP, and try UDP again".into())
        }
        () if is_direct => return vec!["UDP passes between them".into()],
        () if link.is_forgotten => return vec![format!("{peer} was forgotten here")],
        () if !link.is_wanted && !hops.is_empty() => {
            return vec![format!(
                "no direct link with {peer} is wanted: few or no frames go there, or discovery is off"
            )];
        }
        () if hops.is_empty() => {
            reasons.push(format!("neither {peer} nor a host that relays to it is linked with this host"))
        }
        () => {}
    }
    if !stubs.is_empty() {
        reasons.push(relays_nothing(stubs));
    }
    reasons.extend(mapping(link, peer));
    if link.candidates.is_empty() {
        reasons.push(format!("no address of {peer} is known"));
    }
    reasons.extend(link.candidates.iter().map(candidate));
    reasons
}

/// The host at the other end, if one end is here.
fn peer(Explanation { from, to, .. }: &Explanation) -> &str {
    if from.is_here { &to.host } else { &from.host }
}

fn relays_nothing(stubs: &[String]) -> String {
    let verb = if stubs.len() == 1 { "relays" } else { "relay" };
    format!("{} could lead there, and {verb} nothing between others (no-relay or metered)", stubs.join(", "))
}

fn mapping(link: &LinkAccount, peer: &str) -> Option<String> {
    match link.nats {
        [Mapping::Many, Mapping::Many] => Some(format!(
            "the NATs of this host and of {peer} give each destination a port of its own, which neither can know"
        )),
        [Mapping::Many, _] => {
            Some(format!("this host's NAT gives each destination a port of its own: {peer} has to search for it"))
        }
        [_, Mapping::Many] => {
            Some(format!("the NAT of {peer} gives each destination a port of its own: this host has to search for it"))
        }
        [Mapping::One, Mapping::One] => Some(format!("this host and {peer} are behind a NAT each")),
        [Mapping::One, _] => Some("this host is behind a NAT".into()),
        [_, Mapping::One] => Some(format!("{peer} is behind a NAT")),
        [Mapping::None | Mapping::Unknown, Mapping::None | Mapping::Unknown] => None,
    }
}

fn candidate(CandidateAccount { path, learnt, outcome, tries }: &CandidateAccount) -> String {
    let outcome = match outcome {
        Outcome::InUse => "in use".to_owned(),
        Outcome::Answered if *tries > 0 => format!("answered before, and not to the last {tries} tries"),
        Outcome::Answered => "answered".to_owned(),
        Outcome::Silent => format!("no answer to {tries} tries"),
        Outcome::InTurn => format!("opened in turn from both ends, {tries} times, without an answer"),
        Outcome::Spared => "not tried, for it is metered and there is another way".to_owned(),
        Outcome::Untried => "not tried".to_owned(),
    };
    format!("{path} ({learnt}): {outcome}")
}

/// Remedies, a line each.
fn remedies(explanation: &Explanation) -> Vec<String> {
    let Explanation { is_one_host, hops, link, .. } = explanation;
    let Some(link) = link.as_ref().filter(|_| !is_one_host) else { return Vec::new() };
    let peer = peer(explanation);
    let is_by_udp = hops.len() == 1 && hops[0].transport == Some("udp");
    let has_nat = link.nats.iter().any(|nat| matches!(nat, Mapping::One | Mapping::Many));
    let remedy = match () {
        () if is_by_udp || (!link.is_wanted && !link.is_forgotten && !hops.is_empty()) => return Vec::new(),
        () if link.is_forgotten => format!("name it again: weft connect ADDRESS of {peer}"),
        () if has_nat => {
            "map weft's UDP port to one of both at its NAT and name it there (launch --advertise ADDR:PORT), or use a NAT there that gives a host one port for all"
                .to_owned()
        }
        () => format!("let weft's UDP port pass between this host and {peer} in both directions"),
    };
    vec![remedy]
}

/// The same for people.
pub fn print(report: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |key: &str| report[key].as_array().into_iter().flatten();
    let mut out = String::new();
    let hops = list("hops").count();
    let way = match report["path"].as_str() {
        Some("direct") => "a direct path".to_owned(),
        Some("relay") => format!(
            "relayed by {}",
            list("hops").take(hops - 1).map(|hop| text(&hop["peer"])).collect::<Vec<_>>().join(", ")
        ),
        _ => "no path".to_owned(),
    };
    let since = report["since"].as_u64().map(|since| format!(", for {}", age(since))).unwrap_or_default();
    // Writing to a String has no way to fail.
    let _ = writeln!(out, "{} to {}: {way}{since}", text(&report["from"]), text(&report["to"]));
    for (number, hop) in list("hops").enumerate() {
        let _ = writeln!(out, "  {}. {}", number + 1, self::hop(hop));
    }
    for reason in list("reasons") {
        let _ = writeln!(out, "  {}", text(reason));
    }
    for remedy in list("remedies") {
        let _ = writeln!(out, "what would change it: {}", text(remedy));
    }
    for change in list("changes") {
        let ago = change["at"].as_u64().map(age).unwrap_or_default();
        let _ = writeln!(out, "{ago} ago: {}", text(&change["what"]));
    }
    out
}

/// What would become of paths without a host, for people: pairs that would be cut off first.
pub fn print_what_if(report: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |key: &str| report[key].as_array().map_or(&[][..], Vec::as_slice);
    let (host, lost, moved) = (text(&report["host"]), list("lost"), list("moved"));
    let mut out = format!(
        "without {host}, of {} pairs of other hosts, {} would have no path and {} would go another way\n",
        report["pairs"],
        lost.len(),
        moved.len()
    );
    let pair = |pair: &Value| format!("{} and {}", text(&pair[0]), text(&pair[1]));
    out.extend(lost.iter().map(|between| format!("  {}: no path\n", pair(between))));
    out.extend(moved.iter().map(|detour| {
        let via: Vec<String> = detour["via"].as_array().into_iter().flatten().map(text).collect();
        let way = if via.is_empty() { "straight".to_owned() } else { format!("by way of {}", via.join(", ")) };
        let line = if detour["metered"] == true { ", by a line that is paid for by the byte" } else { "" };
        let costs = format!("at a cost of {} ({} now)", detour["cost"], detour["cost_now"]);
        format!("  {}: {way}, {costs}{line}\n", pair(&detour["between"]))
    }));
    out
}

fn hop(hop: &Value) -> String {
    let mut parts = vec![format!("to {}", hop["peer"].as_str().unwrap_or_default())];
    if let (Some(transport), Some(remote)) = (hop["transport"].as_str(), hop["remote"].as_str()) {
        parts.push(format!("{transport}://{remote}"));
    }
    parts.extend(hop["rtt_us"].as_u64().map(|rtt| format!("{:.1} ms", rtt as f64 / 1e3)));
    parts.extend(hop["loss"].as_f64().map(|loss| format!("{:.0} % lost", loss * 100.0)));
    parts.extend(hop["mtu"].as_u64().map(|mtu| format!("MTU {mtu}")));
    parts.extend(hop["cipher"].as_str().map(str::to_owned));
    parts.extend((hop["metered"] == true).then(|| "metered".to_owned()));
    parts.extend(hop["load"].as_u64().filter(|load| *load > 0).map(|load| format!("busy (load {load} of 4)")));
    parts.join(", ")
}

/// How long ago a second was, in the largest unit that tells it.
fn age(at: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    match now.saturating_sub(at) {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use weft_mesh::explanation::HopStatus;

    use super::*;

    fn place(host: &str, is_here: bool) -> Place {
        Place { host: host.into(), peer_id: format!("id-{host}"), endpoint: None, health: None, is_here }
    }

    fn hop(peer: &str, transport: &'static str) -> HopStatus {
        HopStatus {
            peer: peer.into(),
            peer_id: format!("id-{peer}"),
            transport: Some(transport),
            metered: false,
            remote: Some(([192, 0, 2, 1], 6783).into()),
            rtt_us: Some(1500),
            loss: Some(0.0),
            mtu: 1450,
            cipher: Some("AES-256-GCM"),
            load: 0,
        }
    }

    fn explanation(hops: Vec<HopStatus>, link: LinkAccount) -> Explanation {
        Explanation {
            from: place("h1", true),
            to: place("h2", false),
            is_one_host: false,
            hops,
            stubs: Vec::new(),
            avoided: Vec::new(),
            holders: Vec::new(),
            untold_holders: 0,
            link: Some(link),
        }
    }

    fn said(explanation: &Explanation) -> String {
        print(&report(explanation))
    }

    #[test]
    fn each_cause_is_said_in_a_line_with_what_would_change_it() {
        let wanted = LinkAccount { is_wanted: true, ..LinkAccount::default() };
        let relayed = || vec![hop("h0", "udp"), hop("h2", "udp")];
        let candidate = |outcome| CandidateAccount {
            path: "udp://192.0.2.2:6783".into(),
            learnt: "an address of its own",
            outcome,
            tries: 9,
        };
        let with = |nats, outcome| LinkAccount { nats, candidates: vec![candidate(outcome)], ..wanted.clone() };
        let cases: [(Explanation, &[&str]); 7] = [
            (
                explanation(vec![hop("h2", "udp")], wanted.clone()),
                &["a direct path", "UDP passes", "1.5 ms, 0 % lost, MTU 1450, AES-256-GCM"],
            ),
            (
                explanation(vec![hop("h2", "tcp")], wanted.clone()),
                &["tcp://192.0.2.1:6783", "by TCP", "let weft's UDP port pass"],
            ),
            (
                explanation(relayed(), with([Mapping::Many, Mapping::One], Outcome::InTurn)),
                &[
                    "relayed by h0",
                    "this host's NAT gives each destination",
                    "in turn from both ends, 9 times",
                    "map weft's UDP port",
                ],
            ),
            (
                explanation(relayed(), with([Mapping::None, Mapping::None], Outcome::Silent)),
                &[
                    "udp://192.0.2.2:6783 (an address of its own): no answer to 9 tries",
                    "pass between this host and h2",
                ],
            ),
            (
                explanation(vec![], wanted.clone()),
                &["no path", "neither h2 nor a host that relays to it", "no address of h2 is known"],
            ),
            (
                explanation(vec![], LinkAccount { is_forgotten: true, ..wanted.clone() }),
                &["forgotten here", "weft connect"],
            ),
            (explanation(relayed(), LinkAccount::default()), &["no direct link with h2 is wanted"]),
        ];
        for (explanation, expected) in cases {
            let said = said(&explanation);
            expected.iter().for_each(|line| assert!(said.contains(line), "{line:?} is not in:\n{said}"));
        }
    }

    #[test]
    fn an_unhealthy_end_and_a_narrow_network_are_said_beside_the_path() {
        let narrow = LinkAccount { narrows: Some([1322, 1422]), ..LinkAccount::default() };
        let path = explanation(vec![hop("h2", "udp")], narrow);
        let to = Place { endpoint: Some("web".into()), health: Some(Health::Unhealthy), ..place("h2", false) };
        let said = said(&Explanation { to, ..path });
        assert!(said.contains("web is unhealthy: ") && said.contains("UDP passes"), "{said}");
        assert!(said.contains("packets of 1322 bytes at most, and this host 1422"), "{said}");
    }

    #[test]
    fn the_report_has_the_keys_that_scripts_rely_on() {
        let link = LinkAccount {
            since: Some(Duration::from_secs(180)),
            changes: vec![(Duration::from_secs(180), "up by udp://192.0.2.1:6783".into())],
            ..LinkAccount::default()
        };
        let report = report(&explanation(vec![hop("h2", "udp")], link));
        for key in ["from", "to", "path", "hops", "reasons", "since"] {
            assert!(!report[key].is_null(), "{key}");
        }
        for key in ["peer", "transport", "remote", "rtt_us", "loss", "mtu", "cipher", "load"] {
            assert!(!report["hops"][0][key].is_null(), "{key}");
        }
        let said = print(&report);
        assert!(
            said.starts_with("h1 to h2: a direct path, for 3 min\n") && said.contains("3 min ago: up by udp"),
            "{said}"
        );
    }

    #[test]
    fn two_other_hosts_and_one_host_are_explained_as_far_as_is_known() {
        let others = Explanation {
            from: place("h3", false),
            to: place("h2", false),
            is_one_host: false,
            hops: vec![hop("h0", "udp"), hop("h2", "udp")],
            stubs: Vec::new(),
            avoided: Vec::new(),
            holders: Vec::new(),
            untold_holders: 0,
            link: None,
        };
        assert!(said(&others).contains("run this on h3 to see what was tried: weft why h2"));
        let apart = Explanation { hops: vec![], stubs: vec!["h1".into()], avoided: vec!["h4".into()], ..others };
        assert!(said(&apart).contains("no path\n  h1 could lead there, and relays nothing"), "{}", said(&apart));
        assert!(said(&apart).contains("though the link with h4 is up: h4 is avoided"), "{}", said(&apart));
        let web = Place { endpoint: Some("web".into()), health: Some(Health::Healthy), ..place("h1", true) };
        let same = Explanation {
            from: web,
            to: place("h1", true),
            is_one_host: true,
            hops: vec![],
            stubs: vec![],
            avoided: vec![],
            holders: vec![],
            untold_holders: 0,
            link: None,
        };
        assert!(said(&same).starts_with("web on h1 to h1: a direct path\n  both are on h1"), "{}", said(&same));
    }
}
