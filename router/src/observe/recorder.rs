//! What happened to this router: a day of it and more, in bounded memory and on disk.
//!
//! An entry is a line of JSON: `at`, in milliseconds since 1970 by this host's clock, `event`, and what belongs to it. Entries stay in the order in which they came about,
//! whatever the clock does. The oldest go when there are more than [`MAX_BYTES`] of them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use weft_mesh::node::{PeerState, PeerStatus};

use super::journal::{self, Journal, MAX_BYTES};

/// How far the clock may move against the time that passed before that is an entry of its own.
const CLOCK_SLACK: Duration = Duration::from_secs(30);
/// Letters of a text that comes from elsewhere.
const MAX_TEXT: usize = 300;
/// How soon the same refusal is an entry again: engines try again and again.
const REFUSED_AGAIN: Duration = Duration::from_secs(60);
/// How soon a link's figures are told again, and how soon even what has not changed: entries of a path must not all be older than what is kept.
const LINK_AGAIN: Duration = Duration::from_secs(60);
const STILL: Duration = Duration::from_secs(3600);

/// What happened.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Happening {
    /// The router started.
    Started {
        /// The version that runs.
        version: &'static str,
    },
    /// It was told to stop.
    Stopped,
    /// The clock was set, or the host slept.
    ClockMoved {
        /// By how many seconds it is ahead of the time that passed.
        seconds: i64,
    },
    /// A direct link came up.
    LinkUp {
        /// The other host.
        #[serde(flatten)]
        peer: PeerName,
        /// The path's remote address.
        remote: String,
    },
    /// A direct link goes on at another address.
    LinkMoved {
        /// The other host.
        #[serde(flatten)]
        peer: PeerName,
        /// The new path's remote address.
        remote: String,
    },
    /// A direct link is gone.
    LinkDown {
        /// The other host.
        #[serde(flatten)]
        peer: PeerName,
        /// Why.
        cause: &'static str,
    },
    /// Frames to a host go another way.
    Path {
        /// The host.
        #[serde(flatten)]
        peer: PeerName,
        /// `direct`, `relay` or `none`.
        path: &'static str,
        /// The relay.
        #[serde(skip_serializing_if = "Option::is_none")]
        via: Option<String>,
        /// By what they leave: `udp` or `tcp`.
        #[serde(skip_serializing_if = "Option::is_none")]
        transport: Option<&'static str>,
    },
    /// How a direct link does, if that has changed since it was last told, or an hour has passed.
    Link {
        /// The other host.
        #[serde(flatten)]
        peer: PeerName,
        /// Smoothed round-trip time in microseconds.
        rtt_us: u64,
        /// Share of pings lost of late, in percent.
        loss_percent: u8,
    },
    /// Members no longer hear of a host.
    PeerGone {
        /// The host.
        peer: String,
    },
    /// They do again.
    PeerBack {
        /// The host.
        peer: String,
    },
    /// A host that the operator named does not answer.
    TargetSilent {
        /// As it was named.
        name: String,
        /// Its address.
        address: String,
    },
    /// The network to a host drops what is marked.
    MarksLost {
        /// The host.
        peer: String,
    },
    /// Another host claims what this one has, too.
    Conflict {
        /// An address or name.
        what: String,
        /// The other host.
        by: String,
    },
    /// An address of an endpoint here is another host's.
    Fenced {
        /// The address.
        address: String,
    },
    /// Two hosts live with one key.
    Cloned {
        /// Whose: this host's, or a peer's.
        key: String,
    },
    /// Records of an earlier life of this host were found.
    Reincarnated,
    /// Something was dropped or refused within a minute.
    Dropped {
        /// What: a counter of `weft status drops`.
        reason: &'static str,
        /// How many.
        count: u64,
    },
    /// A call of the Docker engine was refused.
    CallRefused {
        /// The call.
        call: String,
        /// Why.
        why: String,
    },
}

/// A host, by which entries about it are found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PeerName {
    /// Its nickname.
    pub peer: String,
    /// The beginning of its key: nicknames need not be unique, and are not known at first.
    pub peer_id: String,
}

impl Happening {
    /// A call of the engine was refused. The texts may quote the engine at length: they are cut.
    pub fn call_refused(call: &str, why: &str) -> Happening {
        let cut = |text: &str| text.chars().take(MAX_TEXT).collect();
        Happening::CallRefused { call: cut(call), why: cut(why) }
    }
}

