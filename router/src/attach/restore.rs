//! What of the endpoints is still there when a router starts.

use std::collections::BTreeMap;

use weft_mesh::records::EndpointId;

use crate::attach::addresses::Lease;
use crate::attach::attachment::Attachment;
use crate::attach::netlink::in_namespace;
use crate::attach::running::RunningCopies;
use crate::daemon::keys::StoreKey;
use crate::error::Result;

/// The endpoints that were there when the router last ran and still have their interfaces; those of them that the store has
/// lost; and the others' keys, to be dropped.
pub struct Restored {
    /// The endpoints.
    pub alive: BTreeMap<EndpointId, Attachment>,
    /// Those that only their copies know: the mesh has to hear of them again, and the rings of their addresses.
    pub lost: BTreeMap<EndpointId, Attachment>,
    /// Addresses of the living that no ring has given back since.
    pub unproven: Vec<(EndpointId, Lease)>,
    /// Keys in the store of what is gone.
    pub gone: Vec<Vec<u8>>,
}

/// Looks which remembered endpoints still exist.
pub fn restore(kept: &[(Vec<u8>, Vec<u8>)], running: &RunningCopies) -> Result<Restored> {
    let names = in_namespace(None, async |net| net.names().await)?;
    let mut restored =
        Restored { alive: BTreeMap::new(), lost: BTreeMap::new(), unproven: Vec::new(), gone: Vec::new() };
    let is_attachment = |key: &[u8]| matches!(StoreKey::parse(key), Some(StoreKey::Attachment(_)));
    for (key, value) in kept.iter().filter(|(key, _)| is_attachment(key)) {
        match serde_json::from_slice::<Attachment>(value) {
            Ok(attachment) if attachment.is_among(&names) => drop(restored.alive.insert(attachment.id, attachment)),
            _ => restored.gone.push(key.clone()),
        }
    }
    for (id, copy) in running.read()? {
        if !copy.is_among(&names) {
            running.forget(id)?;
            continue;
        }
        match restored.alive.get(&id) {
            Some(known) => {
                let unproven = copy.leases.into_iter().filter(|lease| !known.leases.contains(lease));
                restored.unproven.extend(unproven.map(|lease| (id, lease)));
            }
            None => drop(restored.lost.insert(id, copy)),
        }
    }
    Ok(restored)
}
