//! Network namespaces of joined containers, by the engine's ids of their endpoints.
//!
//! The store has them in the attachments; this is the index by the engine's ids.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use weft_mesh::records::EndpointId;

use super::network::attachment_id;
use crate::attach::attachment::{Attachment, Place};

/// The containers that are joined.
#[derive(Default)]
pub struct Sandboxes(Mutex<BTreeMap<String, String>>);

impl Sandboxes {
    /// Picks up the endpoints (the engine's ids) that have an attachment.
    pub fn restore(&self, endpoints: impl Iterator<Item = String>, attachments: &[Attachment]) {
        let place = |attachment: &Attachment| match &attachment.place {
            Place::Docker { sandbox, .. } => Some((attachment.id, sandbox.to_string_lossy().into_owned())),
            Place::Container { .. } | Place::Host => None,
        };
        let mut by_id: BTreeMap<EndpointId, String> = attachments.iter().filter_map(place).collect();
        let joined = endpoints.filter_map(|id| by_id.remove(&attachment_id(&id).ok()?).map(|sandbox| (id, sandbox)));
        *self.lock() = joined.collect();
    }

    /// An endpoint's container is joined.
    pub fn insert(&self, endpoint: &str, sandbox: &str) {
        self.lock().insert(endpoint.to_owned(), sandbox.to_owned());
    }

    /// An endpoint's container left.
    pub fn remove(&self, endpoint: &str) {
        self.lock().remove(endpoint);
    }

    /// Returns the network namespace of an endpoint's container, while it is joined.
    pub fn of(&self, endpoint: &str) -> Option<String> {
        self.lock().get(endpoint).cloned()
    }

    /// Returns whether another endpoint is in a container.
    pub fn is_shared(&self, endpoint: &str, sandbox: &str) -> bool {
        self.lock().iter().any(|(other, theirs)| other != endpoint && theirs == sandbox)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
