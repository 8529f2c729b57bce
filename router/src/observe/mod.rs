//! What operators and their tools see of a router: metrics over HTTP.
//!
//! [`tallies`] counts what happens where it happens, `metrics` reads everything else when it is asked for, [`http`] serves it. Nothing
//! here changes anything.

pub mod http;
mod metrics;
pub mod tallies;
