//! How much the endpoints of this host sent and received, by the kernel's counters.

use std::collections::BTreeMap;

use crate::attach::attachment::Attachment;
use crate::attach::netlink::{Interface, in_namespace};
use crate::error::Result;

/// The bytes of one endpoint, since its interface was made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Traffic {
    /// Its id, in hex.
    pub endpoint: String,
    /// Its segment's name.
    pub segment: String,
    /// Its own name; empty if it has none.
    pub name: String,
    /// Bytes of frames that it received.
    pub received: u64,
    /// Bytes of frames that it sent.
    pub sent: u64,
}

/// Reads the counters of endpoints; one whose interface is not there is left out.
pub fn read(attachments: &[Attachment]) -> Result<Vec<Traffic>> {
    if attachments.is_empty() {
        return Ok(Vec::new());
    }
    let interfaces = in_namespace(None, async |net| net.links().await)?;
    Ok(of(attachments, &interfaces))
}

fn of(attachments: &[Attachment], interfaces: &[Interface]) -> Vec<Traffic> {
    let by_name: BTreeMap<&str, &Interface> = interfaces.iter().map(|link| (link.name.as_str(), link)).collect();
    let traffic = |attachment: &Attachment| {
        let port = by_name.get(attachment.port().as_str())?;
        Some(Traffic {
            endpoint: hex::encode(attachment.id),
            segment: attachment.segment.clone(),
            name: attachment.names.first().cloned().unwrap_or_default(),
            // What the port in the bridge sends, the endpoint behind it receives.
            received: port.sent,
            sent: port.received,
        })
    };
    attachments.iter().filter_map(traffic).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach::attachment::Place;

    #[test]
    fn what_the_bridge_sends_is_what_the_endpoint_receives() {
        let attachment = |id: u8, host_interface: &str| Attachment {
            id: [id; 16],
            segment: "app".into(),
            ips: Vec::new(),
            names: vec!["web".into(), "alias".into()],
            mac: [2, 0, 0, 0, 0, id],
            place: Place::Docker {
                host_interface: host_interface.into(),
                source: String::new(),
                sandbox: Default::default(),
            },
            leases: Vec::new(),
            gateways: Vec::new(),
            health: Default::default(),
            services: Vec::new(),
            mtu: None,
            is_internal: false,
        };
        let port = Interface { name: "wd1".into(), received: 7, sent: 9, ..Interface::default() };
        let traffic = of(&[attachment(1, "wd1"), attachment(2, "gone")], &[Interface::default(), port]);
        let expected =
            Traffic { endpoint: hex::encode([1; 16]), segment: "app".into(), name: "web".into(), received: 9, sent: 7 };
        assert_eq!(traffic, [expected]);
    }
}
