//! Addresses as options give them: of peers, to listen on, to be reached at.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::de::Error;
use serde::{Deserialize, Deserializer};
use weft_mesh::path::Transport;
use weft_mesh::records::{Advertised, MAX_ADVERTISED};

use crate::error::{Failure, Result};
use crate::transport::tcp::Listen;

/// The port that routers listen on.
pub const DEFAULT_PORT: u16 = 6783;
/// An address with a transport: `[udp://|tcp://]ADDR:PORT`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TransportAddress {
    /// By which transport; none: both.
    transport: Option<Transport>,
    address: SocketAddr,
}

impl FromStr for TransportAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (transport, rest) = match text.split_once("://") {
            Some(("udp", rest)) => (Some(Transport::Udp), rest),
            Some(("tcp", rest)) => (Some(Transport::Tcp), rest),
            _ => (None, text),
        };
        let address = rest.parse().map_err(|_| format!("'{text}' is no address: it takes [udp://|tcp://]ADDR:PORT"))?;
        Ok(TransportAddress { transport, address })
    }
}

/// Works out which addresses are told to others from what `--advertise` says.
pub fn advertised(addresses: &[TransportAddress]) -> Result<Advertised> {
    let mut advertised = Advertised::default();
    for TransportAddress { transport, address } in addresses {
        if address.ip().is_unspecified() || address.ip().is_multicast() || address.port() == 0 {
            return Err(Failure::Usage(format!(
                "--advertise takes an address that other hosts can send to, not {address}"
            )));
        }
        let lists = [(Transport::Udp, &mut advertised.udp), (Transport::Tcp, &mut advertised.tcp)];
        for (_, list) in lists.into_iter().filter(|(by, _)| transport.is_none_or(|transport| transport == *by)) {
            if !list.contains(address) {
                list.push(*address);
            }
        }
    }
    if advertised.udp.len().max(advertised.tcp.len()) > MAX_ADVERTISED {
        return Err(Failure::Usage(format!("--advertise takes {MAX_ADVERTISED} addresses at most")));
    }
    Ok(advertised)
}

/// Where a router listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListenOn {
    /// For datagrams.
    pub udp: SocketAddr,
    /// For connections.
    pub tcp: Vec<Listen>,
}

impl ListenOn {
    /// Works out where to listen from what `--listen` says.
    pub fn of(listen: &[TransportAddress]) -> Result<ListenOn> {
        let default = TransportAddress { transport: None, address: SocketAddr::from(([0u16; 8], DEFAULT_PORT)) };
        let by = |transport| move |listen: &&TransportAddress| listen.transport.is_none_or(|by| by == transport);
        let is_for_udp = listen.iter().any(|listen| by(Transport::Udp)(&listen));
        // What was not asked for is not necessary.
        let all: Vec<TransportAddress> = listen.iter().copied().chain((!is_for_udp).then_some(default)).collect();
        let mut udp = all.iter().filter(by(Transport::Udp)).map(|listen| listen.address);
        let (Some(first), None) = (udp.next(), udp.next()) else {
            return Err(Failure::Usage("--listen takes one address for UDP: put tcp:// before the others".into()));
        };
        let mut tcp: Vec<Listen> = Vec::new();
        for TransportAddress { transport, address } in all.into_iter().filter(|listen| by(Transport::Tcp)(&listen)) {
            if !tcp.iter().any(|listen| listen.address == address) {
                tcp.push(Listen { address, is_required: transport.is_some() });
            }
        }
        Ok(ListenOn { udp: first, tcp })
    }
}

/// Reads a value of the configuration file in the form that its flag has.
pub fn parsed<'de, D: Deserializer<'de>, T: FromStr<Err = String>>(from: D) -> Result<Option<T>, D::Error> {
    let text = String::deserialize(from)?;
    text.parse().map(Some).map_err(D::Error::custom)
}

/// Reads one such value, or a list of them.
pub fn one_or_more<'de, D: Deserializer<'de>, T: FromStr<Err = String>>(from: D) -> Result<Vec<T>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMore {
        One(String),
        More(Vec<String>),
    }
    let texts = match OneOrMore::deserialize(from)? {
        OneOrMore::One(text) => vec![text],
        OneOrMore::More(texts) => texts,
    };
    texts.iter().map(|text| text.parse().map_err(D::Error::custom)).collect()
}

