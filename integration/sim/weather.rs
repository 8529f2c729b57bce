//! What the simulated network does to datagrams.

use std::time::Duration;

/// What the network does to datagrams on its way.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Share lost.
    pub loss: f64,
    /// Share delivered twice.
    pub duplication: f64,
    /// Shortest and longest time on the way; what differs also reorders.
    pub delay: (Duration, Duration),
}

impl Weather {
    /// A quiet local network.
    pub const FAIR: Weather =
        Weather { loss: 0.0, duplication: 0.0, delay: (Duration::from_micros(100), Duration::from_micros(200)) };
}
