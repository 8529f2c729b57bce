//! Encodes IPFIX messages (RFC 7011): templates, flow records, and options records that explain the numbers in them.
//!
//! Element ids are from <https://www.iana.org/assignments/ipfix>. Records present the mesh as one switch whose interfaces are the hosts: a
//! flow enters through one and leaves through another. A segment is a VRF.

use std::net::IpAddr;

use bytes::BufMut;
use weft_mesh::datapath::metering::{FlowDirection, Ignored};

use super::cache::FlowRecord;

/// Largest message in bytes: with its headers it fits a tunnel over Ethernet. RFC 7011, section 10.3.3, recommends 512 where the path MTU
/// is unknown, which is room for six records.
const MAX_MESSAGE: usize = 1_400;
const VERSION: u16 = 10;
const HEADER: usize = 16;
const SEQUENCE_AT: usize = 8;
const SET_HEADER: usize = 4;
const TEMPLATES: u16 = 2;
const OPTIONS_TEMPLATES: u16 = 3;

/// Bytes of a name, with zeros behind it.
const NAME: u16 = 64;

/// Every packet is counted: systematic sampling that selects one packet and then skips none (RFC 5477, section 8.2).
const SELECTOR: u8 = 1;
const SYSTEMATIC_BY_COUNT: u16 = 1;

/// An element's id and its length in bytes.
type Element = (u16, u16);

const OCTETS: Element = (1, 8);
const PACKETS: Element = (2, 8);
const PROTOCOL: Element = (4, 1);
const TCP_FLAGS: Element = (6, 1);
const SOURCE_PORT: Element = (7, 2);
const SOURCE_V4: Element = (8, 4);
const INGRESS_INTERFACE: Element = (10, 4);
const DESTINATION_PORT: Element = (11, 2);
const DESTINATION_V4: Element = (12, 4);
const EGRESS_INTERFACE: Element = (14, 4);
const SOURCE_V6: Element = (27, 16);
const DESTINATION_V6: Element = (28, 16);
const ICMP_V4: Element = (32, 2);
const DIRECTION: Element = (61, 1);
const INTERFACE_DESCRIPTION: Element = (83, NAME);
const END_REASON: Element = (136, 1);
const ICMP_V6: Element = (139, 2);
const DOMAIN: Element = (149, 4);
const START: Element = (152, 8);
const END: Element = (153, 8);
const IGNORED_PACKETS: Element = (164, 8);
const IGNORED_OCTETS: Element = (165, 8);
const NOT_SENT_FLOWS: Element = (166, 8);
const NOT_SENT_PACKETS: Element = (167, 8);
const NOT_SENT_OCTETS: Element = (168, 8);
const VRF: Element = (234, 4);
const VRF_NAME: Element = (236, NAME);
const SELECTOR_ID: Element = (302, 1);
const SELECTOR_ALGORITHM: Element = (304, 2);
const SAMPLING_INTERVAL: Element = (305, 4);
const SAMPLING_SPACE: Element = (306, 4);

/// Templates of flow records: id, addresses and ports; [`OF_EACH_FLOW`] follows.
const FLOWS: [(u16, [Element; 4]); 4] = [
    (256, [SOURCE_V4, DESTINATION_V4, SOURCE_PORT, DESTINATION_PORT]),
    (257, [SOURCE_V6, DESTINATION_V6, SOURCE_PORT, DESTINATION_PORT]),
    (258, [SOURCE_V4, DESTINATION_V4, SOURCE_PORT, ICMP_V4]),
    (259, [SOURCE_V6, DESTINATION_V6, SOURCE_PORT, ICMP_V6]),
];
const OF_EACH_FLOW: [Element; 12] = [
    PROTOCOL,
    TCP_FLAGS,
    OCTETS,
    PACKETS,
    START,
    END,
    END_REASON,
    DIRECTION,
    INGRESS_INTERFACE,
    EGRESS_INTERFACE,
    VRF,
    SELECTOR_ID,
];
const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_ICMPV6: u8 = 58;

/// Templates of options records: id, scope, elements. The first describes a selector (RFC 5476, section 6.5.2), the others an observation
/// domain. A name's record has the number and the name only, since nfdump reads no others.
const SAMPLING: (u16, Element, &[Element]) =
    (260, SELECTOR_ID, &[SELECTOR_ALGORITHM, SAMPLING_INTERVAL, SAMPLING_SPACE]);
