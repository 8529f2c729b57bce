//! What happened to this router: a day of it and more, in bounded memory and on disk.
//!
//! An entry is a line of JSON: `at`, in milliseconds since 1970 by this host's clock, `event`, and what belongs to it. Entries stay in the order in which they came about,
//! also when the clock is set back. The oldest go when there are more than `MAX_BYTES` of them.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::sync::watch;

use super::happening::Happening;
use super::journal::{self, Journal, MAX_BYTES};

/// How far the clock may move against the time that passed before that is an entry of its own.
const CLOCK_SLACK: Duration = Duration::from_secs(30);
/// How soon the same refusal is an entry again: engines try again and again.
const REFUSED_AGAIN: Duration = Duration::from_secs(60);

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

#[cfg(test)]
mod tests {
    use super::super::happening::{MAX_TEXT, PeerName};
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
}
