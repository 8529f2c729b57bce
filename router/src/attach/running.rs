//! Copies of what containers were given, beside the control socket: an attached container that runs outlives the store of its
//! router, and nothing else knows its segment and names.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use weft_mesh::records::EndpointId;

use crate::attach::attachment::{Attachment, Place};
use crate::daemon::state::open_dir;
use crate::error::{Doing, Result};

/// The copies. They are as short-lived as containers: the machine's next start finds none.
pub struct RunningCopies(PathBuf);

impl RunningCopies {
    /// Those beside a control socket.
    pub fn open(socket: &Path) -> Result<Self> {
        let dir = socket.with_extension("attached");
        open_dir(&dir)?;
        Ok(RunningCopies(dir))
    }

    /// All of them; what cannot be read is removed.
    pub fn read(&self) -> Result<BTreeMap<EndpointId, Attachment>> {
        let what = || format!("cannot read {}", self.0.display());
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(&self.0).doing(what)? {
            let path = entry.doing(what)?.path();
            match fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Attachment>(&bytes).ok()) {
                Some(copy) if path == self.path(copy.id) => drop(found.insert(copy.id, copy)),
                _ => fs::remove_file(&path).doing(what)?,
            }
        }
        Ok(found)
    }

    /// Copies an attached container's endpoint; others are kept by an engine, or made anew.
    pub fn keep(&self, attachment: &Attachment) -> Result<()> {
        if !matches!(attachment.place, Place::Container { .. }) {
            return Ok(());
        }
        let path = self.path(attachment.id);
        let what = || format!("cannot write {}; is the disk full?", path.display());
        let bytes = serde_json::to_vec(attachment).doing(what)?;
        let fresh = path.with_extension("new");
        fs::write(&fresh, bytes).and_then(|()| fs::rename(&fresh, &path)).doing(what)
    }

    /// Removes a copy; what is not there is fine.
    pub fn forget(&self, id: EndpointId) -> Result<()> {
        match fs::remove_file(self.path(id)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).doing(|| format!("cannot remove {}", self.path(id).display()))
            }
            _ => Ok(()),
        }
    }

    fn path(&self, id: EndpointId) -> PathBuf {
        self.0.join(hex::encode(id))
    }
}

#[cfg(test)]
mod tests {
    use weft_mesh::records::Health;

    use super::*;

    #[test]
    fn copies_of_containers_are_found_again_and_damaged_ones_removed() {
        let dir = std::env::temp_dir().join(format!("weft-running-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let copies = RunningCopies::open(&dir.join("weft.sock")).unwrap();
        let place = Place::Container {
            namespace: (4, 4_026_531_840),
            host_interface: "wv0102030405".into(),
            interface: "weft0".into(),
            path: "/proc/1/ns/net".into(),
        };
        let attachment = Attachment {
            id: [1; 16],
            segment: "red".into(),
            ips: vec![crate::attach::prefix::Prefix([10, 32, 0, 2].into(), 12)],
            names: vec!["web".into()],
            mac: [2, 1, 1, 1, 1, 1],
            place,
            leases: Vec::new(),
            gateways: Vec::new(),
            health: Health::Healthy,
            services: Vec::new(),
            mtu: None,
            is_internal: false,
        };
        copies.keep(&attachment).unwrap();
        copies.keep(&Attachment { id: [2; 16], place: Place::Host, ..attachment.clone() }).unwrap();
        fs::write(dir.join("weft.attached/torn"), b"{").unwrap();
        let found = copies.read().unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), [&[1; 16]]);
        assert_eq!((&found[&[1; 16]].names, &found[&[1; 16]].place), (&attachment.names, &attachment.place));
        assert!(!dir.join("weft.attached/torn").exists());
        copies.forget([1; 16]).unwrap();
        copies.forget([1; 16]).unwrap();
        assert!(copies.read().unwrap().is_empty());
        fs::remove_dir_all(&dir).unwrap();
    }
}
