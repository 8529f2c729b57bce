//! What is answered to a question, without any I/O: names of containers from memory, everything else by others.
//!
//! Messages are RFC 1035's; negative answers RFC 2308's, with a SOA; EDNS is RFC 6891's.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use weft_mesh::names::{Holder, Names, Scope};

use crate::error::{Doing, Result};

/// How long an answer may be kept, in seconds: containers come and go.
const TTL: u32 = 1;
/// The largest answer by UDP to those who take more than 512 bytes: it passes every path unfragmented (DNS flag day 2020).
const MAX_UDP: u16 = 1232;
/// The largest answer by UDP without EDNS (RFC 1035, section 4.2.1).
const PLAIN_UDP: u16 = 512;
/// The largest answer by TCP.
const MAX_TCP: u16 = u16::MAX;

/// By what a question came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
}

/// What is to be done with a packet.
#[derive(PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Send this back.
    Answer(Vec<u8>),
    /// Others know.
    Forward,
    /// Not a question: no answer, or two servers would talk for ever.
    Drop,
}

/// The domain that container names are in.
#[derive(Clone)]
pub struct Zone {
    domain: Name,
    soa: Record,
}

/// What a question is answered with.
struct Found {
    records: Vec<Record>,
    code: ResponseCode,
}

impl Zone {
    /// The zone of a domain.
    pub fn new(domain: &str) -> Result<Zone> {
        let name = |text: &str| Name::from_ascii(text).doing(|| format!("{text} is no domain"));
        let domain = name(&format!("{domain}."))?;
        let rname = name(&format!("hostmaster.{domain}"))?;
        // Nobody transfers the zone; what matters is how long a denial may be kept.
        let soa = SOA::new(domain.clone(), rname, 1, 3600, 600, 86_400, TTL);
        let soa = Record::from_rdata(domain.clone(), TTL, RData::SOA(soa));
        Ok(Zone { domain, soa })
    }

    /// What is to be done with a packet from somebody who may hear of `scope`.
    pub fn answer(
        &self,
        names: &Names,
        scope: Scope,
        packet: &[u8],
        transport: Transport,
        random: &mut ChaCha8Rng,
    ) -> Verdict {
        let Ok(header) = Header::read(&mut BinDecoder::new(packet)) else { return Verdict::Drop };
        let Metadata { id, op_code, message_type, .. } = header.metadata;
        if message_type == MessageType::Response {
            return Verdict::Drop;
        }
        let refuse = |code| Verdict::Answer(encode(&Message::error_msg(id, op_code, code)));
        if op_code != OpCode::Query {
            return refuse(ResponseCode::NotImp);
        }
        // A message that says it has more is not worth reading.
        if header.counts.queries != 1 || header.counts.answers > 0 || header.counts.authorities > 0 {
            return refuse(ResponseCode::FormErr);
        }
        let Ok(question) = Message::from_vec(packet) else { return refuse(ResponseCode::FormErr) };
        let Some(query) = question.queries.first() else { return refuse(ResponseCode::FormErr) };
        if query.query_class != DNSClass::IN {
            return Verdict::Forward;
        }
        let code_for_version = question.edns.as_ref().filter(|edns| edns.version() > 0);
        if code_for_version.is_some() {
            let found = Found { records: Vec::new(), code: ResponseCode::BADVERS };
            return Verdict::Answer(self.write(&question, query, found, transport));
        }
        match self.find(names, scope, query, random) {
            Some(found) => Verdict::Answer(self.write(&question, query, found, transport)),
            None => Verdict::Forward,
        }
    }

    /// What weft knows of a question; none: others may know more.
    fn find(&self, names: &Names, scope: Scope, query: &Query, random: &mut ChaCha8Rng) -> Option<Found> {
        let name = &query.name;
        if name.iter().next_back().is_some_and(|label| label.eq_ignore_ascii_case(b"arpa")) {
            return self.find_reverse(names, scope, query);
        }
        let is_own = self.domain.zone_of(name);
        let depth = name.iter().len() - if is_own { self.domain.iter().len() } else { 0 };
        if is_own && depth == 0 {
            let records = if query.query_type == RecordType::SOA { vec![self.soa.clone()] } else { Vec::new() };
            return Some(Found { records, code: ResponseCode::NoError });
        }
        let text = joined(name.iter().take(depth));
        let mut holders = text.as_deref().map(|text| names.lookup(scope, text)).unwrap_or_default();
        if !holders.is_empty() {
            in_order(&mut holders, random);
            let records = self.records(query, &holders);
            return Some(Found { records, code: ResponseCode::NoError });
        }
        if let Some(records) = self.find_service(names, scope, query, depth, random) {
            return Some(Found { records, code: ResponseCode::NoError });
        }
        is_own.then_some(Found { records: Vec::new(), code: ResponseCode::NXDomain })
    }

    fn records(&self, query: &Query, holders: &[Holder]) -> Vec<Record> {
        let kind = query.query_type;
        let is_wanted = |ip: &IpAddr| match kind {
            RecordType::A => ip.is_ipv4(),
            RecordType::AAAA => ip.is_ipv6(),
            RecordType::ANY => true,
            _ => false,
        };
        let record = |data| Record::from_rdata(query.name.clone(), TTL, data);
        if kind == RecordType::TXT {
            let text = |holder: &Holder| {
                let segment = holder.segment.iter().map(|segment| format!("network={segment}"));
                let own = holder.names.first().map(|name| format!("name={name}"));
                let about = own.into_iter().chain([format!("host={}", holder.host)]).chain(segment);
                record(RData::TXT(TXT::new(about.chain(["healthy=yes".to_owned()]).collect())))
            };
            return holders.iter().map(text).collect();
        }
        let ips = holders.iter().flat_map(|holder| &holder.ips).filter(|ip| is_wanted(ip));
        ips.map(|ip| record(RData::from(*ip))).collect()
    }

