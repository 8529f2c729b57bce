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
    segments: usize,
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
    pub(super) fn datagram(&mut self, place: Place, to: Path, len: usize) -> &mut [u8] {
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
            Some(run)
                if run.to == to
                    && len <= run.stride
                    && run.end - run.start == run.segments * run.stride
                    && run.segments < self.max_segments
                    && end - run.start <= MAX_RUN_BYTES =>
            {
                run.end = end;
                run.segments += 1;
            }
            _ => {
                buffer.open = Some(runs.len());
                let (lane, buffer) = (place.lane(), place.buffer());
                runs.push(Run { lane, to, stride: len, buffer, start, end, segments: 1 });
            }
        }
        &mut buffer.bytes[start..end]
    }
}
