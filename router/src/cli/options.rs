//! How a router is told to run: flags, then the environment, then the configuration file, then defaults.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::FalseyValueParser;
use clap::{Args, ValueEnum};
use serde::Deserialize;
use weft_mesh::records::{self, Advertised};

use crate::attach::prefix::Prefix;
use crate::cli::addresses::{ListenOn, TransportAddress, advertised, one_or_more, parse_peer, parsed};
use crate::daemon::state::SecretSource;
use crate::dataplane::polling::BusyPoll;
use crate::error::{Doing, Failure, Result};
use crate::host::metered::MeteredLink;
use crate::transport::tcp::{Listen, Proxy};

/// The engine's socket, unless told otherwise.
pub const DEFAULT_DOCKER_SOCKET: &str = "/var/run/docker.sock";
/// Where metrics are served, unless told otherwise: for this host alone.
const DEFAULT_HTTP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 6784);
/// How many seconds a host may be gone before others take its place.
const DEFAULT_GRACE: u64 = 3600;
/// The longest domain: with a container's and a network's name before it, it still is a domain name.
const MAX_DOMAIN: usize = 100;
/// The control socket, unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/weft/weft.sock";

/// How frames get in and out of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TapMode {
    /// A TAP with offloads: super-frames of up to 64 KB.
    Fast,
    /// A plain TAP.
    Basic,
    /// A packet socket, for users who may not open /dev/net/tun.
    Packet,
}

impl TapMode {
    /// As it is written on the command line.
    pub fn name(self) -> &'static str {
        match self {
            TapMode::Fast => "fast",
            TapMode::Basic => "basic",
            TapMode::Packet => "packet",
        }
    }
}

