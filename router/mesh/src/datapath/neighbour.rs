//! Who has which address, as frames ask and claim: ARP (RFC 826) and neighbour discovery (RFC 4861).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::datapath::frame::{
    ETHERTYPE_IPV6, ETHERTYPE_SERVICE_VLAN, ETHERTYPE_VLAN, Mac, complete_checksum, fold, priority_tags, put_u16,
    source, sum, u16_at,
};

const ETHERTYPE_ARP: u16 = 0x0806;
/// Bytes of a priority-tagged frame that are looked at: what is further back counts as hidden.
const BARE_LEN: usize = 256;
const PROTOCOL_ICMPV6: u8 = 58;
/// Where announcements come from: a bridge that learnt from them where the announced MAC is would be wrong where that is its own.
const ANNOUNCER: Mac = [0x02, 0x77, 0x65, 0x66, 0x74, 0x02];
const BROADCAST: Mac = [0xff; 6];

/// A question "who has this address?", by ARP or neighbour discovery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Solicitation {
    /// The MAC that asks.
    pub asker: Mac,
    /// The address it asks from; `None` for a probe (ARP sender 0.0.0.0, NS from `::`).
    pub asker_ip: Option<IpAddr>,
    /// The address asked for.
    pub target: IpAddr,
}

impl Solicitation {
    /// Reads an ARP request or a neighbour solicitation, priority-tagged or not.
    pub fn parse(frame: &[u8]) -> Option<Solicitation> {
        without_priority_tags(frame, Self::parse_bare)
    }

    fn parse_bare(frame: &[u8]) -> Option<Solicitation> {
        match u16_at(frame, 12)? {
            ETHERTYPE_ARP => {
                let (asker, asker_ip, target) = arp(frame, 1)?;
                Some(Solicitation { asker, asker_ip: (!asker_ip.is_unspecified()).then_some(asker_ip.into()), target })
            }
            ETHERTYPE_IPV6 => {
                let target = icmpv6_target(frame, 135)?;
                let asker = source(frame)?;
                let from = Ipv6Addr::from(*frame.get(22..)?.first_chunk::<16>()?);
                let asker_ip = (!from.is_unspecified()).then_some(from.into());
                Some(Solicitation { asker, asker_ip, target: target.into() })
            }
            _ => None,
        }
    }

    /// The answer that `mac` owns the target.
    pub fn answer(&self, mac: Mac) -> Vec<u8> {
        match self.target {
            IpAddr::V4(target) => self.arp_reply(mac, target),
            IpAddr::V6(target) => self.advertisement(mac, target),
        }
    }

    fn arp_reply(&self, mac: Mac, target: Ipv4Addr) -> Vec<u8> {
        let asker_ip = match self.asker_ip {
            Some(IpAddr::V4(ip)) => ip,
            _ => Ipv4Addr::UNSPECIFIED,
        };
        let mut frame = Vec::with_capacity(42);
        frame.extend_from_slice(&self.asker);
        frame.extend_from_slice(&mac);
        frame.extend_from_slice(&ETHERTYPE_ARP.to_be_bytes());
        frame.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0, 2]);
        frame.extend_from_slice(&mac);
        frame.extend_from_slice(&target.octets());
        frame.extend_from_slice(&self.asker);
        frame.extend_from_slice(&asker_ip.octets());
        frame
    }

    fn advertisement(&self, mac: Mac, target: Ipv6Addr) -> Vec<u8> {
        // A probe is answered to all nodes (RFC 4861, section 7.2.4).
        let to = match self.asker_ip {
            Some(IpAddr::V6(ip)) => ip,
            _ => Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
        };
        let solicited = if self.asker_ip.is_some() { 0x40 } else { 0 };
        let mut frame = Vec::with_capacity(86);
        frame.extend_from_slice(if self.asker_ip.is_some() { &self.asker } else { &[0x33, 0x33, 0, 0, 0, 1] });
        frame.extend_from_slice(&mac);
        frame.extend_from_slice(&ETHERTYPE_IPV6.to_be_bytes());
        frame.extend_from_slice(&[0x60, 0, 0, 0, 0, 32, PROTOCOL_ICMPV6, 255]);
        frame.extend_from_slice(&target.octets());
        frame.extend_from_slice(&to.octets());
        frame.extend_from_slice(&[136, 0, 0, 0, solicited | 0x20, 0, 0, 0]);
        frame.extend_from_slice(&target.octets());
        frame.extend_from_slice(&[2, 1]);
        frame.extend_from_slice(&mac);
        let pseudo = fold(sum(&frame[22..54]) + 32 + u64::from(PROTOCOL_ICMPV6));
        put_u16(&mut frame, 56, pseudo);
        complete_checksum(&mut frame, 54, 2);
        frame
    }
}

