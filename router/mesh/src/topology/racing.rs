//! Better paths beside one that works: while frames flow, other addresses of the peer are asked now and then, and the link moves to an address
//! that answers far quicker several times in a row.
//!
//! The host that chooses a link's path decides. The other asks as well, so that the one that decides hears of addresses that open from
//! there only, and follows with the first packet that comes by the new path. Nothing is said by a path that is asked beside the link but
//! the question and its answer: neither host takes it for the other's having moved.

use std::net::SocketAddr;

use rand::Rng;
use weft_crypto::{HostLabel, Time};

use super::link::Link;
use super::metered::Metered;
use super::trial::Trial;
use super::{Event, Peer, Topology};
use crate::path::Path;
use crate::wire::{Control, Lane};

impl Peer {
    /// The questions by paths beside its link's that are due, and the link's path if it is to be asked at the same time; `own` are
    /// addresses of this host.
    pub(super) fn due_trials(
        &mut self,
        own: &[SocketAddr],
        metered: &Metered,
        rng: &mut impl Rng,
        now: Time,
    ) -> (Vec<(Path, Control)>, Option<Path>) {
        let is_raced = |link: &&mut Link| link.path.is_udp() && link.is_raced(now);
        let Some(link) = self.link.as_mut().filter(is_raced) else { return Default::default() };
        let ask = |(path, trial): (Path, &mut Trial)| {
            let id = rng.next_u32();
            trial.ask(id, now);
            (path, Control::Trial { id, is_answer: false })
        };
        let in_use = link.path;
        let is_worse = |path: &Path| metered.compare(path, &in_use).is_lt();
        let due = self.candidates.trials(own, in_use, is_worse, now);
        let trials: Vec<(Path, Control)> = due.into_iter().map(ask).collect();
        let beside = if trials.is_empty() { None } else { link.ping_beside(now) };
        (trials, beside)
    }

    /// Takes the answer to a question by a path beside the link; true if that path has proved better.
    fn on_tried(&mut self, from: Path, id: u32, now: Time) -> bool {
        let Some((link, trial)) = self.link.as_ref().zip(self.candidates.trial(from)) else { return false };
        let Some(has_won) = trial.on_answer(id, link, now) else { return false };
        self.candidates.on_answer(from);
        has_won
    }
}

impl Topology {
    /// Takes a question, or the answer to one, that came by a path beside the link: the peer may be there, too, and the link goes over to it
    /// if it has proved better.
    pub(crate) fn on_trial(
        &mut self,
        label: HostLabel,
        index: u32,
        from: Path,
        (id, is_answer): (u32, bool),
        now: Time,
    ) {
        let Some(peer) = self.peers.get_mut(&label).filter(|_| !self.targets.is_forgotten(label)) else { return };
        let is_worse = |link: &Link| self.metered.compare(&from, &link.path).is_lt();
        if !is_answer && peer.link.as_ref().is_some_and(is_worse) {
            // The peer does not know what it costs.
        } else if !is_answer {
            peer.candidates.on_question(from);
            // The host that decides compares paths while either sends frames; if the other did as well, each would keep the other asking.
            if self.own < label {
                peer.link.iter_mut().for_each(|link| link.raced_by_peer = now);
            }
            self.events.push_back(straight(label, index, from, Control::Trial { id, is_answer: true }));
        } else if peer.on_tried(from, id, now) && self.own < label {
            self.move_link(label, from, "it is quicker by far", now);
            // The peer follows.
            self.ping(label, index, from, 0, now);
        }
    }
}

/// A question by a path beside a link, or its answer.
pub(super) fn straight(peer: HostLabel, index: u32, to: Path, control: Control) -> Event {
    Event::Straight { peer, index, to, lane: Lane::Urgent, control, size: 0 }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::datapath::snapshot::Meter;
    use crate::topology::candidates::Learnt;
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
                    Control::Trial { id, .. } => topology.on_trial(PEER, 7, to, (id, true), answered),
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
            let questions = if case == "silent" { 7..=9 } else { 14..=20 };
            assert!(questions.contains(&trials.len()), "{case}: {}", trials.len());
        }
    }

    #[test]
    fn an_idle_link_asks_by_no_other_path_until_the_peer_does() {
        let (mut topology, table, meter) = topology();
        pass(&mut topology, &table, &meter, false, |_| 1, [0, 20_000]);
        topology.add_candidate(PEER, other(), Learnt::Announced);
        assert_eq!(pass(&mut topology, &table, &meter, false, |_| 1, [20_000, 60_000]), []);
        // Frames come from the peer alone, and only this host decides.
        let busy: Takes = |path| if path == remote() { 30 } else { 1 };
        for second in 60..70 {
            topology.on_trial(PEER, 7, other(), (second, false), at(u64::from(second) * 1000));
            pass(
                &mut topology,
                &table,
                &meter,
                false,
                busy,
                [u64::from(second) * 1000, u64::from(second) * 1000 + 1000],
            );
        }
        assert_eq!(path(&topology), other());
    }

    #[test]
    fn a_host_that_only_follows_does_not_go_on_asking_because_it_is_asked() {
        let (mut topology, table, meter) = topology();
        pass(&mut topology, &table, &meter, false, |_| 1, [0, 20_000]);
        topology.add_candidate(PEER, other(), Learnt::Announced);
        topology.own = HostLabel([3; 6]);
        for second in 20..30 {
            topology.on_trial(PEER, 7, other(), (second, false), at(u64::from(second) * 1000));
            let time = [u64::from(second) * 1000, u64::from(second) * 1000 + 1000];
            let asked = pass(&mut topology, &table, &meter, false, |_| 1, time);
            // The answers are the only ones to go there.
            assert_eq!(asked.len(), 1, "second {second}");
        }
    }

    #[test]
    fn a_question_beside_the_link_is_answered_there_and_moves_nothing() {
        let (mut topology, table, meter) = topology();
        pass(&mut topology, &table, &meter, false, |_| 1, [0, 2000]);
        topology.on_trial(PEER, 7, other(), (5, false), at(2000));
        let said = events(&mut topology);
        let is_answer = |event: &Event| matches!(event, Event::Straight { to, control: Control::Trial { id: 5, is_answer: true }, .. } if *to == other());
        assert!(said.len() == 1 && is_answer(&said[0]), "{said:?}");
        assert_eq!(path(&topology), remote());
        assert!(topology.peers[&PEER].candidates.paths().any(|path| *path == other()));
        topology.on_trial(PEER, 7, other(), (5, true), at(2000));
        let likely = topology.peers[&PEER].candidates.likely();
        assert_eq!(likely, [remote().remote], "an answer to no question proves no address");
        assert_eq!(path(&topology), remote(), "it was not asked");
    }
}
