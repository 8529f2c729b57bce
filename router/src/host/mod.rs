//! What the kernel of the host is told, and what it tells: routes, tracked connections, interfaces that lead out.

pub mod conntrack;
pub mod routing;
pub mod underlay;
