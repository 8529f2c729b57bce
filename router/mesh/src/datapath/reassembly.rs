//! Frames larger than the path MTU arrive in fragments.

use std::collections::BTreeMap;
use std::time::Duration;

use weft_crypto::Time;

use crate::datapath::egress::DropReason;
use crate::datapath::frame;
use crate::datapath::sender::MAX_FRAGMENTS;
use crate::wire::{SegmentId, TextHeader};

/// Frames that may be incomplete at once, and for how long.
const MAX_PARTIAL: usize = 64;
const PARTIAL_LIFETIME: Duration = Duration::from_millis(500);

/// Frames whose fragments are arriving: bounded in number, size and time.
#[derive(Default)]
pub(crate) struct Reassembly {
    /// By session and the counter of the first fragment: the ids in headers come around within a fraction of a second.
    partial: BTreeMap<(u32, u64), Partial>,
}

struct Partial {
    parts: Vec<Option<Vec<u8>>>,
    bytes: usize,
    flags: u8,
    segment: SegmentId,
    started: Time,
}

impl Reassembly {
    /// Takes a fragment that came under `counter`, as its frame's others did under the counters around it; the whole frame if
    /// it was the last one missing.
    pub(crate) fn add(
        &mut self,
        session: u32,
        counter: u64,
        header: &TextHeader,
        part: &[u8],
        now: Time,
    ) -> Result<Option<Vec<u8>>, DropReason> {
        let (index, count) = (usize::from(header.index), usize::from(header.count));
        if !(2..=MAX_FRAGMENTS).contains(&count) || index >= count || part.is_empty() {
            return Err(DropReason::Malformed);
        }
        let Some(first) = counter.checked_sub(index as u64) else { return Err(DropReason::Malformed) };
        let key = (session, first);
        let stale = |partial: &Partial| {
            now.since(partial.started) > PARTIAL_LIFETIME
                || partial.parts.len() != count
                || partial.segment != header.segment
                || partial.flags != header.flags
        };
        let mut result = Ok(None);
        if self.partial.get(&key).is_some_and(stale) {
            self.partial.remove(&key);
            result = Err(DropReason::Incomplete);
        }
        if self.partial.len() >= MAX_PARTIAL && !self.partial.contains_key(&key) {
            let oldest = self.partial.iter().min_by_key(|(_, partial)| partial.started).map(|(key, _)| *key);
            oldest.map(|oldest| self.partial.remove(&oldest));
            result = Err(DropReason::Incomplete);
        }
        let partial = self.partial.entry(key).or_insert_with(|| Partial {
            parts: vec![None; count],
            bytes: 0,
            flags: header.flags,
            segment: header.segment,
            started: now,
        });
        partial.bytes += part.len() - partial.parts[index].as_ref().map_or(0, Vec::len).min(part.len());
        if partial.bytes > frame::MAX_FRAME {
            self.partial.remove(&key);
            return Err(DropReason::Malformed);
        }
        partial.parts[index] = Some(part.to_vec());
        if partial.parts.iter().any(Option::is_none) {
            return result;
        }
        Ok(Some(self.partial.remove(&key).into_iter().flat_map(|p| p.parts).flatten().flatten().collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::TextKind;

    const NOW: Time = Time::from_nanos(1_000_000_000_000);

    /// Takes a fragment of the frame whose first one came under `first`.
    fn add(
        reassembly: &mut Reassembly,
        (session, first): (u32, u64),
        (index, count): (u8, u8),
        part: &[u8],
        now: Time,
    ) -> Result<Option<Vec<u8>>, DropReason> {
        let (kind, segment) = (TextKind::Fragment, SegmentId::of("s"));
        let header = TextHeader { kind, flags: 0, segment, id: first as u16, index, count };
        reassembly.add(session, first + u64::from(index), &header, part, now)
    }

    #[test]
    fn fragments_make_a_frame_in_any_order_and_only_with_their_own_kind() {
        let mut reassembly = Reassembly::default();
        assert_eq!(add(&mut reassembly, (1, 7), (2, 3), b"c", NOW), Ok(None));
        assert_eq!(add(&mut reassembly, (2, 7), (0, 3), b"x", NOW), Ok(None));
        assert_eq!(add(&mut reassembly, (1, 7), (0, 3), b"a", NOW), Ok(None));
        assert_eq!(add(&mut reassembly, (1, 7), (1, 3), b"b", NOW), Ok(Some(b"abc".to_vec())));
        // The other session's fragment waits on, and another count starts over.
        assert_eq!(reassembly.partial.len(), 1);
        assert_eq!(add(&mut reassembly, (2, 7), (1, 2), b"y", NOW), Err(DropReason::Incomplete));
        assert_eq!(add(&mut reassembly, (2, 7), (0, 2), b"z", NOW), Ok(Some(b"zy".to_vec())));
    }

    #[test]
    fn fragments_of_frames_with_one_id_are_not_mixed() {
        let mut reassembly = Reassembly::default();
        let again = 7 + (1 << 16);
        assert_eq!(add(&mut reassembly, (1, 7), (1, 2), b"old", NOW), Ok(None));
        assert_eq!(add(&mut reassembly, (1, again), (0, 2), b"n", NOW), Ok(None));
        assert_eq!(add(&mut reassembly, (1, again), (1, 2), b"ew", NOW), Ok(Some(b"new".to_vec())));
    }

    #[test]
    fn impossible_fragments_are_refused() {
        let mut reassembly = Reassembly::default();
        for (index, count, part) in [(0, 1, "a"), (0, 0, "a"), (3, 3, "a"), (0, 255, "a"), (0, 2, "")] {
            let result = add(&mut reassembly, (1, 1), (index, count), part.as_bytes(), NOW);
            assert_eq!(result, Err(DropReason::Malformed), "{index} of {count}");
        }
        assert!(reassembly.partial.is_empty());
        // Together they would be larger than any frame.
        let part = vec![0; frame::MAX_FRAME / 2 + 1];
        assert_eq!(add(&mut reassembly, (1, 1), (0, 2), &part, NOW), Ok(None));
        assert_eq!(add(&mut reassembly, (1, 1), (1, 2), &part, NOW), Err(DropReason::Malformed));
    }

    #[test]
    fn what_stays_incomplete_is_bounded_in_number_and_time() {
        let mut reassembly = Reassembly::default();
        for id in 0..1000 {
            let _ = add(&mut reassembly, (1, id), (0, 2), b"a", NOW + Duration::from_micros(id));
        }
        assert_eq!(reassembly.partial.len(), MAX_PARTIAL);
        // The newest are kept.
        assert_eq!(add(&mut reassembly, (1, 999), (1, 2), b"b", NOW), Ok(Some(b"ab".to_vec())));
        let late = NOW + PARTIAL_LIFETIME + Duration::from_millis(10);
        assert_eq!(add(&mut reassembly, (1, 998), (1, 2), b"b", late), Err(DropReason::Incomplete));
    }
}
