//! Which flows send little: their packets may overtake those of flows that send much, as in fq_codel (RFC 8290, section 4.1).
//!
//! A flow is sparse or not as a whole: its packets overtake only those of others, never each other. Each worker has a table of its
//! own: a flow is one worker's. With them is what each flow carried, where that is asked for (see `metering`).

use std::time::Duration;

use weft_crypto::Time;

use super::metering::FlowTable;

/// What a sparse flow sends at most in a while of this length.
const BYTES_PER_WHILE: u32 = 32 * 1024;
const WHILE: Duration = Duration::from_millis(10);
/// How long a flow that sent more must be quiet: by then hardly any of its packets waits somewhere on the way.
const QUIET: Duration = Duration::from_millis(200);
/// Flows that share a place share their fate; a flow that sends little is then treated like the others.
const PLACES: usize = 1024;

/// The flows of one worker.
pub(crate) struct Flows {
    /// By hash.
    places: Vec<Flow>,
    /// What each carries, if that is asked for.
    pub(crate) metered: Option<Box<FlowTable>>,
}

#[derive(Clone, Copy)]
struct Flow {
    began: Time,
    bytes: u32,
    /// Until then it is not sparse.
    busy: Time,
}

impl Default for Flows {
    fn default() -> Self {
        Flows { places: vec![Flow { began: Time::ZERO, bytes: 0, busy: Time::ZERO }; PLACES], metered: None }
    }
}

impl Flows {
    /// Notes a packet of a flow; whether the flow is sparse, so that the packet may overtake those of others.
    pub(crate) fn note(&mut self, flow: u64, len: usize, now: Time) -> bool {
        let flow = &mut self.places[flow as usize % PLACES];
        if now.since(flow.began) > WHILE {
            (flow.began, flow.bytes) = (now, 0);
        }
        flow.bytes = flow.bytes.saturating_add(len as u32);
        let is_busy = flow.bytes > BYTES_PER_WHILE || now < flow.busy;
        if is_busy {
            flow.busy = now + QUIET;
        }
        !is_busy
    }

    /// Notes a packet of a flow that is to be overtaken.
    pub(crate) fn note_busy(&mut self, flow: u64, now: Time) {
        self.places[flow as usize % PLACES].busy = now + QUIET;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_sparse_until_it_sends_much_and_again_after_a_pause() {
        let (mut flows, mut now) = (Flows::default(), Time::ZERO + Duration::from_secs(1));
        for _ in 0..100 {
            assert!(flows.note(7, 1400, now));
            now += Duration::from_millis(1);
        }
        flows.note_busy(7, now);
        assert!(!flows.note(7, 100, now));
        assert!(flows.note(8, 100, now), "another flow is not touched");
        for _ in 0..100 {
            now += Duration::from_millis(15);
            assert!(!flows.note(7, 100, now), "what it sends may not overtake what it sent");
        }
        assert!(flows.note(7, 100, now + QUIET));
    }
}