/// The recorder.
pub struct Recorder {
    kept: Mutex<Kept>,
    journal: Journal,
    news: watch::Sender<u64>,
    run: u64,
}

struct Kept {
    lines: VecDeque<Line>,
    bytes: usize,
    /// The number of the next entry.
    next: u64,
    clock: (Instant, SystemTime),
    refused: Option<(Instant, Happening)>,
}

#[derive(Clone)]
struct Line {
    at: u64,
    text: Arc<str>,
}

impl Recorder {
    /// Picks up what the directory holds of earlier, and goes on from there.
    pub fn open(dir: &Path) -> Recorder {
        let (lines, journal) = journal::open(dir);
        let at = |text: &str| serde_json::from_str::<Value>(text).ok().and_then(|value| value["at"].as_u64());
        let lines = lines.into_iter().filter_map(|text| Some(Line { at: at(&text)?, text: text.into() }));
        let mut kept = Kept {
            lines: VecDeque::new(),
            bytes: 0,
            next: 0,
            clock: (Instant::now(), SystemTime::now()),
            refused: None,
        };
        lines.for_each(|line| kept.push(line));
        let run = milliseconds(SystemTime::now());
        Recorder { news: watch::Sender::new(kept.next), kept: Mutex::new(kept), journal, run }
    }

    /// Notes what happened now.
    pub fn note(&self, happening: &Happening) {
        self.note_at(happening, Instant::now(), SystemTime::now());
    }

    fn note_at(&self, happening: &Happening, instant: Instant, clock: SystemTime) {
        let mut kept = self.kept();
        if kept.is_repeated(happening, instant) {
            return;
        }
        if let Some(seconds) = kept.clock_moved(instant, clock) {
            self.write(&mut kept, &Happening::ClockMoved { seconds }, clock);
        }
        self.write(&mut kept, happening, clock);
        self.news.send_replace(kept.next);
    }

    fn write(&self, kept: &mut Kept, happening: &Happening, clock: SystemTime) {
        let at = milliseconds(clock);
        let mut value = json!(happening);
        value["at"] = json!(at);
        let text = value.to_string();
        self.journal.write(text.clone());
        kept.push(Line { at, text: text.into() });
    }

    /// Entries of this time or later, by this host's clock in milliseconds since 1970, and with this number or a higher one; with the number of the next to come.
    /// Reading megabytes takes milliseconds: not for a thread that others wait for.
    pub fn entries(&self, since: u64, from: u64) -> (Vec<Value>, u64) {
        let (lines, next) = {
            let kept = self.kept();
            let first = kept.next - kept.lines.len() as u64;
            let skip = usize::try_from(from.saturating_sub(first)).unwrap_or(usize::MAX);
            let lines = kept.lines.iter().skip(skip).filter(|line| line.at >= since);
            (lines.cloned().collect::<Vec<Line>>(), kept.next)
        };
        (lines.iter().filter_map(|line| serde_json::from_str(&line.text).ok()).collect(), next)
    }

    /// Returns when this recorder began, in milliseconds since 1970: with another one, numbers begin anew.
    pub fn run(&self) -> u64 {
        self.run
    }

