//! Frames between TAPs and the transport: one worker per core.

pub mod polling;
pub mod taps;
pub mod worker;
