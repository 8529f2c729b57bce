//! Hosts that were forgotten and come back, and other lives of this host's own key.

use weft_crypto::{HostLabel, PeerId, Time};

use super::{Event, FORGOTTEN_INTERVAL, RecordSync};
use crate::codec::decode;
use crate::records::life::Jump;
use crate::records::{Key, MAX_INCARNATION, encode};

impl RecordSync {
    /// A forgotten host is back and does not know that it has to start above what it was. Its own records cannot tell
    /// it, for it may have forgotten this host, too: the host that brought its records finds it.
    pub(super) fn tell_forgotten(&mut self, to: HostLabel, host: PeerId, incarnation: u64, now: Time) {
        let is_due = self.told_forgotten.get(&host).is_none_or(|last| now.since(*last) >= FORGOTTEN_INTERVAL);
        if is_due {
            self.told_forgotten.insert(host, now);
            self.events.push_back(Event::Forgotten { to, host, incarnation });
        }
    }

    /// A peer says that a host was forgotten: this host takes note of it, or passes it on if the other is reachable.
    pub(crate) fn on_told_forgotten(&mut self, host: PeerId, incarnation: u64, is_reachable: bool, now: Time) {
        if host == self.own {
            if incarnation >= self.store.incarnation() {
                self.jump_above(incarnation, false, now);
            }
        } else if is_reachable {
            self.tell_forgotten(host.label(), host, incarnation, now);
        }
    }

    /// A host says that another is gone for good, up to an incarnation, or (with `None`) does not say so any more. It is kept, never beyond
    /// what is known of the other now: [`RecordSync::believe_forgotten`].
    pub(crate) fn on_forgotten_record(&mut self, by: PeerId, gone: PeerId, incarnation: Option<u64>, now: Time) {
        match (incarnation, self.store.incarnation_of(gone)) {
            (Some(incarnation), _) if gone == self.own => self.on_told_forgotten(gone, incarnation, false, now),
            (Some(incarnation), Some(held)) => drop(self.said_gone.insert(gone, (by, incarnation.min(held)))),
            (Some(_), None) => {}
            (None, _) => {
                if self.said_gone.get(&gone).is_some_and(|(said_by, _)| *said_by == by) {
                    self.said_gone.remove(&gone);
                }
            }
        }
    }

    /// Drops the records of hosts that others say are gone, of those that are not there: all, or the one with a label. A host that seems to be
    /// there may turn out not to be.
    pub(crate) fn believe_forgotten(&mut self, only: Option<HostLabel>, is_there: impl Fn(HostLabel) -> bool) {
        for (gone, (_, incarnation)) in &self.said_gone {
            let is_meant = only.is_none_or(|label| label == gone.label());
            if is_meant && self.store.incarnation_of(*gone).is_some() && !is_there(gone.label()) {
                self.store.forget(*gone, *incarnation);
            }
        }
    }

    /// Has all hosts that do not reach a host drop its records; false if none are held.
    pub(crate) fn forget_records(&mut self, id: PeerId) -> bool {
        let held = self.store.incarnation_of(id);
        if let Some(incarnation) = held {
            // A number is far below the limit.
            let _ = self.store.put(&Key::Forgotten(id).encode(), encode(&incarnation));
        }
        held.is_some()
    }

    /// Withdraws what this host said of forgotten hosts that are back in a new incarnation.
    pub(crate) fn take_back_forgotten(&mut self, now: Time) {
        self.told_forgotten.retain(|_, told| now.since(*told) < FORGOTTEN_INTERVAL);
        let is_back = |host: PeerId, floor: u64| self.store.incarnation_of(host).is_some_and(|now| now > floor);
        let forgotten = self.store.all_own().filter_map(|(key, value)| match Key::parse(key)? {
            Key::Forgotten(host) => decode::<u64>(value).filter(|floor| is_back(host, *floor)).map(|_| key.to_vec()),
            _ => None,
        });
        let back: Vec<Vec<u8>> = forgotten.collect();
        back.iter().for_each(|key| self.store.delete(key));
    }