/// The options of `launch`, as flags, environment or file give them.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct LaunchArgs {
    /// Hosts to link to.
    #[arg(help = "Hosts to link to: host, ip or [ip6], each with an optional :port", value_name = "PEER")]
    #[serde(skip)]
    pub peers: Vec<String>,
    /// Read options from this TOML file
    #[arg(long, env = "WEFT_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Control socket, a flag of every command.
    #[arg(skip)]
    pub socket: Option<PathBuf>,
    /// Nickname [default: the host name]
    #[arg(long, env = "WEFT_NAME")]
    pub name: Option<String>,
    /// The network's secret(s), one a line, the first used first
    #[arg(long, env = "WEFT_SECRET_FILE", value_name = "FILE")]
    pub secret_file: Option<PathBuf>,
    /// Addresses to listen on.
    #[arg(long, env = "WEFT_LISTEN", value_name = "ADDR:PORT", value_delimiter = ',')]
    #[arg(
        help = "Address to listen on, by UDP and TCP, or by one with udp:// or tcp:// before it; may be repeated [default: [::]:6783, \
                both families]"
    )]
    #[serde(deserialize_with = "one_or_more")]
    pub listen: Vec<TransportAddress>,
    /// Addresses elsewhere that lead to this host.
    #[arg(long, env = "WEFT_ADVERTISE", value_name = "ADDR:PORT", value_delimiter = ',')]
    #[arg(
        help = "Address elsewhere that leads to this host, such as a port that its NAT maps, by UDP and TCP, or by one with udp:// or \
                tcp:// before it; may be repeated"
    )]
    #[serde(deserialize_with = "one_or_more")]
    pub advertise: Vec<TransportAddress>,
    /// Do not ask the NAT before this host, by PCP, NAT-PMP or UPnP, to map a port to it
    #[arg(long, env = "WEFT_NO_PORT_MAPPING", value_parser = FalseyValueParser::new())]
    pub no_port_mapping: bool,
    /// Relay nothing between other hosts
    #[arg(long, env = "WEFT_NO_RELAY", value_parser = FalseyValueParser::new())]
    pub no_relay: bool,
    /// Send and receive as little as possible while no frames go, for connections paid by the byte; implies --no-relay
    #[arg(long, env = "WEFT_METERED", value_parser = FalseyValueParser::new())]
    pub metered: bool,
    /// Lines that are paid for by the byte.
    #[arg(long, env = "WEFT_METERED_LINK", value_name = "INTERFACE|ADDR/LEN", value_delimiter = ',')]
    #[arg(
        help = "Interface, or network of other hosts, whose line is paid for by the byte: as little as possible goes that way, and frames only \
                where there is no other; may be repeated"
    )]
    #[serde(deserialize_with = "one_or_more")]
    pub metered_link: Vec<MeteredLink>,
    /// Open TCP connections to other hosts by way of this HTTP proxy
    #[arg(long, env = "WEFT_PROXY", value_name = "URL")]
    #[arg(help = "HTTP proxy for TCP connections to other hosts: http://[USER:PASSWORD@]HOST[:PORT]")]
    #[serde(deserialize_with = "parsed")]
    pub proxy: Option<Proxy>,
    /// Identity key and store [default: /var/lib/weft]
    #[arg(long, env = "WEFT_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// IPv4 addresses for containers [default: 10.32.0.0/12]
    #[arg(long, env = "WEFT_RANGE", value_name = "CIDR", help_heading = "Addresses")]
    pub range: Option<Prefix>,
    /// Containers' MTU in bytes [default: the underlay's, less 50]
    #[arg(long, env = "WEFT_MTU", value_name = "BYTES", help_heading = "Tuning")]
    pub mtu: Option<usize>,
    /// Link only to the peers named
    #[arg(long, env = "WEFT_NO_DISCOVERY", value_parser = FalseyValueParser::new(), help_heading = "Tuning")]
    pub no_discovery: bool,
    /// How frames get in and out of the kernel [default: fast]
    #[arg(long, env = "WEFT_TAP", value_name = "MODE", help_heading = "Tuning")]
    pub tap: Option<TapMode>,
    /// Found a new address ring although peers are named
    #[arg(long, env = "WEFT_FOUND", value_parser = FalseyValueParser::new(), help_heading = "Addresses")]
    pub found: bool,
    /// How long a host may be gone before its records and its free addresses go to others
    #[arg(long, env = "WEFT_GRACE", value_name = "SECONDS", help_heading = "Addresses")]
    #[arg(help = "Seconds a host may be gone before its records and free addresses go to others [default: 3600]")]
    pub grace: Option<u64>,
    /// Answer no names
    #[arg(long, env = "WEFT_NO_DNS", value_parser = FalseyValueParser::new(), help_heading = "Names")]
    pub no_dns: bool,
    /// One more place to answer names
    #[arg(long, env = "WEFT_DNS_LISTEN", value_name = "ADDR:PORT", help_heading = "Names")]
    pub dns_listen: Option<SocketAddr>,
    /// Disable the Docker network and IPAM driver
    #[arg(long, env = "WEFT_NO_DOCKER", value_parser = FalseyValueParser::new(), help_heading = "Docker")]
    pub no_docker: bool,
    /// Do not create networks here that exist on other hosts
    #[arg(long, env = "WEFT_NO_SPREAD", value_parser = FalseyValueParser::new(), help_heading = "Docker")]
    pub no_spread: bool,
    /// Where the engine looks for plugins [default: /run/docker/plugins]
    #[arg(long, env = "WEFT_PLUGIN_DIR", value_name = "DIR", help_heading = "Docker")]
    pub plugin_dir: Option<PathBuf>,
    /// Domain of container names [default: weft.internal]
    #[arg(long, env = "WEFT_DNS_DOMAIN", value_name = "NAME", help_heading = "Names")]
    pub dns_domain: Option<String>,
    /// Join without a secret: anyone may
    #[arg(long, env = "WEFT_INSECURE", value_parser = FalseyValueParser::new())]
    pub insecure: bool,
    /// The engine's API socket [default: /var/run/docker.sock]
    #[arg(long, env = "WEFT_DOCKER_SOCKET", value_name = "FILE", help_heading = "Docker")]
    pub docker_socket: Option<PathBuf>,
    /// Where to serve metrics.
    #[arg(long, env = "WEFT_HTTP", value_name = "ADDR:PORT")]
    #[arg(help = "Serve a page and metrics by HTTP at this address; 'none' for nowhere [default: 127.0.0.1:6784]")]
    pub http: Option<String>,
    /// Where to send records of flows.
    #[arg(long, env = "WEFT_FLOW_EXPORT", value_name = "ADDR:PORT")]
    #[arg(
        help = "Send records of flows between hosts by IPFIX to the collector at this address, or name, and UDP port"
    )]
    pub flow_export: Option<String>,
    /// Seal with ChaCha20-Poly1305 even where there is hardware for AES
    #[arg(long, env = "WEFT_NO_AES", value_parser = FalseyValueParser::new(), help_heading = "Tuning")]
    pub no_aes: bool,
    /// Packet workers [default: one per core]
    #[arg(long, env = "WEFT_WORKERS", value_name = "N", help_heading = "Tuning")]
    pub workers: Option<usize>,
    /// Microseconds a packet worker stays awake for the next packet before it sleeps, instead of as long as that pays.
    #[arg(long, env = "WEFT_BUSY_POLL", value_name = "MICROSECONDS", help_heading = "Tuning")]
    #[arg(
        help = "Microseconds a packet worker stays awake for the next packet, 0 for never [default: 50 where that pays]"
    )]
    pub busy_poll: Option<u64>,
    /// The least that is logged: error, warn, info, debug or trace [default: info]
    #[arg(long, env = "WEFT_LOG_LEVEL", value_name = "LEVEL", help_heading = "Logging")]
    pub log_level: Option<String>,
    /// Append the log to this file instead of writing it to standard error
    #[arg(long, env = "WEFT_LOG_FILE", value_name = "FILE", help_heading = "Logging")]
    pub log_file: Option<PathBuf>,
    /// Log in JSON, an object a line
    #[arg(long, env = "WEFT_LOG_JSON", value_parser = FalseyValueParser::new(), help_heading = "Logging")]
    pub log_json: bool,
}

