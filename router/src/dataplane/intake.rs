//! What packet workers are given to receive from while they run.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;

use crate::dataplane::worker::WorkerHandle;
use crate::transport::spare::Change;
use crate::transport::tcp::connection::Connection;

/// Gives each connection that opens to the next worker in turn.
pub async fn connections(mut opened: UnboundedReceiver<Arc<Connection>>, workers: Vec<WorkerHandle>) {
    for worker in workers.iter().cycle() {
        let Some(connection) = opened.recv().await else { return };
        worker.receive(connection);
    }
}

/// Gives spare ports that are opened to one worker, and tells all which are closed.
pub async fn spare_ports(mut changes: UnboundedReceiver<Change>, workers: Vec<WorkerHandle>) {
    for worker in workers.iter().cycle() {
        match changes.recv().await {
            Some(Change::Opened(ports)) => worker.listen(ports),
            Some(Change::Closed) => workers.iter().for_each(WorkerHandle::tidy),
            None => return,
        }
    }
}
