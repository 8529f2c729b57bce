//! A container network that was removed: hosts that come back with it remove it, too.

pub(super) const TAG: u8 = 9;
/// What such a record holds: its key says everything.
pub(crate) const VALUE: [u8; 1] = [1];
