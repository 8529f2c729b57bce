//! Better paths beside one that works: while frames flow, other addresses of the peer are asked now and then, and the link moves to one that is
//! quicker by far several times in a row.
//!
//! The host that chooses a link's path decides. The other asks as well, so that the one that decides hears of addresses that open from
//! there only, and follows with the first packet that comes by the new path. Nothing is said by a path that is asked beside the link but
//! the question and its answer: neither host takes it for the other's having moved.

use std::net::SocketAddr;
use std::time::Duration;

use rand::Rng;
use weft_crypto::{HostLabel, Time};

use super::candidates::Learnt;
use super::link::Link;
use super::size::Load;
use super::{Event, Peer, Topology};
use crate::path::Path;
use crate::wire::{Control, Lane};

/// How often a path is asked that is new or has just been quicker, and how often any other while frames flow.
const HEAT: Duration = Duration::from_secs(1);
const LATER: Duration = Duration::from_secs(5);
/// Questions until a path is new no more.
const NEW: u32 = 6;
/// Answers in a row that have to be quicker: if the round trip alone is, and if it is only the share of lost pings that makes the difference.
const WINS: u32 = 3;
const WINS_BY_LOSS: u32 = 12;
/// How much quicker they have to be: this, and twice as quick.
const LEAST_GAIN: Duration = Duration::from_micros(500);
/// What a path that loses all pings would take longer for it: most of what is lost is sent again.
const LOSS: Duration = Duration::from_millis(300);
/// How long it is remembered what a path took that was left, with frames on it: without them it would seem quick again.
const REMEMBERED: Duration = Duration::from_secs(300);

/// What is known of a path beside the link's.
#[derive(Clone, Copy, Default)]
pub(super) struct Runner {
    /// The question that was not answered yet.
    asked: Option<(u32, Time)>,
    questions: u32,
    next: Time,
    wins: u32,
    /// What it took when it was left, and when that was.
    left: Option<(Duration, Time)>,
}

impl Runner {
    /// Whether it is asked now; while the link `is_used`, again and again.
    fn is_due(&self, is_used: bool, now: Time) -> bool {
        now >= self.next && (is_used || self.wins > 0 || self.questions == 0)
    }

    fn ask(&mut self, id: u32, now: Time) {
        if self.asked.is_some() {
            self.wins = 0;
        }
        self.questions = self.questions.saturating_add(1);
        let is_promising = self.wins > 0 || self.questions < NEW;
        self.next = now + if is_promising { HEAT } else { LATER };
        self.asked = Some((id, now));
    }

    /// Takes an answer; true if the path has been quicker than the link often enough.
    fn on_answer(&mut self, id: u32, link: &Link, now: Time) -> bool {
        let Some((_, at)) = self.asked.take_if(|(asked, _)| *asked == id) else { return false };
        let known = self.left.filter(|(_, left)| now.since(*left) < REMEMBERED).map(|(took, _)| took);
        let took = now.since(at).max(known.unwrap_or_default());
        let is_quicker = |than: Duration| took * 2 < than && took + LEAST_GAIN < than;
        let Some(rtt) = link.recent_rtt() else { return false };
        let needed = if is_quicker(rtt) { WINS } else { WINS_BY_LOSS };
        self.wins = if is_quicker(rtt + LOSS.mul_f64(link.loss)) { self.wins + 1 } else { 0 };
        if self.wins > 0 {
            self.next = at + HEAT;
        }
        self.wins >= needed
    }
}

impl Peer {
    /// The paths beside its link's that are asked now, with the ids of the questions; `own` are addresses of this host.
    fn heat(&mut self, own: &[SocketAddr], rng: &mut impl Rng, now: Time) -> Vec<(Path, u32)> {
        let Some(link) = self.link.as_ref().filter(|link| link.path.is_udp()) else { return Vec::new() };
        let is_used = link.load(now) > Load::Idle;
        let due = self.candidates.runners(own, link.path, |runner| runner.is_due(is_used, now), now);
        let mut ask = |(path, runner): (Path, &mut Runner)| {
            let id = rng.next_u32();
            runner.ask(id, now);
            (path, id)
        };
        due.into_iter().map(&mut ask).collect()
    }
}

impl Topology {
    /// Asks the paths beside a peer's link that are due.
    pub(super) fn race(&mut self, label: HostLabel, index: u32, now: Time) {
        let Some(peer) = self.peers.get_mut(&label) else { return };
        let asked = peer.heat(self.addresses.local(), &mut self.rng, now);
        let trial = |(to, id)| straight(label, index, to, Control::Trial { id });
        self.events.extend(asked.into_iter().map(trial));
    }

    /// Answers a question that came by a path beside the link, and notes that the peer can be asked there, too.
    pub(crate) fn on_trial(&mut self, label: HostLabel, index: u32, from: Path, id: u32) {
        let Some(peer) = self.peers.get_mut(&label) else { return };
        if self.targets.is_forgotten(label) {
            return;
        }
        peer.candidates.add(from, Learnt::Worked);
        self.events.push_back(straight(label, index, from, Control::Tried { id }));
    }

