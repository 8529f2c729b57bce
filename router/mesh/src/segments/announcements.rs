//! What this host's containers are told of addresses that are at another MAC now.
//!
//! Neighbours that know an address go on sending to the MAC it had: their questions are answered from records, so they
//! never hear its present holder ask one.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use weft_crypto::Time;

use crate::datapath::frame::Mac;
use crate::datapath::neighbour::announcement;
use crate::wire::SegmentId;

/// How long after the start neighbours may know MACs of before it: as long as a kernel keeps a neighbour that it does not
/// talk to, and then some.
const FORMER_LIFE: Duration = Duration::from_secs(600);
/// Addresses remembered after their endpoints ended.
const MAX_GONE: usize = 4096;
/// Frames that wait to be given to containers.
const MAX_FRAMES: usize = 1024;
/// Containers of this host that are told one by one.
const MAX_TOLD: usize = 256;

/// Addresses that moved, and the frames that say so.
pub(super) struct Announcements {
    /// The MACs that addresses had that are free now: neighbours may still know them.
    gone: BTreeMap<(SegmentId, IpAddr), Mac>,
    /// Until when neighbours may know MACs that this host has forgotten.
    former_life: Time,
    in_former_life: bool,
    frames: Vec<(SegmentId, Vec<u8>)>,
}

impl Announcements {
    pub(super) fn new(now: Time) -> Self {
        let former_life = now + FORMER_LIFE;
        Announcements { gone: BTreeMap::new(), former_life, in_former_life: true, frames: Vec::new() }
    }

    /// Notes that time has passed.
    pub(super) fn age(&mut self, now: Time) {
        self.in_former_life = now < self.former_life;
    }

    /// This host left a segment: its containers there are gone.
    pub(super) fn leave(&mut self, segment: SegmentId) {
        self.gone.retain(|(of, _), _| *of != segment);
    }

    /// Notes that an address went from one MAC to another, or to or from none; returns whether neighbours have to be told.
    pub(super) fn note_move(&mut self, at: (SegmentId, IpAddr), before: Option<Mac>, after: Option<Mac>) -> bool {
        let before = before.or_else(|| self.gone.remove(&at));
        match (before, after) {
            (before, Some(after)) => {
                before.map_or(self.in_former_life, |before| before != after) && self.frames.len() < MAX_FRAMES
            }
            (Some(before), None) => {
                if self.gone.len() >= MAX_GONE {
                    self.gone.pop_first();
                }
                self.gone.insert(at, before);
                false
            }
            (None, None) => false,
        }
    }

    /// Tells the containers of a segment on this host that an address is at a MAC: all of them, or only those with the MACs
    /// of `to`.
    pub(super) fn push(&mut self, segment: SegmentId, (mac, ip): (Mac, IpAddr), to: Option<impl Iterator<Item = Mac>>) {
        let frame = announcement(mac, ip);
        match to {
            None => self.frames.push((segment, frame)),
            Some(to) => {
                let frames = to.take(MAX_TOLD).map(|mac| (segment, [&mac, &frame[6..]].concat()));
                self.frames.extend(frames);
            }
        }
    }

    /// Frames for the containers of segments of this host, since the last call.
    pub(super) fn take(&mut self) -> Vec<(SegmentId, Vec<u8>)> {
        std::mem::take(&mut self.frames)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_told_of_a_move_and_in_the_first_minutes_of_every_address() {
        let segment = SegmentId::of("s");
        let at = |host: u8| (segment, IpAddr::from([10, 0, 0, host]));
        let mac = |n: u8| [2, 0, 0, 0, 0, n];
        let mut announcements = Announcements::new(Time::ZERO);
        assert!(announcements.note_move(at(1), None, Some(mac(1))), "before this start it may have been at another");
        announcements.age(Time::ZERO + FORMER_LIFE);
        assert!(!announcements.note_move(at(2), None, Some(mac(2))));
        assert!(!announcements.note_move(at(2), Some(mac(2)), None));
        assert!(announcements.note_move(at(2), None, Some(mac(3))), "a neighbour may know the one it had");
        assert!(!announcements.note_move(at(2), Some(mac(3)), Some(mac(3))));
        announcements.note_move(at(1), Some(mac(1)), None);
        announcements.leave(segment);
        assert!(!announcements.note_move(at(1), None, Some(mac(9))));
    }

    #[test]
    fn a_frame_goes_to_all_or_to_each_container_named() {
        let segment = SegmentId::of("s");
        let mut announcements = Announcements::new(Time::ZERO);
        let owner = ([2; 6], IpAddr::from([10, 0, 0, 1]));
        announcements.push(segment, owner, None::<std::iter::Empty<Mac>>);
        announcements.push(segment, owner, Some([[4; 6], [6; 6]].into_iter()));
        let frames = announcements.take();
        assert_eq!(frames[0].1[..6], [0xff; 6]);
        assert_eq!(frames[1..].iter().map(|(_, frame)| frame[0]).collect::<Vec<_>>(), [4, 6]);
        assert!(announcements.take().is_empty());
    }
}