/// The options, complete.
#[derive(Clone, Debug)]
pub struct Options {
    /// Hosts to link to.
    pub peers: Vec<String>,
    /// Nickname.
    pub name: String,
    /// Where the secrets come from.
    pub secrets: SecretSource,
    /// Addresses to listen on.
    pub listen: ListenOn,
    /// Addresses elsewhere that lead to it.
    pub advertised: Advertised,
    /// Whether the NAT before it is asked to map a port to it.
    pub maps_ports: bool,
    /// Whether it relays between other hosts.
    pub relays: bool,
    /// Whether its bytes are paid for.
    pub is_metered: bool,
    /// Lines that are paid for by the byte.
    pub metered_links: Vec<MeteredLink>,
    /// The way of TCP connections, if not straight.
    pub proxy: Option<Proxy>,
    /// Identity key and store.
    pub state_dir: PathBuf,
    /// Control socket.
    pub socket: PathBuf,
    /// Addresses for containers.
    pub range: Prefix,
    /// Containers' MTU, if given.
    pub mtu: Option<usize>,
    /// Whether to link to hosts not named.
    pub discovery: bool,
    /// How frames get in and out.
    pub tap: TapMode,
    /// Whether to found a ring of addresses although peers are named.
    pub found: bool,
    /// How long a host may be gone before others take its place.
    pub grace: Duration,
    /// Whether to answer names.
    pub dns: bool,
    /// One more place to answer names.
    pub dns_listen: Option<SocketAddr>,
    /// Whether to be a network driver for a Docker engine.
    pub docker: bool,
    /// Whether to make networks here that were made on other hosts.
    pub spread: bool,
    /// Where the engine looks for plugins.
    pub plugin_dir: PathBuf,
    /// Domain of container names.
    pub dns_domain: String,
    /// The engine's socket.
    pub docker_socket: PathBuf,
    /// Where to serve metrics.
    pub http: Option<Listen>,
    /// Where to send records of flows, as `HOST:PORT`.
    pub flow_export: Option<String>,
    /// Whether AES-256-GCM may be used.
    pub aes: bool,
    /// Packet workers.
    pub workers: usize,
    /// How long a packet worker stays awake for the next packet.
    pub busy_poll: BusyPoll,
}