    /// Takes the answer to a question by a path beside the link, which goes over to it if it has proved better.
    pub(crate) fn on_tried(&mut self, label: HostLabel, index: u32, from: Path, id: u32, now: Time) {
        let chooses = self.own < label;
        let Some(peer) = self.peers.get_mut(&label) else { return };
        let Some(link) = &peer.link else { return };
        let Some(runner) = peer.candidates.runner(from) else { return };
        if !(runner.on_answer(id, link, now) && chooses) {
            return;
        }
        runner.wins = 0;
        let (old, took) = (link.path, link.recent_rtt());
        if let Some(left) = peer.candidates.runner(old) {
            left.left = took.map(|took| (took, now));
        }
        self.move_link(label, from, now);
        // The peer follows.
        self.ping(label, index, from, 0, now);
    }
}

fn straight(peer: HostLabel, index: u32, to: Path, control: Control) -> Event {
    Event::Straight { peer, index, to, lane: Lane::Urgent, control, size: 0 }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::datapath::snapshot::Meter;
    use crate::topology::lab::*;

    fn other() -> Path {
        Path::udp(([198, 51, 100, 2], 6783).into())
    }

    /// Milliseconds that a path takes, if it carries anything.
    type Takes = fn(Path) -> u64;
    const SILENT: u64 = u64::MAX;

    /// Lets time pass from one millisecond to another while frames go to the peer or not; returns the questions by paths beside the link.
    fn pass(
        topology: &mut Topology,
        table: &Table,
        meter: &Arc<Meter>,
        uses: bool,
        takes: Takes,
        time: [u64; 2],
    ) -> Vec<Path> {
        let mut trials = Vec::new();
        for now in (time[0]..time[1]).step_by(50) {
            if uses {
                meter.sent.on_link(20, at(now));
            }
            topology.tend_links(true, table, at(now));
            for event in events(topology) {
                let Event::Straight { control, to, size, .. } = event else { continue };
                if matches!(control, Control::Trial { .. }) {
                    trials.push(to);
                }
                if takes(to) == SILENT {
                    continue;
                }
                let answered = at(now + takes(to));
                match control {
                    Control::Ping { id, .. } => topology.on_pong(PEER, to, id, OWN_ADDRESS, size as u16, answered),
                    Control::Trial { id } => topology.on_tried(PEER, 7, to, id, answered),
                    _ => continue,
                }
                meter.received.on_link(1, answered);
            }
        }
        trials
    }

    fn path(topology: &Topology) -> Path {
        topology.link(PEER).expect("the link stays up").path
    }

    #[test]
    fn a_link_in_use_moves_to_a_far_quicker_path_within_ten_seconds_and_stays_there() {
        let (mut topology, table, meter) = topology();
        let busy: Takes = |path| if path == remote() { 30 } else { 1 };
        pass(&mut topology, &table, &meter, true, busy, [0, 10_000]);
        topology.add_candidate(PEER, other(), Learnt::Announced);
        pass(&mut topology, &table, &meter, true, busy, [10_000, 11_000]);
        assert_eq!(path(&topology), remote(), "one answer proves nothing");
        pass(&mut topology, &table, &meter, true, busy, [11_000, 15_000]);
        assert_eq!(path(&topology), other());
        // Without its frames the old path is quick, and the new one has them now.
        let relieved: Takes = |path| if path == remote() { 1 } else { 10 };
        pass(&mut topology, &table, &meter, true, relieved, [15_000, 120_000]);
        assert_eq!(path(&topology), other());
    }

    #[test]
    fn a_path_that_is_about_as_quick_or_silent_or_now_and_then_quicker_is_left_alone() {
        let cases: [(&str, Takes); 3] = [
            ("about as quick", |path| if path == remote() { 30 } else { 16 }),
            ("both quick", |_| 0),
            ("silent", |path| if path == remote() { 30 } else { SILENT }),
        ];
        for (case, takes) in cases {
            let (mut topology, table, meter) = topology();
            topology.add_candidate(PEER, other(), Learnt::Announced);
            let trials = pass(&mut topology, &table, &meter, true, takes, [0, 60_000]);
            assert_eq!(path(&topology), remote(), "{case}");
            assert!((14..=20).contains(&trials.len()), "{case}: {}", trials.len());
        }
    }

    #[test]
    fn an_idle_link_asks_by_a_new_path_once() {
        let (mut topology, table, meter) = topology();
        pass(&mut topology, &table, &meter, false, |_| 1, [0, 20_000]);
        topology.add_candidate(PEER, other(), Learnt::Announced);
        assert_eq!(pass(&mut topology, &table, &meter, false, |_| 1, [20_000, 300_000]), [other()]);
    }

    #[test]
    fn a_question_beside_the_link_is_answered_there_and_moves_nothing() {
        let (mut topology, table, meter) = topology();
        pass(&mut topology, &table, &meter, false, |_| 1, [0, 2000]);
        topology.on_trial(PEER, 7, other(), 5);
        let said = events(&mut topology);
        let is_answer = |event: &Event| matches!(event, Event::Straight { to, control: Control::Tried { id: 5 }, .. } if *to == other());
        assert!(said.len() == 1 && is_answer(&said[0]), "{said:?}");
        assert_eq!(path(&topology), remote());
        assert!(topology.peers[&PEER].candidates.paths().any(|path| *path == other()));
        topology.on_tried(PEER, 7, other(), 5, at(2000));
        assert_eq!(path(&topology), remote(), "it was not asked");
    }
}