/// What tells everybody who knows another MAC for an address of this one: a gratuitous ARP request (RFC 5227, section 3) or
/// an unsolicited advertisement (RFC 4861, section 7.2.6).
pub(crate) fn announcement(mac: Mac, ip: IpAddr) -> Vec<u8> {
    let mut frame = match ip {
        IpAddr::V4(v4) => {
            let asked = Solicitation { asker: BROADCAST, asker_ip: Some(ip), target: ip };
            let mut frame = asked.arp_reply(mac, v4);
            // A reply would count for less: receivers then wait before they override what they heard a second ago.
            frame[21] = 1;
            frame
        }
        IpAddr::V6(_) => Solicitation { asker: BROADCAST, asker_ip: None, target: ip }.answer(mac),
    };
    frame[6..12].copy_from_slice(&ANNOUNCER);
    frame
}

/// The (MAC, address) that a frame claims to be true: an ARP packet's sender, an advertisement's target, a
/// solicitation's source.
pub fn claim(frame: &[u8]) -> Option<(Mac, IpAddr)> {
    without_priority_tags(frame, bare_claim)
}

fn bare_claim(frame: &[u8]) -> Option<(Mac, IpAddr)> {
    match u16_at(frame, 12)? {
        ETHERTYPE_ARP => {
            let (mac, ip, _) = arp(frame, 1).or_else(|| arp(frame, 2))?;
            (!ip.is_unspecified()).then_some((mac, ip.into()))
        }
        ETHERTYPE_IPV6 => {
            // An advertisement claims its target, a solicitation the address it comes from (RFC 4861, 7.2.3).
            let (ip, option_kind) = match icmpv6_target(frame, 136) {
                Some(target) => (target, 2),
                None => {
                    icmpv6_target(frame, 135)?;
                    (Ipv6Addr::from(*frame.get(22..)?.first_chunk::<16>()?), 1)
                }
            };
            let option = frame.get(78..86).filter(|option| option[..2] == [option_kind, 1]);
            let mac = option.and_then(|option| option[2..].first_chunk::<6>().copied()).or_else(|| source(frame))?;
            (!ip.is_unspecified()).then_some((mac, ip.into()))
        }
        _ => None,
    }
}

/// Whether a frame may carry a claim to a MAC or address that [`claim`] cannot see, though a receiver would: ARP of other
/// kinds than Ethernet and IPv4, neighbour discovery behind IPv6 extension headers.
pub fn hides_claim(frame: &[u8]) -> bool {
    without_priority_tags(frame, hides_bare_claim)
}

fn hides_bare_claim(frame: &[u8]) -> bool {
    match u16_at(frame, 12) {
        Some(ETHERTYPE_ARP) => arp(frame, 1).or_else(|| arp(frame, 2)).is_none(),
        Some(ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN) => u16_at(frame, 14).is_none(),
        Some(ETHERTYPE_IPV6) => hides_discovery(frame).unwrap_or(true),
        _ => false,
    }
}

/// Has `look` see a frame as receivers do that take a tag of no VLAN (IEEE 802.1Q, VID 0) for none.
#[inline]
fn without_priority_tags<T>(frame: &[u8], look: impl Fn(&[u8]) -> T) -> T {
    match priority_tags(frame) {
        0 => look(frame),
        tags => look_behind_tags(frame, tags, look),
    }
}

#[cold]
#[inline(never)]
fn look_behind_tags<T>(frame: &[u8], tags: usize, look: impl Fn(&[u8]) -> T) -> T {
    let mut bare = [0; BARE_LEN];
    let rest = &frame[12 + tags..];
    let len = 12 + rest.len().min(BARE_LEN - 12);
    bare[..12].copy_from_slice(&frame[..12]);
    bare[12..len].copy_from_slice(&rest[..len - 12]);
    look(&bare[..len])
}

/// `None`: the headers end too soon, or are too many.
fn hides_discovery(frame: &[u8]) -> Option<bool> {
    const MOST: usize = 8;
    let (mut next, mut at) = (*frame.get(20)?, 54);
    for walked in 0..MOST {
        let length = match next {
            // Hop-by-hop, routing and destination options; fragment; authentication (RFC 8200, section 4; RFC 4302).
            0 | 43 | 60 => (usize::from(*frame.get(at + 1)?) + 1) * 8,
            // What follows a later fragment's header is payload (RFC 8200, section 4.5).
            44 if u16_at(frame, at + 2)? >> 3 != 0 => return Some(false),
            44 => 8,
            51 => (usize::from(*frame.get(at + 1)?) + 2) * 4,
            PROTOCOL_ICMPV6 if walked > 0 => return Some((133..=137).contains(frame.get(at)?)),
            _ => return Some(false),
        };
        next = *frame.get(at)?;
        at += length;
    }
    None
}

fn arp(frame: &[u8], operation: u16) -> Option<(Mac, Ipv4Addr, IpAddr)> {
    let body = frame.get(14..42)?;
    if body[..6] != [0, 1, 8, 0, 6, 4] || u16_at(body, 6)? != operation {
        return None;
    }
    let ip = |at: usize| body.get(at..)?.first_chunk::<4>().map(|ip| Ipv4Addr::from(*ip));
    Some((*body.get(8..)?.first_chunk::<6>()?, ip(14)?, ip(24)?.into()))
}

