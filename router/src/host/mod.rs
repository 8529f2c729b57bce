//! What the kernel of the host is told, and what it tells: routes, tracked connections, interfaces that lead out; and what the NAT before it is asked.

pub mod conntrack;
pub mod metered;
pub mod port_mapping;
pub mod routing;
pub mod underlay;
