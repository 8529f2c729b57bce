//! Datagrams that wait to be sent, in runs: each run one `sendmsg` with `UDP_SEGMENT`.

use crate::path::Path;
use crate::wire::Lane;

/// Datagrams waiting to be sent, in runs of one destination and one size.
pub struct TxBatch {
    buffers: [Buffer; Place::COUNT],
    /// Of each lane, in the order in which they are to leave.
    runs: [Vec<Run>; Lane::ALL.len()],
    max_segments: usize,
}

/// Which datagrams a datagram is kept with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// Those that may overtake.
    Urgent,
    /// All others.
    Main,
    /// First fragments of IP packets: those of packets that follow each other are of one size, and so are the last ones. Kept
    /// apart they make two runs; one after the other each packet would need a run of its own.
    Heads,
    /// The other fragments.
    Tails,
}

impl Place {
    const COUNT: usize = 3;

    fn lane(self) -> Lane {
        if self == Place::Urgent { Lane::Urgent } else { Lane::Main }
    }

    fn buffer(self) -> usize {
        match self {
            Place::Urgent => 0,
            Place::Main | Place::Heads => 1,
            Place::Tails => 2,
        }
    }
}

#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
    used: usize,
    /// The run that may grow: its number in its lane.
    open: Option<usize>,
}

/// One `sendmsg`: datagrams of `stride` bytes, the last one maybe shorter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// Which way.
    pub lane: Lane,
    /// Where to.
    pub to: Path,
    /// Size of each datagram but the last.
    pub stride: usize,
    buffer: usize,
    start: usize,
    end: usize,
    /// Where it ends at the latest.
    limit: usize,
}

/// What one `sendmsg` may carry at most: a UDP payload of 64 KB less headers.
const MAX_RUN_BYTES: usize = 65_000;

impl TxBatch {
    /// An empty batch; runs get at most `max_segments` datagrams.
    pub fn new(max_segments: usize) -> Self {
        TxBatch { buffers: Default::default(), runs: Default::default(), max_segments: max_segments.max(1) }
    }

    /// Bytes waiting.
    pub fn len(&self) -> usize {
        self.buffers.iter().map(|buffer| buffer.used).sum()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.runs.iter().all(Vec::is_empty)
    }

    /// The runs and their bytes, in the order in which they are to leave.
    pub fn runs(&self) -> impl Iterator<Item = (Run, &[u8])> {
        self.runs.iter().flatten().map(|run| (*run, &self.buffers[run.buffer].bytes[run.start..run.end]))
    }

    /// Forgets what was waiting.
    pub fn clear(&mut self) {
        self.runs.iter_mut().for_each(Vec::clear);
        for buffer in &mut self.buffers {
            (buffer.used, buffer.open) = (0, None);
        }
    }

    /// Room for a datagram of `len` bytes to `to`. What is in it is undefined.
    pub(super) fn datagram(&mut self, place: Place, to: &Path, len: usize) -> &mut [u8] {
        if place == Place::Main && self.buffers[Place::Tails.buffer()].open.take().is_some() {
            // What is no fragment does not overtake those before it.
            self.buffers[place.buffer()].open = None;
        }
        let (buffer, runs) = (&mut self.buffers[place.buffer()], &mut self.runs[place.lane() as usize]);
        let (start, end) = (buffer.used, buffer.used + len);
        if end > buffer.bytes.len() {
            buffer.bytes.resize(end.next_power_of_two(), 0);
        }
        buffer.used = end;
        match buffer.open.and_then(|number| runs.get_mut(number)) {
            Some(run) if len <= run.stride && end <= run.limit && run.to == *to => {
                run.end = end;
                if len < run.stride {
                    buffer.open = None;
                }
            }
            _ => {
                buffer.open = Some(runs.len());
                let (lane, buffer) = (place.lane(), place.buffer());
                let limit = start + MAX_RUN_BYTES.min(self.max_segments * len);
                runs.push(Run { lane, to: *to, stride: len, buffer, start, end, limit });
            }
        }
        &mut buffer.bytes[start..end]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Puts datagrams of these sizes into a batch whose runs get three at most, and returns how each run's bytes fall apart.
    fn runs_of(sizes: &[(Place, usize)]) -> Vec<(Lane, Vec<usize>)> {
        let to = Path::udp(([192, 0, 2, 1], 6783).into());
        let mut batch = TxBatch::new(3);
        sizes.iter().for_each(|&(place, len)| assert_eq!(batch.datagram(place, &to, len).len(), len));
        batch.runs().map(|(run, bytes)| (run.lane, bytes.chunks(run.stride).map(<[u8]>::len).collect())).collect()
    }

    #[test]
    fn a_run_takes_datagrams_of_one_size_and_a_shorter_last_one() {
        let main = |sizes: &[usize]| runs_of(&sizes.iter().map(|len| (Place::Main, *len)).collect::<Vec<_>>());
        let parts = |parts: &[&[usize]]| parts.iter().map(|part| (Lane::Main, part.to_vec())).collect::<Vec<_>>();
        assert_eq!(main(&[100, 100, 60, 60, 100]), parts(&[&[100, 100, 60], &[60], &[100]]));
        assert_eq!(main(&[100; 5]), parts(&[&[100; 3], &[100; 2]]), "no more than the kernel takes");
        assert_eq!(main(&[30_000; 3]), parts(&[&[30_000; 2], &[30_000]]), "no more than a datagram may hold");
    }

    #[test]
    fn urgent_datagrams_have_runs_of_their_own() {
        let runs = runs_of(&[(Place::Main, 100), (Place::Urgent, 100), (Place::Main, 100)]);
        let expected = [(Lane::Urgent, vec![100]), (Lane::Main, vec![100, 100])];
        assert!(expected.iter().all(|run| runs.contains(run)) && runs.len() == 2, "{runs:?}");
    }
}