/// Splits `host`, `ip`, `[ip6]`, each with an optional `:port`.
pub fn parse_peer(text: &str) -> Result<(String, u16)> {
    let bad =
        || Failure::Usage(format!("'{text}' is no peer: it takes host, ip or [ip6], each with an optional :port"));
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok((ip.to_string(), DEFAULT_PORT));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok((address.ip().to_string(), address.port()));
    }
    if let Some(ip) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return ip.parse::<std::net::Ipv6Addr>().map(|ip| (ip.to_string(), DEFAULT_PORT)).map_err(|_| bad());
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, port.parse().map_err(|_| bad())?),
        None => (text, DEFAULT_PORT),
    };
    let is_host = !host.is_empty()
        && host.len() <= 253
        && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'));
    if is_host && port != 0 { Ok((host.to_owned(), port)) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::cli::options::LaunchArgs;

    #[test]
    fn peers_come_in_four_shapes() {
        let ok =
            |text: &str, host: &str, port| assert_eq!(parse_peer(text).unwrap(), (host.to_owned(), port), "{text}");
        ok("node1", "node1", 6783);
        ok("node1.example:99", "node1.example", 99);
        ok("10.0.0.1", "10.0.0.1", 6783);
        ok("10.0.0.1:7", "10.0.0.1", 7);
        ok("fd00::1", "fd00::1", 6783);
        ok("[fd00::1]", "fd00::1", 6783);
        ok("[fd00::1]:9", "fd00::1", 9);
        for bad in ["", ":1", "a b", "host:0", "host:x", "[fd00::1", "host:70000"] {
            assert!(parse_peer(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_address_is_advertised_by_both_transports_unless_one_is_named() {
        let told = |texts: &[&str]| {
            let addresses = texts.iter().map(|text| text.parse()).collect::<Result<Vec<_>, _>>().unwrap();
            let Advertised { udp, tcp } = advertised(&addresses).map_err(|error| error.to_string())?;
            Ok([udp, tcp].map(|list| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")))
        };
        let lists = |udp: &str, tcp: &str| Ok::<_, String>([udp.to_owned(), tcp.to_owned()]);
        assert_eq!(told(&[]), lists("", ""));
        assert_eq!(told(&["203.0.113.1:7", "203.0.113.1:7"]), lists("203.0.113.1:7", "203.0.113.1:7"));
        assert_eq!(
            told(&["udp://[2001:db8::1]:7", "tcp://203.0.113.1:443"]),
            lists("[2001:db8::1]:7", "203.0.113.1:443")
        );
        for bad in ["0.0.0.0:7", "[::]:7", "224.0.0.1:7", "203.0.113.1:0"] {
            assert!(told(&[bad]).is_err_and(|error| error.contains(bad)), "{bad}");
        }
        let many: Vec<String> = (0..5).map(|port| format!("203.0.113.1:{}", 7000 + port)).collect();
        assert!(told(&many.iter().map(String::as_str).collect::<Vec<_>>()).is_err());
    }

    #[test]
    fn listening_is_by_both_transports_unless_one_is_named() {
        let on = |texts: &[&str]| {
            let listen = texts.iter().map(|text| text.parse()).collect::<Result<Vec<_>, _>>().unwrap();
            let ListenOn { udp, tcp } = ListenOn::of(&listen).ok()?;
            Some((udp.to_string(), tcp.iter().map(|at| (at.address.to_string(), at.is_required)).collect::<Vec<_>>()))
        };
        let at = |text: &str, is_required| (text.to_owned(), is_required);
        let default = "[::]:6783".to_owned();
        assert_eq!(on(&[]), Some((default.clone(), vec![at("[::]:6783", false)])));
        assert_eq!(on(&["10.0.0.1:7"]), Some(("10.0.0.1:7".into(), vec![at("10.0.0.1:7", false)])));
        assert_eq!(on(&["udp://10.0.0.1:7"]), Some(("10.0.0.1:7".into(), vec![])));
        let both = vec![at("[::]:443", true), at("[::]:6783", false)];
        assert_eq!(on(&["tcp://[::]:443"]), Some((default.clone(), both)));
        assert_eq!(on(&["tcp://[::]:6783"]), Some((default, vec![at("[::]:6783", true)])));
        assert_eq!(on(&["10.0.0.1:7", "udp://10.0.0.1:8"]), None, "one address for UDP");
        assert!("sctp://10.0.0.1:7".parse::<TransportAddress>().is_err() && "443".parse::<TransportAddress>().is_err());
        let file = |text: &str| LaunchArgs::from_toml(text, Path::new("config.toml"));
        assert_eq!(file("listen = \"tcp://[::]:443\"").unwrap().listen.len(), 1);
        let args = file("listen = [\"[::]:7\", \"tcp://[::]:443\"]\nproxy = \"http://proxy:8080\"").unwrap();
        assert_eq!((args.listen.len(), args.proxy.is_some()), (2, true));
        assert!(file("proxy = \"socks5://proxy\"").is_err() && file("listen = [\"x\"]").is_err());
    }
}
