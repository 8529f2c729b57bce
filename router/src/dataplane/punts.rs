//! The way from packet workers to the node.

use weft_mesh::sink::Punt;

/// Where workers put what is for the node. Handshakes, which strangers can send, have a queue of their own: a flood of
/// them cannot push out what links and sessions say.
#[derive(Clone)]
pub struct PuntSender {
    /// What came out of sessions, and what workers tell of themselves.
    pub trusted: tokio::sync::mpsc::Sender<Punt>,
    /// What frames led to: containers can make any number of them, which must not keep the mesh's own talk waiting.
    pub frames: tokio::sync::mpsc::Sender<Punt>,
    /// Handshake packets.
    pub handshakes: tokio::sync::mpsc::Sender<Punt>,
}

impl PuntSender {
    /// Puts something into its queue; false if that is full.
    pub fn send(&self, punt: Punt) -> bool {
        let queue = match punt {
            Punt::Handshake { .. } | Punt::RelayedHandshake { .. } => &self.handshakes,
            Punt::Learn { .. } | Punt::NoSession { .. } | Punt::Woken => &self.frames,
            Punt::Heard { .. } | Punt::Control { .. } | Punt::Busy { .. } => &self.trusted,
        };
        queue.try_send(punt).is_ok()
    }
}
