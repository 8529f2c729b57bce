//! What the simulated network does to datagrams.

use std::time::Duration;

/// What the headers of IP and UDP add to a datagram, in bytes.
pub const IP_AND_UDP: usize = 28;
/// The number of a host's first spare port.
pub(super) const FIRST_SPARE: u16 = 10_000;

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
