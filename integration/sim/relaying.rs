//! What a simulated host does with datagrams that it is to pass on.

use std::net::SocketAddr;
use std::time::Duration;

/// What a host does with datagrams that it is to pass on; by default that.
#[derive(Clone, PartialEq, Debug)]
pub struct Relaying {
    /// The share that it drops of those that it does not treat well.
    pub drops: f64,
    /// Treats well what is no longer, in bytes.
    pub spares_up_to: usize,
    /// Treats well what goes elsewhere, if to a host alone it does not.
    pub only_to: Option<SocketAddr>,
    /// Whether it changes what it does not treat well.
    pub corrupts: bool,
    /// How often it passes on each.
    pub copies: usize,
    /// How late it does.
    pub delay: Duration,
}

impl Default for Relaying {
    fn default() -> Self {
        Relaying { drops: 0.0, spares_up_to: 0, only_to: None, corrupts: false, copies: 1, delay: Duration::ZERO }
    }
}

impl Relaying {
    /// Returns that of a host that drops all.
    pub fn none() -> Relaying {
        Relaying { drops: 1.0, ..Relaying::default() }
    }
}
