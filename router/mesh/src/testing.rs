//! A node without a shell, for tests.

use std::collections::BTreeMap;
use std::time::Duration;

use weft_crypto::{Ciphers, Identity, Keyring, Time};
use weft_gossip::{Message, Store};

use crate::datapath::sink::Punt;
use crate::node::{Command, CommandError, Config, Event, Input, Node, Output, Reply};
use crate::records::{EndpointRecord, Key};
use crate::wire::Control;

/// When tests begin.
pub(crate) const NOW: Time = Time::from_nanos(1_000_000_000);

/// What a node said since it was last listened to.
#[derive(Default)]
pub(crate) struct Said {
    pub(crate) replies: Vec<Result<Reply, CommandError>>,
    pub(crate) events: Vec<Event>,
    pub(crate) wake: Option<Time>,
}

/// The node of host `number`, whose disk holds `restored`.
pub(crate) fn node(number: u8, restored: &BTreeMap<Vec<u8>, Vec<u8>>) -> Node {
    let config = Config {
        identity: Identity::from_seed(&[number; 32]),
        name: format!("host{number}"),
        keyring: Keyring::insecure(),
        ciphers: Ciphers::native(false),
        underlay_mtu: 1500,
        container_mtu: 1450,
        port: 6783,
        tcp_ports: Vec::new(),
        advertised: Default::default(),
        is_stub: false,
        is_metered: false,
        discovery: true,
        grace: Duration::from_secs(3600),
        founds_alone: false,
        continues: false,
        endpoints: Vec::new(),
        restored: restored.clone().into_iter().collect(),
    };
    Node::new(config, [number; 32], NOW)
}

/// Takes all outputs; what is to be persisted goes to `disk`, and is durable at once.
pub(crate) fn listen(node: &mut Node, disk: &mut BTreeMap<Vec<u8>, Vec<u8>>) -> Said {
    let mut said = Said::default();
    loop {
        match node.poll_output() {
            Output::Persist { key, value: Some(value) } => drop(disk.insert(key, value)),
            Output::Persist { key, value: None } => drop(disk.remove(&key)),
            Output::Durable(mark) => node.handle_input(NOW, Input::Durable { mark, is_kept: true }),
            Output::Reply(_, reply) => said.replies.push(reply),
            Output::Event(event) => said.events.push(event),
            Output::Timeout(at, _) => {
                said.wake = Some(at);
                return said;
            }
            _ => {}
        }
    }
}

/// Has a node carry out a command; returns the reply.
pub(crate) fn command(node: &mut Node, command: Command) -> Result<Reply, CommandError> {
    node.handle_input(NOW, Input::Command(1, command));
    listen(node, &mut BTreeMap::new()).replies.pop().expect("each command here is answered at once")
}

/// Has a node hear records that host `number` signed, one life after the other.
pub(crate) fn hear(node: &mut Node, number: u8, life: u64, records: &[(Key, Vec<u8>)]) -> Said {
    let identity = Identity::from_seed(&[number; 32]);
    let peer = identity.peer_id().label();
    let mut store = Store::new(identity, life, 1);
    records.iter().for_each(|(key, value)| store.put(&key.encode(), value.clone()).expect("a small record"));
    for batch in store.flush() {
        let text = Control::Records(Message::Batches { batches: vec![batch], more: false }.encode()).encode(0);
        let size = text.len();
        node.handle_input(NOW, Input::Punt(Punt::Control { index: 1, peer, direct: None, size, text }));
    }
    listen(node, &mut BTreeMap::new())
}

/// An endpoint with an address, in segment "app".
pub(crate) fn endpoint(last: u8) -> EndpointRecord {
    EndpointRecord {
        segment: "app".into(),
        mac: [2, 0, 0, 0, 0, last],
        ips: [([10, 32, 0, last].into(), 12)].into(),
        names: [format!("web{last}")].into(),
        health: Default::default(),
        services: Default::default(),
    }
}
