//! What carries datagrams to other hosts.

pub mod udp;