    /// `_port._protocol.name` (RFC 2782); none if that is not what the question looks like, or nobody has the name.
    fn find_service(
        &self,
        names: &Names,
        scope: Scope,
        query: &Query,
        depth: usize,
        random: &mut ChaCha8Rng,
    ) -> Option<Vec<Record>> {
        let mut labels = query.name.iter().take(depth);
        let port = std::str::from_utf8(labels.next()?.strip_prefix(b"_")?).ok()?;
        let protocol = std::str::from_utf8(labels.next()?.strip_prefix(b"_")?).ok()?;
        let mut holders = names.lookup(scope, &joined(labels)?);
        let serves = |holder: &Holder| {
            let mut services = holder.services.iter();
            let is_it = |s: &&weft_mesh::records::Service| {
                (s.name.eq_ignore_ascii_case(port) || port.parse() == Ok(s.port))
                    && s.protocol.eq_ignore_ascii_case(protocol)
            };
            services.find(is_it).map(|service| service.port)
        };
        if holders.iter().all(|holder| serves(holder).is_none()) {
            return None;
        }
        if query.query_type != RecordType::SRV {
            return Some(Vec::new());
        }
        in_order(&mut holders, random);
        let record = |holder: &Holder| {
            let target = self.full_name(holder)?;
            // Nearer ones come first, by priority as well as by order.
            let srv = SRV::new(holder.distance as u16, 1, serves(holder)?, target);
            Some(Record::from_rdata(query.name.clone(), TTL, RData::SRV(srv)))
        };
        Some(holders.iter().filter_map(record).collect())
    }

    fn find_reverse(&self, names: &Names, scope: Scope, query: &Query) -> Option<Found> {
        let address = query.name.parse_arpa_name().ok()?;
        let holder =
            names.holder_of(scope, address.addr()).filter(|_| address.prefix_len() == address.max_prefix_len())?;
        let target = self.full_name(&holder)?;
        let record = Record::from_rdata(query.name.clone(), TTL, RData::PTR(PTR(target)));
        let records = if query.query_type == RecordType::PTR { vec![record] } else { Vec::new() };
        Some(Found { records, code: ResponseCode::NoError })
    }

    /// The name by which everybody finds a container: `name.network.domain`.
    fn full_name(&self, holder: &Holder) -> Option<Name> {
        let own = holder.names.first()?;
        let labels = own.split('.').chain(holder.segment.iter().flat_map(|segment| segment.split('.')));
        let labels = labels.map(str::as_bytes).chain(self.domain.iter());
        let mut name = Name::from_labels(labels).ok()?;
        name.set_fqdn(true);
        Some(name)
    }

    fn write(&self, question: &Message, query: &Query, found: Found, transport: Transport) -> Vec<u8> {
        let mut message = Message::response(question.metadata.id, OpCode::Query);
        message.metadata = Metadata::response_from_request(&question.metadata);
        message.metadata.response_code = found.code;
        message.metadata.authoritative = true;
        message.metadata.recursion_available = true;
        message.add_query(query.clone());
        if found.records.is_empty() && found.code != ResponseCode::BADVERS {
            message.add_authority(self.soa.clone());
        }
        message.insert_answers(found.records);
        let mut limit = if transport == Transport::Tcp { MAX_TCP } else { PLAIN_UDP };
        if let Some(edns) = &question.edns {
            let mut own = Edns::new();
            own.set_max_payload(MAX_UDP);
            own.set_dnssec_ok(edns.flags().dnssec_ok);
            own.set_rcode_high(found.code.high());
            message.set_edns(own);
            if transport == Transport::Udp {
                limit = edns.max_payload().clamp(PLAIN_UDP, MAX_UDP);
            }
        }
        let mut bytes = encode(&message);
        while bytes.len() > usize::from(limit) && !message.answers.is_empty() {
            // Some resolvers never ask by TCP: they are to have what fits.
            let over = bytes.len() - usize::from(limit);
            let each = (bytes.len() / message.answers.len()).max(1);
            let keep = message.answers.len().saturating_sub((over / each).max(1));
            message.answers.truncate(keep);
            message.metadata.truncation = true;
            bytes = encode(&message);
        }
        bytes
    }
}

/// Nearest first; among those equally near, everybody is first at times.
fn in_order(holders: &mut [Holder], random: &mut ChaCha8Rng) {
    if holders.len() > 1 {
        holders.shuffle(random);
        holders.sort_by_key(|holder| holder.distance);
    }
}

/// Labels with dots between them; none if a label has a dot in it or is no text.
fn joined<'a>(labels: impl Iterator<Item = &'a [u8]>) -> Option<String> {
    let mut text = String::with_capacity(64);
    for label in labels {
        if !text.is_empty() {
            text.push('.');
        }
        text.push_str(std::str::from_utf8(label).ok().filter(|label| !label.contains('.'))?);
    }
    (!text.is_empty()).then_some(text)
}

/// An answer of a few hundred records at most always has a form.
fn encode(message: &Message) -> Vec<u8> {
    message.to_vec().unwrap_or_default()
}