impl LaunchArgs {
    /// Fills in from the configuration file what flags and environment left open.
    pub fn with_file(mut self) -> Result<Self> {
        let Some(path) = self.config.clone() else { return Ok(self) };
        let text = std::fs::read_to_string(&path).doing(|| cannot_use(&path))?;
        let file = LaunchArgs::from_toml(&text, &path)?;
        self.socket = self.socket.or(file.socket);
        self.name = self.name.or(file.name);
        self.secret_file = self.secret_file.or(file.secret_file);
        if self.listen.is_empty() {
            self.listen = file.listen;
        }
        if self.advertise.is_empty() {
            self.advertise = file.advertise;
        }
        self.no_port_mapping |= file.no_port_mapping;
        self.no_relay |= file.no_relay;
        self.metered |= file.metered;
        if self.metered_link.is_empty() {
            self.metered_link = file.metered_link;
        }
        self.proxy = self.proxy.or(file.proxy);
        self.state_dir = self.state_dir.or(file.state_dir);
        self.range = self.range.or(file.range);
        self.mtu = self.mtu.or(file.mtu);
        self.no_discovery |= file.no_discovery;
        self.tap = self.tap.or(file.tap);
        self.found |= file.found;
        self.grace = self.grace.or(file.grace);
        self.no_dns |= file.no_dns;
        self.dns_listen = self.dns_listen.or(file.dns_listen);
        self.no_docker |= file.no_docker;
        self.no_spread |= file.no_spread;
        self.plugin_dir = self.plugin_dir.or(file.plugin_dir);
        self.dns_domain = self.dns_domain.or(file.dns_domain);
        self.insecure |= file.insecure;
        self.docker_socket = self.docker_socket.or(file.docker_socket);
        self.http = self.http.or(file.http);
        self.flow_export = self.flow_export.or(file.flow_export);
        self.no_aes |= file.no_aes;
        self.workers = self.workers.or(file.workers);
        self.busy_poll = self.busy_poll.or(file.busy_poll);
        self.log_file = self.log_file.or(file.log_file);
        self.log_level = self.log_level.or(file.log_level);
        self.log_json |= file.log_json;
        Ok(self)
    }

    /// Reads the text of the configuration file at `path`.
    pub fn from_toml(text: &str, path: &Path) -> Result<Self> {
        toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
            Failure::Usage(format!("{}, line {line}: {}", cannot_use(path), error.message()))
        })
    }

    /// Checks the options and fills in the defaults.
    pub fn resolve(self) -> Result<Options> {
        let host_name = || nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        let name = self.name.or_else(host_name).unwrap_or_else(|| "host".into());
        if !records::is_name(&name) {
            return Err(Failure::Usage(format!(
                "{name} cannot be a nickname: 1 to 63 letters, digits, '-', '_' or '.'; choose one with --name"
            )));
        }
        if self.mtu.is_some_and(|mtu| !(weft_mesh::wire::MIN_MTU..=65_000).contains(&mtu)) {
            return Err(Failure::Usage("--mtu takes 1280 to 65000".into()));
        }
        let range = self.range.unwrap_or(Prefix(IpAddr::from([10, 32, 0, 0]), 12));
        if !range.0.is_ipv4() || range.network() != range || !(8..=29).contains(&range.1) {
            return Err(Failure::Usage("--range takes an IPv4 network of /8 to /29, such as 10.32.0.0/12".into()));
        }
        let text = std::env::var("WEFT_SECRET").ok();
        let secrets = match (self.secret_file, text, self.insecure) {
            (Some(file), _, _) => SecretSource::File(file),
            (None, Some(text), _) => SecretSource::Text(text),
            (None, None, true) => SecretSource::Insecure,
            (None, None, false) => {
                return Err(Failure::Usage(
                    "no secret: make one with '(umask 077; weft secret new > FILE)' and give it to each host with \
                     --secret-file FILE (or say --insecure: anyone may join)"
                        .into(),
                ));
            }
        };
        for peer in &self.peers {
            parse_peer(peer)?;
        }
        if self.dns_listen.is_some_and(|address| address.ip().is_unspecified()) {
            return Err(Failure::Usage("--dns-listen takes one address of this host, not all of them".into()));
        }
        let domain = self.dns_domain.unwrap_or_else(|| "weft.internal".into()).trim_matches('.').to_ascii_lowercase();
        if domain.len() > MAX_DOMAIN || !domain.split('.').all(|label| !label.is_empty() && records::is_name(label)) {
            return Err(Failure::Usage(
                "--dns-domain takes labels with dots between them, such as weft.internal".into(),
            ));
        }
        if self.grace.is_some_and(|grace| !(10..=30 * 24 * 3600).contains(&grace)) {
            return Err(Failure::Usage("--grace takes 10 to 2592000 seconds".into()));
        }
        if self.busy_poll.is_some_and(|micros| micros > 1000) {
            return Err(Failure::Usage("--busy-poll takes 0 to 1000 microseconds".into()));
        }
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(Options {
            peers: self.peers,
            name,
            secrets,
            listen: ListenOn::of(&self.listen)?,
            advertised: advertised(&self.advertise)?,
            maps_ports: !self.no_port_mapping,
            relays: !self.no_relay,
            is_metered: self.metered,
            metered_links: self.metered_link,
            proxy: self.proxy,
            state_dir: self.state_dir.unwrap_or_else(|| "/var/lib/weft".into()),
            socket: self.socket.unwrap_or_else(|| DEFAULT_SOCKET.into()),
            range,
            mtu: self.mtu,
            discovery: !self.no_discovery,
            tap: self.tap.unwrap_or(TapMode::Fast),
            found: self.found,
            grace: Duration::from_secs(self.grace.unwrap_or(DEFAULT_GRACE)),
            dns: !self.no_dns,
            dns_listen: self.dns_listen,
            docker: !self.no_docker,
            spread: !self.no_spread,
            plugin_dir: self.plugin_dir.unwrap_or_else(|| "/run/docker/plugins".into()),
            dns_domain: domain,
            docker_socket: self.docker_socket.unwrap_or_else(|| DEFAULT_DOCKER_SOCKET.into()),
            http: http_listen(self.http.as_deref())?,
            flow_export: self.flow_export.as_deref().map(collector).transpose()?,
            aes: !self.no_aes,
            workers: self.workers.unwrap_or(cores).clamp(1, 64),
            busy_poll: match self.busy_poll {
                Some(micros) => BusyPoll::Fixed(Duration::from_micros(micros)),
                None => BusyPoll::Adaptive,
            },
        })
    }
}

