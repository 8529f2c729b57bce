//! The running router: its start, the task that owns the node, the store, and the control API.

pub mod api;
pub mod control;
pub mod keys;
pub mod launch;
mod log;
pub mod node_task;
pub mod seeds;
pub mod socket;
pub mod state;
pub mod status;
pub mod why;
