//! Frames between TAPs and the transport: one worker per core.

pub mod clock;
pub mod intake;
pub mod polling;
mod spares;
mod streams;
pub mod taps;
pub mod worker;