const HOSTS: (u16, Element, &[Element]) = (261, DOMAIN, &[INGRESS_INTERFACE, INTERFACE_DESCRIPTION]);
const SEGMENTS: (u16, Element, &[Element]) = (262, DOMAIN, &[VRF, VRF_NAME]);
const LOSSES: (u16, Element, &[Element]) =
    (263, DOMAIN, &[IGNORED_PACKETS, IGNORED_OCTETS, NOT_SENT_FLOWS, NOT_SENT_PACKETS, NOT_SENT_OCTETS]);

/// Packets and records missing from what was sent, since the router's start.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Losses {
    /// Packets that were not counted by flow.
    pub ignored: Ignored,
    /// Flow records that were not sent.
    pub flows: u64,
    /// Packets in them.
    pub packets: u64,
    /// Bytes in them.
    pub octets: u64,
}

/// An encoded message.
#[derive(Clone, Default, Debug)]
pub struct Message {
    /// The message; its sequence number is zero until set.
    pub bytes: Vec<u8>,
    /// Data records in it.
    pub records: u32,
    /// Flow records in it.
    pub flows: u64,
    /// Packets in these records.
    pub packets: u64,
    /// Bytes in these records.
    pub octets: u64,
}

impl Message {
    /// Sets the sequence number: the data records sent before this message.
    pub fn set_sequence(&mut self, sequence: u32) {
        if let Some(field) = self.bytes.get_mut(SEQUENCE_AT..SEQUENCE_AT + 4) {
            field.copy_from_slice(&sequence.to_be_bytes());
        }
    }
}

/// Encodes the messages of one observation domain, which is a host.
pub struct Encoder {
    domain: u32,
    /// Seconds since 1970.
    time: u32,
    done: Vec<Message>,
    open: Message,
    /// Offset and id of the open set.
    set: Option<(usize, u16)>,
}

impl Encoder {
    /// Returns an encoder for the host with this interface number.
    pub fn new(domain: u32) -> Encoder {
        let (done, open) = (Vec::new(), Message::default());
        Encoder { domain, time: 0, done, open, set: None }
    }

    /// Sets the export time of further messages, in seconds since 1970.
    pub fn set_time(&mut self, unix_seconds: u64) {
        // The field has 32 bits and wraps in 2106.
        self.time = unix_seconds as u32;
    }

    /// Adds all templates.
    pub fn templates(&mut self) {
        for (id, ends) in FLOWS {
            let fields: Vec<Element> = ends.into_iter().chain(OF_EACH_FLOW).collect();
            let mut template = Vec::new();
            template.put_u16(id);
            template.put_u16(fields.len() as u16);
            put_elements(&mut template, &fields);
            self.put(TEMPLATES, &template);
        }
        for (id, scope, fields) in [SAMPLING, HOSTS, SEGMENTS, LOSSES] {
            let mut template = Vec::new();
            template.put_u16(id);
            template.put_u16(1 + fields.len() as u16);
            template.put_u16(1);
            put_elements(&mut template, &[scope]);
            put_elements(&mut template, fields);
            // nfdump reads only the first options template of a set.
            self.close_set();
            self.put(OPTIONS_TEMPLATES, &template);
        }
        self.close_set();
    }

    /// Adds the record that every packet is counted.
    pub fn sampling(&mut self) {
        let mut record = vec![SELECTOR];
        record.put_u16(SYSTEMATIC_BY_COUNT);
        record.put_u32(1);
        record.put_u32(0);
        self.put(SAMPLING.0, &record);
    }

    /// Adds the name of the host with an interface number.
    pub fn host(&mut self, number: u32, name: &str) {
        let mut record = self.option();
        record.put_u32(number);
        put_text(&mut record, name, NAME);
        self.put(HOSTS.0, &record);
    }

    /// Adds the name of the segment with a number.
    pub fn segment(&mut self, number: u32, name: &str) {
        let mut record = self.option();
        record.put_u32(number);
        put_text(&mut record, name, NAME);
        self.put(SEGMENTS.0, &record);
    }

    /// Adds the counters of what is missing.
    pub fn losses(&mut self, losses: &Losses) {
        let Losses { ignored: Ignored { packets: ignored_packets, octets: ignored_octets }, flows, packets, octets } =
            *losses;
        let mut record = self.option();
        [ignored_packets, ignored_octets, flows, packets, octets].into_iter().for_each(|count| record.put_u64(count));
        self.put(LOSSES.0, &record);
    }