    /// Whether records of a host are held.
    pub(crate) fn holds(&self, id: PeerId) -> bool {
        self.store.incarnation_of(id).is_some()
    }

    /// A handshake under this host's own key was finished: another host holds it.
    pub(crate) fn on_own_key_elsewhere(&mut self, now: Time) {
        let is_news = self.life.contest(now);
        self.events.extend(is_news.then_some(Event::Cloned));
    }

    /// Notes that another host is said to live with this host's key. Said once; neither tries to outdo the other.
    pub(crate) fn on_clone(&mut self, now: Time) {
        let is_news = self.life.on_clone(now);
        self.events.extend(is_news.then_some(Event::Cloned));
    }

    /// Whether another host was lately said to live with this host's key.
    pub(crate) fn is_cloned(&self, now: Time) -> bool {
        self.life.is_cloned(now)
    }

    /// Writes this host above records of it that another life wrote, unless that life goes on: if they are `signed` by this
    /// host's key again and again, another host has it.
    pub(super) fn jump_above(&mut self, incarnation: u64, signed: bool, now: Time) {
        if incarnation < self.store.incarnation() || incarnation >= MAX_INCARNATION {
            return;
        }
        match self.life.may_jump(now) {
            Jump::Allowed => {
                let (incarnation, batches) = self.store.jump_above(incarnation);
                self.events.push_back(Event::Reincarnated(incarnation));
                self.tell_neighbours(batches, now);
            }
            Jump::TooOften if signed => self.on_own_key_elsewhere(now),
            Jump::TooOften | Jump::Contested => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at, exchange, identity, label, named, sync};
    use super::*;

    #[test]
    fn what_is_said_of_a_host_that_seems_to_be_there_holds_once_it_is_not() {
        let (mut a, mut b) = (sync(1), sync(2));
        a.write(&named("host1")).unwrap();
        a.flush(at(0));
        a.on_link_up(label(2), at(0));
        exchange((1, &mut a), (2, &mut b), at(0));
        let [gone, by] = [1, 3].map(|n| identity(n).peer_id());
        b.on_forgotten_record(by, gone, Some(1), at(1));
        b.believe_forgotten(None, |host| host == label(1));
        assert!(b.holds(gone));
        b.believe_forgotten(Some(label(5)), |_| false);
        assert!(b.holds(gone));
        b.believe_forgotten(Some(label(1)), |_| false);
        assert!(!b.holds(gone));
        b.on_forgotten_record(by, identity(9).peer_id(), Some(1), at(2));
        assert_eq!(b.said_gone.len(), 1, "of a host that is not known nothing is kept");

        let mut c = sync(4);
        a.on_link_up(label(4), at(200));
        exchange((1, &mut a), (4, &mut c), at(200));
        c.on_forgotten_record(by, gone, Some(1 << 40), at(201));
        assert_eq!(c.said_gone[&gone].1, 1, "no more than is known of it");
        c.on_forgotten_record(by, gone, None, at(202));
        c.believe_forgotten(None, |_| false);
        assert!(c.holds(gone), "that was withdrawn");
    }

    #[test]
    fn a_host_told_that_it_was_forgotten_starts_above_and_gives_in_to_a_clone() {
        let mut sync = sync(1);
        sync.on_told_forgotten(identity(1).peer_id(), 5, false, at(0));
        assert!(matches!(sync.poll_event(), Some(Event::Reincarnated(6))));
        sync.on_own_key_elsewhere(at(1));
        assert!(matches!(sync.poll_event(), Some(Event::Cloned)));
        sync.on_told_forgotten(identity(1).peer_id(), 9, false, at(2));
        assert!(sync.poll_event().is_none() && sync.is_cloned(at(3)));
    }
}