    /// The number of the next entry, and when it changes.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// What is known of the path to a host at a time, and what happened to it within `around` before and after. Entries are the host's by its key, if that is known, and by its nickname.
    pub fn path_at(&self, host: &str, peer_id: Option<&str>, at: u64, around: Duration) -> Value {
        let (all, _) = self.entries(0, 0);
        let begins = all.first().and_then(|entry| entry["at"].as_u64());
        let is_of_host = |entry: &&Value| match (entry["peer_id"].as_str(), peer_id) {
            (Some(id), Some(known)) => known.starts_with(id),
            (Some(id), None) if id == host => true,
            _ => entry["peer"] == host,
        };
        let before = |event: &str| {
            let earlier = all.iter().filter(|entry| entry["at"].as_u64().is_some_and(|time| time <= at));
            // What was before the router started does not hold any more.
            let run: Vec<&Value> = earlier.rev().take_while(|entry| entry["event"] != "started").collect();
            run.into_iter().filter(is_of_host).find(|entry| entry["event"] == event).cloned()
        };
        let path = before("path");
        // A link that frames do not go by says nothing of their path.
        let link = path.as_ref().filter(|path| path["path"] == "direct").and_then(|_| before("link"));
        let around = around.as_millis() as u64;
        let is_near = |entry: &&Value| entry["at"].as_u64().is_some_and(|time| time.abs_diff(at) <= around);
        let is_relevant = |entry: &&Value| entry.get("peer").is_none() || is_of_host(entry);
        let near: Vec<&Value> = all.iter().filter(is_near).filter(is_relevant).collect();
        let known = |entry: &Option<Value>, key: &str| entry.as_ref().map_or(Value::Null, |entry| entry[key].clone());
        json!({
            "to": host, "at": at, "begins": begins,
            "path": known(&path, "path"), "via": known(&path, "via"), "transport": known(&path, "transport"),
            "since": known(&path, "at"), "rtt_us": known(&link, "rtt_us"), "loss_percent": known(&link, "loss_percent"),
            "events": near,
        })
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn milliseconds(clock: SystemTime) -> u64 {
    clock.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl Kept {
    /// Whether the same refusal was noted a moment ago; if not, this one was.
    fn is_repeated(&mut self, happening: &Happening, now: Instant) -> bool {
        if !matches!(happening, Happening::CallRefused { .. }) {
            return false;
        }
        let is_same = |(at, last): &(Instant, Happening)| last == happening && now - *at < REFUSED_AGAIN;
        if self.refused.as_ref().is_some_and(is_same) {
            return true;
        }
        self.refused = Some((now, happening.clone()));
        false
    }

    fn push(&mut self, line: Line) {
        self.bytes += line.text.len();
        self.lines.push_back(line);
        self.next += 1;
        while self.bytes > MAX_BYTES
            && let Some(oldest) = self.lines.pop_front()
        {
            self.bytes -= oldest.text.len();
        }
    }

    /// By how many seconds the clock is ahead of the time that passed, if by much.
    fn clock_moved(&mut self, instant: Instant, clock: SystemTime) -> Option<i64> {
        let (last_instant, last_clock) = std::mem::replace(&mut self.clock, (instant, clock));
        let expected = last_clock + instant.saturating_duration_since(last_instant);
        match clock.duration_since(expected) {
            Ok(ahead) if ahead > CLOCK_SLACK => Some(ahead.as_secs() as i64),
            Err(behind) if behind.duration() > CLOCK_SLACK => Some(-(behind.duration().as_secs() as i64)),
            _ => None,
        }
    }
}

/// Digits of a key in entries, as the log has them.
const SHORT: usize = 8;

/// Tells what has changed between two looks at the peers.
#[derive(Default)]
pub struct Changes {
    known: BTreeMap<String, KnownPeer>,
}

#[derive(Default)]
struct KnownPeer {
    way: Option<(Way, Instant)>,
    link: Option<((u64, u8), Instant)>,
}

/// The kind of path, the relay and the transport.
type Way = (&'static str, Option<String>, Option<&'static str>);

impl Changes {
    /// What has changed about a peer's path and link: a round-trip time by a tenth and 100 µs, a loss by a percent.
    pub fn look(&mut self, peer: &PeerStatus, now: Instant) -> Vec<Happening> {
        let known = self.known.entry(peer.peer_id.clone()).or_default();
        let name = PeerName { peer: peer.name.clone(), peer_id: peer.peer_id.chars().take(SHORT).collect() };
        let mut changes = Vec::new();
        let path = peer.path.filter(|_| peer.state == PeerState::Connected).unwrap_or("none");
        let way = (path, peer.via.clone(), peer.transport);
        let is_told = match &known.way {
            Some((last, at)) => *last == way && now - *at < STILL,
            // A host that was never reached.
            None => path == "none",
        };
        if !is_told {
            let (path, via, transport) = way.clone();
            changes.push(Happening::Path { peer: name.clone(), path, via, transport });
            known.way = Some((way, now));
        }
        let (Some(rtt_us), Some(loss)) = (peer.rtt_us, peer.loss) else {
            known.link = None;
            return changes;
        };
        let figures = (rtt_us, (loss * 100.0).round().clamp(0.0, 100.0) as u8);
        let differs = |(rtt, loss): (u64, u8)| loss != figures.1 || rtt.abs_diff(rtt_us) > 100 + rtt / 10;
        let is_due = |(last, at)| now - at >= STILL || (differs(last) && now - at >= LINK_AGAIN);
        if known.link.is_none_or(is_due) {
            known.link = Some((figures, now));
            changes.push(Happening::Link { peer: name, rtt_us, loss_percent: figures.1 });
        }
        changes
    }

    /// Forgets peers that are not there any more.
    pub fn retain(&mut self, peers: &[PeerStatus]) {
        let there: BTreeSet<&str> = peers.iter().map(|peer| peer.peer_id.as_str()).collect();
        self.known.retain(|id, _| there.contains(id.as_str()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorder(name: &str) -> (Recorder, std::path::PathBuf) {
        let dir = std::env::temp_dir().join(format!("weft-recorder-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir(&dir).unwrap();
        (Recorder::open(&dir), dir)
    }

    fn name(peer: &str) -> PeerName {
        PeerName { peer: peer.into(), peer_id: format!("id-{peer}") }
    }

    fn down(peer: &str) -> Happening {
        Happening::LinkDown { peer: name(peer), cause: "nothing comes back" }
    }

    #[test]
    fn entries_are_found_by_time_and_by_number() {
        let (recorder, dir) = recorder("found");
        let (start, epoch) = (Instant::now(), SystemTime::now());
        let mut news = recorder.news();
        for minute in 0..10 {
            let passed = Duration::from_secs(60 * minute);
            recorder.note_at(&down(&format!("h{minute}")), start + passed, epoch + passed);
        }
        assert!(news.has_changed().unwrap() && *news.borrow_and_update() == 10);
        let since = (epoch + Duration::from_secs(60 * 7)).duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        let (entries, next) = recorder.entries(since, 0);
        assert_eq!((entries.len(), next), (3, 10));
        assert_eq!(
            entries[0],
            json!({ "at": since, "event": "link_down", "peer": "h7", "peer_id": "id-h7", "cause": "nothing comes back" })
        );
        assert_eq!(recorder.entries(0, 9).0.len(), 1);
        assert!(recorder.entries(0, 10).0.is_empty());
        // Its thread may still write there.
        let _ = std::fs::remove_dir_all(dir);
    }

    #[test]
    fn a_clock_that_jumps_is_an_entry_and_changes_no_order() {
        let (recorder, dir) = recorder("clock");
        let (start, epoch) = (Instant::now(), SystemTime::now());
        let hour = Duration::from_secs(3600);
        recorder.note_at(&down("a"), start + hour, epoch);
        recorder.note_at(&down("b"), start + hour, epoch + hour);
        let (entries, _) = recorder.entries(0, 0);
        let events: Vec<&str> = entries.iter().filter_map(|entry| entry["event"].as_str()).collect();
        assert_eq!(events, ["clock_moved", "link_down", "clock_moved", "link_down"]);
        let seconds = [0, 2].map(|at: usize| entries[at]["seconds"].as_i64().unwrap());
        assert!((-3605..=-3595).contains(&seconds[0]) && (3595..=3605).contains(&seconds[1]), "{seconds:?}");
        // Its thread may still write there.
        let _ = std::fs::remove_dir_all(dir);
    }

    #[test]
    fn what_is_kept_is_bounded_and_numbers_go_on() {
        let (recorder, dir) = recorder("bounded");
        let count = 3 * MAX_BYTES as u64 / 1000;
        for number in 0..count {
            let conflict = Happening::Conflict { what: "x".repeat(1000), by: number.to_string() };
            recorder.note(&conflict);
        }
        let (entries, next) = recorder.entries(0, 0);
        assert!(entries.len() * 1000 <= MAX_BYTES && entries.len() * 1200 > MAX_BYTES, "{}", entries.len());
        assert_eq!((next, recorder.entries(0, next - 1).0.len()), (count, 1));
        // Its thread may still write there.
        let _ = std::fs::remove_dir_all(dir);
    }

    #[test]
    fn a_refusal_is_cut_and_told_once_a_minute() {
        let (recorder, dir) = recorder("refused");
        let refused = Happening::call_refused("NetworkDriver.Join", &"x".repeat(5 << 20));
        let (start, epoch) = (Instant::now(), SystemTime::now());
        for second in 0..120 {
            let passed = Duration::from_secs(second);
            recorder.note_at(&refused, start + passed, epoch + passed);
        }
        let (entries, _) = recorder.entries(0, 0);
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0]["why"].as_str().map(str::len), Some(MAX_TEXT));
        let _ = std::fs::remove_dir_all(dir);
    }

    #[test]
    fn the_path_of_an_earlier_time_is_told_with_what_happened_around_it() {
        let (recorder, dir) = recorder("path");
        let (start, epoch) = (Instant::now(), SystemTime::now());
        let path = |path, via: Option<&str>| Happening::Path {
            peer: name("h1"),
            path,
            via: via.map(str::to_owned),
            transport: Some("udp"),
        };
        let entries = [
            (0, path("none", None)),
            (1, Happening::Started { version: "1" }),
            (2, path("direct", None)),
            (3, Happening::Link { peer: name("h1"), rtt_us: 900, loss_percent: 0 }),
            (60, down("h1")),
            (60, path("relay", Some("h2"))),
            (61, down("other")),
        ];
        for (minute, happening) in &entries {
            let passed = Duration::from_secs(60 * minute);
            recorder.note_at(happening, start + passed, epoch + passed);
        }
        let at = |minute: u64| {
            (epoch + Duration::from_secs(60 * minute)).duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
        };
        let of = |minute| recorder.path_at("h1", Some("id-h1"), at(minute), Duration::from_secs(300));
        let early = of(30);
        assert_eq!((&early["path"], &early["rtt_us"], &early["since"]), (&json!("direct"), &json!(900), &json!(at(2))));
        assert_eq!(early["events"], json!([]));
        let late = of(62);
        assert_eq!((&late["path"], &late["via"]), (&json!("relay"), &json!("h2")));
        assert_eq!(late["events"].as_array().unwrap().len(), 2, "{late:#}");
        assert_eq!(late["rtt_us"], Value::Null, "frames do not go by the link");
        let namesake = recorder.path_at("h1", Some("another"), at(62), Duration::from_secs(300));
        assert_eq!(namesake["path"], Value::Null);
        let by_key = recorder.path_at("id-h1", None, at(62), Duration::from_secs(300));
        assert_eq!(by_key["path"], "relay");
        assert_eq!(of(1)["path"], Value::Null, "what was before the start is over");
        // Its thread may still write there.
        let _ = std::fs::remove_dir_all(dir);
    }

    #[test]
    fn only_what_differs_is_told_of_a_link() {
        let (mut changes, start) = (Changes::default(), Instant::now());
        let minute = |number: u64| start + Duration::from_secs(60 * number);
        let mut peer = PeerStatus {
            name: "h1".into(),
            peer_id: "0123456789".into(),
            state: PeerState::Unreachable,
            path: None,
            via: None,
            transport: None,
            remote: None,
            cipher: None,
            rtt_us: None,
            loss: None,
            mtu: None,
            relays: true,
            metered: false,
            rx_bytes: 0,
            tx_bytes: 0,
        };
        assert!(changes.look(&peer, start).is_empty(), "a host that was never reached");
        (peer.state, peer.path, peer.transport) = (PeerState::Connected, Some("direct"), Some("udp"));
        (peer.rtt_us, peer.loss) = (Some(1000), Some(0.0));
        assert_eq!(changes.look(&peer, start).len(), 2);
        peer.rtt_us = Some(1150);
        assert!(changes.look(&peer, minute(1)).is_empty());
        peer.rtt_us = Some(1400);
        assert!(changes.look(&peer, start).is_empty(), "so soon");
        let name = PeerName { peer: "h1".into(), peer_id: "01234567".into() };
        assert_eq!(changes.look(&peer, minute(2)), [Happening::Link { peer: name, rtt_us: 1400, loss_percent: 0 }]);
        assert_eq!(changes.look(&peer, minute(62)).len(), 2, "still so");
        peer.state = PeerState::Unreachable;
        assert!(matches!(&changes.look(&peer, minute(63))[..], [Happening::Path { path: "none", .. }]));
        peer.rtt_us = None;
        assert!(changes.look(&peer, minute(63)).is_empty());
        (peer.state, peer.rtt_us) = (PeerState::Connected, Some(1400));
        assert_eq!(changes.look(&peer, minute(63)).len(), 2, "a new link with the same figures");
        changes.retain(&[]);
        assert_eq!(changes.look(&peer, minute(63)).len(), 2);
    }
}
