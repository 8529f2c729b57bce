//! Where a simulated host's data path puts what comes of a batch.

use weft_mesh::egress::DropReason;
use weft_mesh::path::Path;
use weft_mesh::sink::{Punt, Sink, TapOffloads};
use weft_mesh::vnet::VnetHeader;
use weft_mesh::wire::SegmentId;

/// Collects a batch's results.
pub(super) struct HostSink {
    pub(super) offloads: TapOffloads,
    pub(super) frames: Vec<(SegmentId, Vec<u8>)>,
    pub(super) relayed: Vec<(Path, Vec<u8>, usize)>,
    pub(super) punts: Vec<Punt>,
    pub(super) dropped: Vec<DropReason>,
}

impl HostSink {
    pub(super) fn new(offloads: TapOffloads) -> Self {
        HostSink { offloads, frames: Vec::new(), relayed: Vec::new(), punts: Vec::new(), dropped: Vec::new() }
    }
}

impl Sink for HostSink {
    fn offloads(&self, _: SegmentId) -> TapOffloads {
        self.offloads
    }
    fn to_tap(&mut self, segment: SegmentId, _: &VnetHeader, parts: &[&[u8]]) {
        self.frames.push((segment, parts.concat()));
    }
    fn relay(&mut self, to: Path, datagrams: &[u8], stride: usize) {
        self.relayed.push((to, datagrams.to_vec(), stride));
    }
    fn punt(&mut self, punt: Punt) {
        self.punts.push(punt);
    }
    fn dropped(&mut self, reason: DropReason) {
        self.dropped.push(reason);
    }
}
