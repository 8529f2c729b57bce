//! What is answered to a question, without any I/O: names of containers from memory, everything else by others.
//!
//! [`Zone::answer`] reads the question and finds the holders of its name, in scope, reachable and of the best health there is;
//! `answers` makes the resource records of each type. Messages are RFC 1035's; negative answers RFC 2308's, with a SOA; EDNS is RFC 6891's.

mod answers;

use std::collections::BTreeSet;
use std::sync::Arc;

use answers::resource_records;
use arc_swap::ArcSwap;
use hickory_proto::op::{Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use weft_mesh::names::{Holder, Names, Scope};

use crate::attach::prefix::Prefix;
use crate::error::{Doing, Result};

/// How long an answer may be kept, in seconds: containers come and go.
const TTL: u32 = 1;
/// The largest answer by UDP to askers that take more than 512 bytes: it passes every path unfragmented (DNS flag day 2020).
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

/// The response to a packet.
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
    /// The ranges of containers' addresses: no resolver outside knows names for them.
    ranges: Arc<ArcSwap<BTreeSet<Prefix>>>,
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
        // The zone is never transferred; what matters is how long a denial may be kept.
        let soa = SOA::new(domain.clone(), rname, 1, 3600, 600, 86_400, TTL);
        let soa = Record::from_rdata(domain.clone(), TTL, RData::SOA(soa));
        Ok(Zone { domain, soa, ranges: Arc::default() })
    }

    /// Sets the ranges of containers' addresses.
    pub fn set_ranges(&self, ranges: BTreeSet<Prefix>) {
        self.ranges.store(Arc::new(ranges));
    }

    /// Decides on a packet from a client that may hear of `scope`.
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
        let refuse = |code| Verdict::Answer(Message::error_msg(id, op_code, code).to_vec().unwrap_or_default());
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
        let is_own = self.domain.zone_of(name);
        if !is_own && name.iter().next_back().is_some_and(|label| label.eq_ignore_ascii_case(b"arpa")) {
            return self.find_reverse(names, scope, query);
        }
        let depth = name.iter().len() - if is_own { self.domain.iter().len() } else { 0 };
        if is_own && depth == 0 {
            let records = if query.query_type == RecordType::SOA { vec![self.soa.clone()] } else { Vec::new() };
            return Some(Found { records, code: ResponseCode::NoError });
        }
        let nothing = |code| Some(Found { records: Vec::new(), code });
        let Some(text) = joined(name.iter().take(depth)) else {
            return if is_own { nothing(ResponseCode::NXDomain) } else { None };
        };
        let mut found = names.lookup(scope, &text);
        if is_own && !found.is_known {
            // A container may be called by a whole name in the domain.
            found = joined(name.iter()).map(|whole| names.lookup(scope, &whole)).unwrap_or_default();
        }
        if !found.holders.is_empty() {
            in_order(&mut found.holders, random);
            let records = resource_records(query, &found.holders);
            return Some(Found { records, code: ResponseCode::NoError });
        }
        if found.is_known {
            // No endpoint of the name is healthy: the engine's own resolver would answer all the same.
            return nothing(ResponseCode::NXDomain);
        }
        if let Some(records) = self.find_service(names, scope, query, depth, random) {
            return Some(Found { records, code: ResponseCode::NoError });
        }
        match is_own {
            // There are names below this one (RFC 8020).
            true if names.has_segment(scope, &text) => nothing(ResponseCode::NoError),
            true => nothing(ResponseCode::NXDomain),
            false => None,
        }
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
        let mut bytes = message.to_vec().ok();
        // Some resolvers never ask by TCP: they get what fits.
        while bytes.as_ref().is_none_or(|bytes| bytes.len() > usize::from(limit)) && !message.answers.is_empty() {
            // As many as their share of the bytes, and always fewer; what has no form at all is more than a message can hold.
            let count = message.answers.len();
            let keep = bytes.as_ref().map_or(count / 2, |bytes| count * usize::from(limit) / bytes.len());
            let keep = keep.min(count - 1);
            message.answers.truncate(keep);
            message.metadata.truncation = true;
            bytes = message.to_vec().ok();
        }
        // A question that was read can be written again, without answers.
        bytes.unwrap_or_default()
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::SeedableRng;
    use weft_crypto::HostLabel;
    use weft_mesh::records::{EndpointRecord, Health, Service};
    use weft_mesh::wire::SegmentId;

    use super::*;

    const OWN: HostLabel = HostLabel([1; 6]);
    const FAR: HostLabel = HostLabel([2; 6]);

    pub(super) fn endpoint(name: &str, segment: &str, ips: &[&str]) -> EndpointRecord {
        EndpointRecord {
            segment: segment.into(),
            mac: [2; 6],
            ips: ips.iter().map(|ip| (ip.parse().unwrap(), 8)).collect(),
            names: [name.into(), "alias".into(), format!("id-{}", ips[0].replace(['.', ':'], "-"))].into(),
            health: Health::Healthy,
            services: [Service { name: "http".into(), protocol: "tcp".into(), port: 80 }].into(),
        }
    }

    pub(super) fn names() -> Names {
        let mut names = Names::new(OWN);
        names.set(OWN, [1; 16], endpoint("web", "app", &["10.0.0.1", "fd00::1"]));
        names.set(FAR, [2; 16], endpoint("web", "app", &["10.0.0.2"]));
        names.set(OWN, [3; 16], endpoint("db", "other", &["10.0.0.3"]));
        names.set_reach(BTreeMap::from([(OWN, (0, "here".into())), (FAR, (10, "there".into()))]));
        names
    }

    pub(super) fn ask(names: &Names, packet: &[u8], transport: Transport) -> Verdict {
        let (zone, segments) = (Zone::new("weft.internal").unwrap(), [SegmentId::of("app")]);
        let mut random = ChaCha8Rng::seed_from_u64(1);
        zone.answer(names, Scope::Segments(&segments), packet, transport, &mut random)
    }

    pub(super) fn question(name: &str, kind: RecordType) -> Message {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message
    }

    pub(super) fn answer(name: &str, kind: RecordType) -> Message {
        match ask(&names(), &question(name, kind).to_vec().unwrap(), Transport::Udp) {
            Verdict::Answer(bytes) => Message::from_vec(&bytes).unwrap(),
            verdict => panic!("{name}: {verdict:?}"),
        }
    }

    pub(super) fn data(message: &Message) -> Vec<String> {
        message.answers.iter().map(|record| record.data.to_string()).collect()
    }

    #[test]
    fn containers_are_found_under_all_their_names_nearest_first() {
        for name in ["web.", "WEB.", "alias.", "web.app.", "web.weft.internal.", "Web.App.Weft.Internal."] {
            let message = answer(name, RecordType::A);
            assert_eq!(data(&message), ["10.0.0.1", "10.0.0.2"], "{name}");
            assert!(message.metadata.authoritative && message.metadata.recursion_available);
            assert_eq!((message.metadata.id, message.answers[0].ttl), (7, 1));
            assert_eq!(message.queries[0].name.to_ascii(), name, "the question comes back as it was");
        }
        assert_eq!(data(&answer("web.", RecordType::AAAA)), ["fd00::1"]);
        assert_eq!(answer("web.", RecordType::ANY).answers.len(), 3);
    }

    #[test]
    fn a_container_that_is_called_by_a_whole_name_is_found_by_it() {
        let mut names = names();
        names.set(
            OWN,
            [9; 16],
            EndpointRecord { names: ["shop.weft.internal".into()].into(), ..endpoint("x", "app", &["10.0.0.9"]) },
        );
        let packet = question("shop.weft.internal.", RecordType::A).to_vec().unwrap();
        let Verdict::Answer(bytes) = ask(&names, &packet, Transport::Udp) else { panic!("no answer") };
        assert_eq!(data(&Message::from_vec(&bytes).unwrap()), ["10.0.0.9"]);
    }

    #[test]
    fn what_is_not_there_is_denied_with_a_soa() {
        let nothing = answer("web.", RecordType::MX);
        assert_eq!((nothing.metadata.response_code, nothing.answers.len()), (ResponseCode::NoError, 0));
        let unknown = answer("unknown.weft.internal.", RecordType::A);
        assert_eq!(unknown.metadata.response_code, ResponseCode::NXDomain);
        for message in [nothing, unknown] {
            assert_eq!(message.authorities[0].record_type(), RecordType::SOA);
        }
        let foreign = answer("db.weft.internal.", RecordType::A);
        assert_eq!(foreign.metadata.response_code, ResponseCode::NXDomain, "it is in another network");
        for name in ["db.", "example.org.", "com.", "9.9.9.9.in-addr.arpa."] {
            let packet = question(name, RecordType::A).to_vec().unwrap();
            assert_eq!(ask(&names(), &packet, Transport::Udp), Verdict::Forward, "{name}");
        }
    }

    #[test]
    fn addresses_of_containers_that_are_not_there_are_denied_at_once() {
        let zone = Zone::new("weft.internal").unwrap();
        zone.set_ranges(["10.32.0.0/12".parse().unwrap()].into());
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut asked = |name: &str| {
            let packet = question(name, RecordType::PTR).to_vec().unwrap();
            zone.answer(&names(), Scope::All, &packet, Transport::Udp, &mut random)
        };
        assert!(matches!(asked("9.9.40.10.in-addr.arpa."), Verdict::Answer(_)));
        assert_eq!(asked("9.9.50.10.in-addr.arpa."), Verdict::Forward);
    }

    #[test]
    fn long_answers_are_cut_to_what_the_asker_takes() {
        let mut names = Names::new(OWN);
        for number in 0..50u8 {
            names.set(OWN, [number; 16], endpoint("many", "app", &[&format!("10.0.1.{number}")]));
        }
        let mut message = question("many.app.weft.internal.", RecordType::A);
        let sizes = |message: &Message, transport| {
            let Verdict::Answer(bytes) = ask(&names, &message.to_vec().unwrap(), transport) else {
                panic!("no answer")
            };
            let answer = Message::from_vec(&bytes).unwrap();
            (bytes.len(), answer.answers.len(), answer.metadata.truncation)
        };
        let (length, count, is_cut) = sizes(&message, Transport::Udp);
        assert!(length <= 512 && count > 20 && is_cut, "{length} bytes, {count} records");
        assert_eq!(sizes(&message, Transport::Tcp).1, 50);
        let mut edns = Edns::new();
        edns.set_max_payload(4096);
        message.set_edns(edns);
        let (length, count, is_cut) = sizes(&message, Transport::Udp);
        assert!(length <= 1232 && count == 50 && !is_cut, "{length} bytes, {count} records");
    }

    #[test]
    fn packets_that_are_no_questions_get_no_more_than_an_error() {
        let good = question("web.", RecordType::A).to_vec().unwrap();
        let mut response = good.clone();
        response[2] |= 0x80;
        assert_eq!(ask(&names(), &response, Transport::Udp), Verdict::Drop);
        assert_eq!(ask(&names(), &good[..11], Transport::Udp), Verdict::Drop);
        let mut many = good.clone();
        many[5] = 200;
        let mut update = good.clone();
        update[2] |= 5 << 3;
        for packet in [&many, &update, &good[..good.len() - 3].to_vec()] {
            let Verdict::Answer(bytes) = ask(&names(), packet, Transport::Udp) else { panic!("no error") };
            assert!(bytes.len() <= 12 && Message::from_vec(&bytes).unwrap().answers.is_empty());
        }
    }
}
