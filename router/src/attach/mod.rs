//! From a container to its segment: interfaces, namespaces, and what is kept of them.

pub mod addresses;
pub mod attachment;
pub mod attachments;
pub mod interfaces;
pub mod netlink;
pub mod prefix;
pub mod restore;
pub mod running;
mod table;
pub mod target;
pub mod traffic;
