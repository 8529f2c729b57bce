//! What the router's parts are reached by.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use weft_mesh::names::Names;

use crate::attach::attachments::Attachments;
use crate::cli::options::Options;
use crate::daemon::node_task::NodeHandle;
use crate::daemon::state::Store;
use crate::dataplane::counters::Counters;
use crate::dns::Dns;
use crate::docker::Docker;
use crate::observe::observers::Observers;
use crate::transport::tcp::Connections;

/// What requests work with.
#[derive(Clone)]
pub struct Api {
    /// The node.
    pub node: NodeHandle,
    /// The endpoints of this host.
    pub attachments: Arc<Attachments>,
    /// The engine's network driver, if there is one.
    pub docker: Option<Arc<Docker>>,
    /// The DNS server, if there is one.
    pub dns: Option<Arc<Dns>>,
    /// What it answers from.
    pub names: Arc<ArcSwap<Names>>,
    /// What the router's parts counted and noted.
    pub observers: Observers,
    /// What the packet workers counted.
    pub counters: Arc<Counters>,
    /// The TCP connections.
    pub connections: Arc<Connections>,
    /// What is kept.
    pub store: Arc<Store>,
    /// What is wrong with the range, if anything.
    pub overlap: Option<String>,
    /// How the router runs.
    pub options: Arc<Options>,
    /// Told when the router is to stop.
    pub stop: Arc<Notify>,
}