fn http_listen(option: Option<&str>) -> Result<Option<Listen>> {
    match option {
        None => Ok(Some(Listen { address: DEFAULT_HTTP, is_required: false })),
        Some("none") => Ok(None),
        Some(text) => {
            let address = text.parse().map_err(|_| {
                Failure::Usage(format!(
                    "--http takes an address with a port, such as 127.0.0.1:6784, or none, and not {text}"
                ))
            })?;
            Ok(Some(Listen { address, is_required: true }))
        }
    }
}

/// Checks the address of a collector of flows, which needs a port.
fn collector(text: &str) -> Result<String> {
    let port = text.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    let is_whole = text.parse::<std::net::Ipv6Addr>().is_err() && port.is_some_and(|port| port != 0);
    match parse_peer(text) {
        Ok(_) if is_whole => Ok(text.to_owned()),
        _ => Err(Failure::Usage(format!(
            "--flow-export takes an address or name with a UDP port, such as 192.0.2.7:4739, and not {text}"
        ))),
    }
}

fn cannot_use(path: &Path) -> String {
    format!("cannot use the configuration file {}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_options_are_refused_in_one_line() {
        let refused = |args: LaunchArgs| args.resolve().err().map(|error| error.to_string());
        let base = || LaunchArgs { insecure: true, name: Some("a".into()), ..LaunchArgs::default() };
        assert_eq!(refused(base()), None);
        let range = |text: &str| LaunchArgs { range: Some(text.parse().unwrap()), ..base() };
        for bad in [
            LaunchArgs { insecure: false, ..base() },
            LaunchArgs { mtu: Some(500), ..base() },
            LaunchArgs { busy_poll: Some(1001), ..base() },
            LaunchArgs { http: Some("6784".into()), ..base() },
            LaunchArgs { flow_export: Some("collector".into()), ..base() },
            LaunchArgs { flow_export: Some("a b:4739".into()), ..base() },
            LaunchArgs { flow_export: Some("fd00::1".into()), ..base() },
            LaunchArgs { flow_export: Some("10.0.0.1:0".into()), ..base() },
            LaunchArgs { name: Some("a b".into()), ..base() },
            LaunchArgs { peers: vec!["a:b:c".into()], ..base() },
            range("10.32.0.1/12"),
            range("fd00::/8"),
        ] {
            let message = refused(bad.clone());
            assert!(message.as_ref().is_some_and(|message| !message.contains('\n')), "{bad:?}: {message:?}");
        }
    }
}
