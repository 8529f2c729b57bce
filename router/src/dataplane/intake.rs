//! What packet workers are given to receive from while they run.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;

use crate::dataplane::worker::WorkerHandle;
use crate::transport::spare::SpareChange;
use crate::transport::tcp::connection::Connection;

/// Gives each connection that opens to the next worker in turn.
pub async fn connections(mut opened: UnboundedReceiver<Arc<Connection>>, workers: Vec<WorkerHandle>) {
    for worker in workers.iter().cycle() {
        let Some(connection) = opened.recv().await else { return };
        worker.receive(connection);
    }
}

/// Gives each batch of opened spare ports to the next worker in turn, and has all workers drop closed ones.
pub async fn spare_ports(mut changes: UnboundedReceiver<SpareChange>, workers: Vec<WorkerHandle>) {
    for worker in workers.iter().cycle() {
        match changes.recv().await {
            Some(SpareChange::Opened(ports)) => worker.listen(ports),
            Some(SpareChange::Closed) => workers.iter().for_each(WorkerHandle::tidy),
            None => return,
        }
    }
}