    /// Adds a flow record: the hosts' interface numbers, the segment's number, and begin and end in milliseconds since 1970.
    pub fn flow(&mut self, flow: &FlowRecord, [from, to]: [u32; 2], segment: u32, [start, end]: [u64; 2]) {
        let FlowRecord { key, count, reason } = flow;
        let [source, destination] = key.addresses;
        let is_icmp = matches!(key.protocol, PROTOCOL_ICMP | PROTOCOL_ICMPV6);
        let (template, _) = FLOWS[usize::from(is_icmp) * 2 + usize::from(source.is_ipv6())];
        let mut record = Vec::new();
        for address in [source, destination] {
            match address {
                IpAddr::V4(ip) => record.put_slice(&ip.octets()),
                IpAddr::V6(ip) => record.put_slice(&ip.octets()),
            }
        }
        key.ports.iter().for_each(|port| record.put_u16(*port));
        record.put_u8(key.protocol);
        record.put_u8(count.tcp_flags);
        [count.octets, count.packets, start, end].into_iter().for_each(|number| record.put_u64(number));
        record.put_u8(*reason as u8);
        record.put_u8((key.direction == FlowDirection::Egress).into());
        [from, to, segment].into_iter().for_each(|number| record.put_u32(number));
        record.put_u8(SELECTOR);
        self.put(template, &record);
        self.open.flows += 1;
        self.open.packets += count.packets;
        self.open.octets += count.octets;
    }

    /// Returns the messages encoded so far.
    pub fn take(&mut self) -> Vec<Message> {
        self.close_message();
        std::mem::take(&mut self.done)
    }

    /// Returns the beginning of an options record: its scope.
    fn option(&self) -> Vec<u8> {
        self.domain.to_be_bytes().to_vec()
    }

    /// Adds a record to the open set if it has this id and there is room, else to a new one.
    fn put(&mut self, set: u16, record: &[u8]) {
        if self.open.bytes.len() + SET_HEADER + record.len() > MAX_MESSAGE {
            self.close_message();
        }
        if self.open.bytes.is_empty() {
            self.open.bytes.resize(HEADER, 0);
        }
        if self.set.is_none_or(|(_, id)| id != set) {
            self.close_set();
            self.set = Some((self.open.bytes.len(), set));
            self.open.bytes.put_u16(set);
            self.open.bytes.put_u16(0);
        }
        self.open.bytes.put_slice(record);
        self.open.records += u32::from(set > OPTIONS_TEMPLATES);
    }

    fn close_set(&mut self) {
        if let Some((at, _)) = self.set.take() {
            let len = (self.open.bytes.len() - at) as u16;
            self.open.bytes[at + 2..at + 4].copy_from_slice(&len.to_be_bytes());
        }
    }

    fn close_message(&mut self) {
        self.close_set();
        let mut message = std::mem::take(&mut self.open);
        if message.bytes.is_empty() {
            return;
        }
        let mut header = Vec::with_capacity(HEADER);
        header.put_u16(VERSION);
        header.put_u16(message.bytes.len() as u16);
        [self.time, 0, self.domain].into_iter().for_each(|word| header.put_u32(word));
        message.bytes[..HEADER].copy_from_slice(&header);
        self.done.push(message);
    }
}

fn put_elements(template: &mut Vec<u8>, elements: &[Element]) {
    for (id, len) in elements {
        template.put_u16(*id);
        template.put_u16(*len);
    }
}