fn icmpv6_target(frame: &[u8], kind: u8) -> Option<Ipv6Addr> {
    // Neighbour discovery is sent with hop limit 255 and no other (RFC 4861, section 7.1).
    let is_nd = *frame.get(20)? == PROTOCOL_ICMPV6 && *frame.get(21)? == 255 && *frame.get(54)? == kind;
    is_nd.then_some(Ipv6Addr::from(*frame.get(62..)?.first_chunk::<16>()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn claims_in_disguise_are_found() {
        let arp = |hardware: u8, operation: u8| {
            let head = [[0xff; 6], [2, 0, 0, 0, 0, 1]].concat();
            [&head[..], &[8, 6, 0, hardware, 8, 0, 6, 4, 0, operation], &[9; 20]].concat()
        };
        assert!(!hides_claim(&arp(1, 1)) && !hides_claim(&arp(1, 2)));
        assert!(hides_claim(&arp(6, 2)) && hides_claim(&arp(1, 9)) && hides_claim(&arp(1, 2)[..30]));
        let tagged = |tag: [u8; 2], frame: &[u8]| [&frame[..12], &[0x81, 0], &tag, &frame[12..]].concat();
        // A receiver takes a frame with a priority tag for one without: so do the checks.
        for operation in [1, 2] {
            let plain = arp(1, operation);
            let prioritised = tagged([0xe0, 0], &tagged([0x20, 0], &plain));
            assert!(!hides_claim(&prioritised));
            assert_eq!((claim(&prioritised), claim(&plain).is_some()), (claim(&plain), true));
            assert_eq!(Solicitation::parse(&prioritised), Solicitation::parse(&plain));
        }
        assert!(hides_claim(&tagged([0xe0, 0], &arp(6, 2))) && !hides_claim(&tagged([0, 7], &arp(6, 2))));
        assert!(hides_claim(&tagged([0xe0, 0], &arp(1, 2))[..14]), "a tag without its end");
        let v6 = |next: u8, rest: &[u8]| {
            let mut frame = arp(1, 1)[..12].to_vec();
            frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, 0, 60, next, 255]);
            frame.extend_from_slice(&[0xfd; 32]);
            frame.extend_from_slice(rest);
            frame
        };
        let options = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
        assert!(!hides_claim(&v6(58, &[136; 40])), "plain neighbour discovery is seen");
        assert!(hides_claim(&v6(0, &[&options(58)[..], &[136; 40]].concat())));
        assert!(!hides_claim(&v6(0, &[&options(58)[..], &[143; 40]].concat())), "multicast listener reports pass");
        assert!(!hides_claim(&v6(60, &[&options(17)[..], &[136; 40]].concat())));
        // A fragment's header: the first part may have a claim behind it, in the others it is payload.
        let fragment = |offset: u16| [&[58, 0][..], &(offset << 3 | 1).to_be_bytes(), &[0; 4], &[136; 40]].concat();
        assert!(hides_claim(&v6(60, &[&options(44)[..], &fragment(0)].concat())));
        assert!(hides_claim(&v6(44, &fragment(0))) && !hides_claim(&v6(44, &fragment(185))));
        assert!(hides_claim(&v6(0, &[0; 400])), "headers without end");
        assert!(hides_claim(&v6(0, &[])));
    }

    #[test]
    fn arp_and_nd_questions_get_answers_that_claim_the_right_thing() {
        let asker = [2, 0, 0, 0, 0, 9];
        let owner = [2, 0, 0, 0, 0, 7];
        let v4 =
            Solicitation { asker, asker_ip: Some(IpAddr::from([10, 0, 0, 1])), target: IpAddr::from([10, 0, 0, 7]) };
        let v6 = Solicitation { asker, asker_ip: Some("fd00::1".parse().unwrap()), target: "fd00::7".parse().unwrap() };
        for question in [v4, v6, Solicitation { asker_ip: None, ..v6 }] {
            let answer = question.answer(owner);
            assert_eq!(claim(&answer), Some((owner, question.target)));
            assert_eq!(source(&answer), Some(owner));
            let announced = announcement(owner, question.target);
            assert_eq!(claim(&announced), Some((owner, question.target)));
            assert!(crate::datapath::frame::is_group(&announced[..6].try_into().unwrap()));
            assert_ne!(source(&announced), Some(owner));
        }
        let gratuitous = Solicitation::parse(&announcement(owner, v4.target)).unwrap();
        assert_eq!((gratuitous.asker_ip, gratuitous.target), (Some(v4.target), v4.target));
        let advertisement = v6.answer(owner);
        let pseudo = sum(&advertisement[22..54]) + 32 + 58;
        assert_eq!(fold(pseudo + sum(&advertisement[54..])), 0xffff);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_views_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..3usize) {
            let mut frame = bytes;
            put_u16(&mut frame, 12, [ETHERTYPE_IPV6, ETHERTYPE_ARP, ETHERTYPE_VLAN][kind]);
            if let Some(question) = Solicitation::parse(&frame) {
                question.answer([2; 6]);
            }
            claim(&frame);
            hides_claim(&frame);
        }
    }
}
