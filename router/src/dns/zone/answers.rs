//! The resource records that answer each type of question.

use std::net::IpAddr;

use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::rdata::{PTR, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use rand_chacha::ChaCha8Rng;
use weft_mesh::names::{Holder, Names, Scope};
use weft_mesh::records::{Health, Service};

use super::{Found, TTL, Zone, in_order, joined};
use crate::attach::prefix::Prefix;

/// The longest string of a TXT record, in bytes (RFC 1035, section 3.3.14).
const MAX_STRING: usize = 255;

/// Returns the records for a name that these holders have: those in scope, reachable and of the best health. For a type that
/// is not answered there are none (RFC 2308, section 2.2).
pub(super) fn resource_records(query: &Query, holders: &[Holder]) -> Vec<Record> {
    let record = |data| Record::from_rdata(query.name.clone(), TTL, data);
    let addresses = |is_wanted: fn(&IpAddr) -> bool| {
        let ips = holders.iter().flat_map(|holder| holder.ips).map(|(ip, _)| ip).filter(|ip| is_wanted(ip));
        ips.map(|ip| record(RData::from(*ip))).collect()
    };
    match query.query_type {
        RecordType::A => addresses(IpAddr::is_ipv4),
        RecordType::AAAA => addresses(IpAddr::is_ipv6),
        // Some of what there is will do (RFC 8482).
        RecordType::ANY => addresses(|_| true),
        RecordType::TXT => holders.iter().map(|holder| record(RData::TXT(TXT::new(description(holder))))).collect(),
        _ => Vec::new(),
    }
}

/// The strings of a holder's TXT record. Host is the nickname of the container's host, or, for a name that was added, of the host
/// where it was. A name too long for a string is left out.
fn description(holder: &Holder) -> Vec<String> {
    let own = holder.names.first().map(|name| format!("name={name}"));
    let host = [format!("host={}", holder.host)];
    let segment = holder.segment.map(|segment| format!("network={segment}"));
    let health = match holder.health {
        Health::Healthy => "healthy=yes".to_owned(),
        other => format!("healthy={}", other.word()),
    };
    let all = own.into_iter().chain(host).chain(segment).chain([health]);
    all.filter(|text| text.len() <= MAX_STRING).collect()
}

impl Zone {
    /// `_port._protocol.name` (RFC 2782); none if the question has another form, or no endpoint has the name.
    pub(super) fn find_service(
        &self,
        names: &Names,
        scope: Scope,
        query: &Query,
        depth: usize,
        random: &mut ChaCha8Rng,
    ) -> Option<Vec<Record>> {
        let mut labels = query.name.iter().take(depth);
        let port = std::str::from_utf8(labels.next()?.strip_prefix(b"_")?).ok()?;
        let rest: Vec<&[u8]> = labels.collect();
        let Some(protocol) = rest.first().and_then(|label| label.strip_prefix(b"_")) else {
            // `_protocol.name`: nothing by itself, but there may be something below (RFC 8020).
            let found = names.lookup(scope, &joined(rest.into_iter())?);
            return found.is_known.then(Vec::new);
        };
        let protocol = std::str::from_utf8(protocol).ok()?;
        let mut holders = names.lookup(scope, &joined(rest.into_iter().skip(1))?).holders;
        let serves = |holder: &Holder| {
            let mut services = holder.services.iter();
            let is_it = |s: &&Service| {
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
            // A name that several have does not tell which of them serves at this port; the last one does.
            let is_shared = holders.iter().filter(|other| other.names.first() == holder.names.first()).count() > 1;
            let own = if is_shared { holder.names.last() } else { holder.names.first() };
            let target = self.full_name(own?, holder)?;
            // Nearer ones come first, by priority as well as by order.
            let srv = SRV::new(holder.distance as u16, 1, serves(holder)?, target);
            Some(Record::from_rdata(query.name.clone(), TTL, RData::SRV(srv)))
        };
        let mut records: Vec<Record> = Vec::new();
        for record in holders.iter().filter_map(record) {
            if !records.contains(&record) {
                records.push(record);
            }
        }
        Some(records)
    }

    pub(super) fn find_reverse(&self, names: &Names, scope: Scope, query: &Query) -> Option<Found> {
        let address = query.name.parse_arpa_name().ok()?;
        if address.prefix_len() != address.max_prefix_len() {
            return None;
        }
        let found = names.holder_of(scope, address.addr());
        let Some(holder) = found.holders.first() else {
            let is_own = || self.ranges.load().iter().any(|range| range.overlaps(Prefix::alone(address.addr())));
            let denied = Found { records: Vec::new(), code: ResponseCode::NXDomain };
            return (found.is_known || is_own()).then_some(denied);
        };
        let target = self.full_name(holder.names.first()?, holder)?;
        let record = Record::from_rdata(query.name.clone(), TTL, RData::PTR(PTR(target)));
        let records = if query.query_type == RecordType::PTR { vec![record] } else { Vec::new() };
        Some(Found { records, code: ResponseCode::NoError })
    }

    /// The name by which everybody finds a container: `name.network.domain`.
    fn full_name(&self, own: &str, holder: &Holder) -> Option<Name> {
        let labels = own.split('.').chain(holder.segment.iter().flat_map(|segment| segment.split('.')));
        let labels = labels.map(str::as_bytes).chain(self.domain.iter());
        let mut name = Name::from_labels(labels).ok()?;
        name.set_fqdn(true);
        Some(name)
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Message;
    use weft_crypto::HostLabel;

    use super::super::tests::{answer, ask, data, endpoint, names, question};
    use super::super::{Transport, Verdict};
    use super::*;

    fn answer_from(names: &Names, name: &str, kind: RecordType, transport: Transport) -> Message {
        let Verdict::Answer(bytes) = ask(names, &question(name, kind).to_vec().unwrap(), transport) else {
            panic!("{name}: no answer")
        };
        Message::from_vec(&bytes).unwrap_or_else(|error| panic!("{name}: {} bytes: {error}", bytes.len()))
    }

    #[test]
    fn reverse_names_and_services_are_told() {
        assert_eq!(data(&answer("1.0.0.10.in-addr.arpa.", RecordType::PTR)), ["web.app.weft.internal."]);
        let v6 = Name::from("fd00::1".parse::<IpAddr>().unwrap()).to_ascii();
        assert_eq!(data(&answer(&v6, RecordType::PTR)), ["web.app.weft.internal."]);
        for name in ["_http._tcp.web.", "_http._tcp.web.app.weft.internal.", "_80._TCP.web."] {
            let message = answer(name, RecordType::SRV);
            assert_eq!(message.answers.len(), 2, "{name}");
            assert!(data(&message)[0].ends_with("80 id-10-0-0-1.app.weft.internal."), "{:?}", data(&message));
        }
    }

    fn strings(message: &Message) -> Vec<Vec<String>> {
        let of = |record: &Record| match &record.data {
            RData::TXT(text) => text.txt_data.iter().map(|part| String::from_utf8_lossy(part).into_owned()).collect(),
            other => panic!("{other:?}"),
        };
        message.answers.iter().map(of).collect()
    }

    #[test]
    fn a_txt_record_says_what_and_where_each_holder_is() {
        let told = strings(&answer("web.", RecordType::TXT));
        assert_eq!(told[0], ["name=web", "host=here", "network=app", "healthy=yes"]);
        assert_eq!(told[1], ["name=web", "host=there", "network=app", "healthy=yes"]);
    }

    #[test]
    fn a_name_longer_than_a_string_of_txt_does_not_cost_the_answer() {
        let long = format!("{0}.{0}.{0}.{1}", "x".repeat(63), "y".repeat(61));
        assert_eq!(long.len(), 253);
        for length in 240..=253 {
            let mut names = names();
            names.set(HostLabel([1; 6]), [7; 16], endpoint(&long[253 - length..], "app", &["10.0.0.7"]));
            let message = answer_from(&names, "id-10-0-0-7.", RecordType::TXT, Transport::Tcp);
            let told = strings(&message).concat();
            assert!(told.contains(&"host=here".to_owned()), "{length}: {told:?}");
            assert_eq!(told.iter().any(|text| text.starts_with("name=")), length <= 250, "{length}");
        }
    }

    #[test]
    fn more_holders_than_a_message_holds_are_answered_with_as_many_as_fit() {
        let mut names = names();
        for number in 0..6000u16 {
            let [high, low] = number.to_be_bytes();
            let id = std::array::from_fn(|at| if at == 0 { high } else { low.wrapping_add(at as u8) });
            names.set(HostLabel([1; 6]), id, endpoint("many", "app", &[&format!("10.1.{high}.{low}")]));
        }
        for transport in [Transport::Udp, Transport::Tcp] {
            let message = answer_from(&names, "many.", RecordType::A, transport);
            let (count, is_cut) = (message.answers.len(), message.metadata.truncation);
            assert!(is_cut && count > 20, "{transport:?}: {count}, {is_cut}, {:?}", message.metadata.response_code);
        }
    }
}