fn put_text(record: &mut Vec<u8>, text: &str, len: u16) {
    let len = usize::from(len);
    let text = &text.as_bytes()[..text.len().min(len)];
    record.put_slice(text);
    record.put_bytes(0, len - text.len());
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use weft_crypto::{HostLabel, Time};
    use weft_mesh::datapath::metering::{FlowCount, FlowKey};
    use weft_mesh::wire::SegmentId;

    use super::super::cache::EndReason;
    use super::*;

    fn flow(protocol: u8, addresses: [IpAddr; 2]) -> FlowRecord {
        let (direction, segment, peer) = (FlowDirection::Egress, SegmentId::of("s"), HostLabel([1; 6]));
        let key = FlowKey { direction, segment, peer, addresses, protocol, ports: [1000, 80] };
        let (first, last) = (Time::from_nanos(1), Time::from_nanos(2));
        let count = FlowCount { packets: 7, octets: 4321, first, last, tcp_flags: 0x1b };
        FlowRecord { key, count, reason: EndReason::Idle }
    }

    fn u16_at(bytes: &[u8], at: usize) -> u16 {
        u16::from_be_bytes([bytes[at], bytes[at + 1]])
    }

    /// Reads messages as a collector does; the fields of each data record by element.
    fn read(messages: &[Message]) -> Vec<BTreeMap<u16, Vec<u8>>> {
        let (mut templates, mut records) = (BTreeMap::<u16, Vec<Element>>::new(), Vec::new());
        for Message { bytes, .. } in messages {
            assert!(bytes.len() <= MAX_MESSAGE);
            assert_eq!((u16_at(bytes, 0), usize::from(u16_at(bytes, 2))), (10, bytes.len()));
            let mut rest = &bytes[HEADER..];
            while !rest.is_empty() {
                let (id, len) = (u16_at(rest, 0), usize::from(u16_at(rest, 2)));
                let mut set = &rest[SET_HEADER..len];
                rest = &rest[len..];
                while !set.is_empty() {
                    if id <= OPTIONS_TEMPLATES {
                        let (count, header) = (usize::from(u16_at(set, 2)), if id == TEMPLATES { 4 } else { 6 });
                        let elements =
                            set[header..].chunks(4).take(count).map(|field| (u16_at(field, 0), u16_at(field, 2)));
                        templates.insert(u16_at(set, 0), elements.collect());
                        set = &set[header + 4 * count..];
                    } else {
                        let mut record = BTreeMap::new();
                        for (element, len) in &templates[&id] {
                            let (value, more) = set.split_at(usize::from(*len));
                            record.insert(*element, value.to_vec());
                            set = more;
                        }
                        records.push(record);
                    }
                }
            }
        }
        records
    }

    #[test]
    fn a_collector_reads_what_was_written() {
        let mut encoder = Encoder::new(0xd2b0_a1c4);
        encoder.set_time(1_800_000_000);
        encoder.templates();
        encoder.sampling();
        encoder.host(0xd2b0_a1c4, "berlin");
        encoder.segment(5, "app");
        encoder.losses(&Losses { flows: 3, ..Losses::default() });
        let (v4, v6) =
            ([[10, 0, 0, 1].into(), [10, 0, 0, 2].into()], ["fd00::1", "fd00::2"].map(|ip| ip.parse().unwrap()));
        for (protocol, addresses) in [(6, v4), (17, v6), (1, v4), (58, v6)] {
            encoder.flow(&flow(protocol, addresses), [1, 2], 5, [1_000, 2_000]);
        }
        let messages = encoder.take();
        assert_eq!(messages.iter().map(|message| message.flows).sum::<u64>(), 4);
        let records = read(&messages);
        let number = |record: usize, (element, _): Element| {
            records[record][&element].iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte))
        };
        assert_eq!((number(0, SAMPLING_INTERVAL), number(0, SAMPLING_SPACE)), (1, 0));
        assert_eq!(number(1, INGRESS_INTERFACE), 0xd2b0_a1c4);
        assert!(records[1][&INTERFACE_DESCRIPTION.0].starts_with(b"berlin\0"));
        assert!(records[2][&VRF_NAME.0].starts_with(b"app\0"));
        assert_eq!(number(3, NOT_SENT_FLOWS), 3);
        for record in 4..8 {
            assert_eq!((number(record, OCTETS), number(record, PACKETS)), (4321, 7));
            assert_eq!((number(record, START), number(record, END)), (1_000, 2_000));
            assert_eq!((number(record, DIRECTION), number(record, END_REASON)), (1, 1));
            assert_eq!([INGRESS_INTERFACE, EGRESS_INTERFACE, VRF].map(|element| number(record, element)), [1, 2, 5]);
            assert_eq!(number(record, SELECTOR_ID), number(0, SELECTOR_ID));
        }
        assert_eq!((number(4, SOURCE_V4), number(4, DESTINATION_PORT)), (0x0a00_0001, 80));
        assert_eq!(records[5][&DESTINATION_V6.0][15], 2);
        assert_eq!((number(6, ICMP_V4), number(7, ICMP_V6)), (80, 80), "type and code");
    }

    #[test]
    fn many_records_go_in_messages_that_fit() {
        let mut encoder = Encoder::new(1);
        encoder.templates();
        for _ in 0..2 {
            let addresses = [[10, 0, 0, 1].into(), [10, 0, 0, 2].into()];
            (0..100).for_each(|_| encoder.flow(&flow(6, addresses), [1, 2], 5, [0, 0]));
        }
        let messages = encoder.take();
        assert_eq!(read(&messages).len(), 200);
        assert_eq!(messages.iter().map(|message| message.records).sum::<u32>(), 200);
        assert!(messages.len() <= 12, "{} messages", messages.len());
    }
}
