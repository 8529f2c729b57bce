//! Counters of the packet workers.

use std::sync::atomic::AtomicU64;

use weft_mesh::egress::DropReason;

/// Counters that all workers share, of what the node does not see.
#[derive(Default)]
pub struct Counters {
    /// Frames and datagrams dropped, by reason.
    pub dropped: [AtomicU64; DropReason::ALL.len()],
    /// Datagrams, or bursts that the kernel had joined, that came faster than they were read.
    pub receive_full: AtomicU64,
    /// Frames that a TAP did not take.
    pub tap_full: AtomicU64,
    /// Runs that the kernel did not send.
    pub send_failed: AtomicU64,
    /// Things for the node that it had no room for.
    pub punts_lost: AtomicU64,
}
