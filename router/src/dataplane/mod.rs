//! Frames between TAPs and the transport: one worker per core.

pub mod clock;
pub mod counters;
pub mod intake;
pub mod polling;
pub mod punts;
mod spares;
mod streams;
pub mod taps;
pub mod worker;
