//! Names for containers: names that weft knows are answered from memory, all others by the resolvers that were asked before.
//!
//! A question's way: `udp` or `tcp` reads it, `zone` answers it or not, `upstream` asks others. `sandbox` brings
//! the questions of containers here without their doing.

mod framing;
mod meter;
mod sandbox;
mod sharing;
mod tally;
mod tcp;
mod udp;
mod upstream;
pub mod zone;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tracing::{debug, warn};
use weft_mesh::names::{Names, Scope};
use weft_mesh::wire::SegmentId;

use crate::attach::attachment::Place;
use crate::attach::attachments::Attachments;
use crate::attach::prefix::Prefix;
use crate::cli::options::Options;
use crate::dataplane::taps::bridge_name;
use crate::docker::{Docker, Sandbox};
use crate::error::{Doing, Result};
use crate::host::routing::Routing;
use crate::observe::tallies::Tallies;
use udp::{Listener, UdpServer};
use upstream::Upstream;
use zone::Zone;

/// How often it is looked where to listen.
const LOOK: Duration = Duration::from_secs(2);
/// How soon a container that could not be redirected is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(10);
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What every server works with.
pub struct Shared {
    zone: Zone,
    /// What the mesh knows.
    pub names: Arc<ArcSwap<Names>>,
    /// Where questions are counted.
    tallies: Tallies,
}

/// Who asks at a socket, and what they may hear of.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Audience {
    /// Containers of these segments.
    Segments(Vec<SegmentId>),
    /// One container: its segments, and its addresses there.
    Container(Vec<SegmentId>, Vec<IpAddr>),
    /// Any client that reaches this host, about one segment or about all; containers about their own segments only.
    Host(Option<SegmentId>),
}

/// What an asker may hear of.
enum Heard<'a> {
    All,
    /// What is said in these segments, to a container with these addresses.
    Of(Cow<'a, [SegmentId]>, Asker<'a>),
}

/// The addresses of an asker: where it asks from, or all that it has.
enum Asker<'a> {
    From([IpAddr; 1]),
    Has(&'a [IpAddr]),
}

impl Audience {
    /// What an asker at an address may hear of.
    fn scope(&self, names: &Names, from: IpAddr) -> Heard<'_> {
        let asker = Asker::From([from.to_canonical()]);
        match self {
            Audience::Segments(segments) => Heard::Of(segments.into(), asker),
            Audience::Container(segments, ips) => Heard::Of(segments.into(), Asker::Has(ips)),
            Audience::Host(about) => match (names.segments_of(from.to_canonical()), about) {
                (own, _) if !own.is_empty() => Heard::Of(own.into(), asker),
                (_, None) => Heard::All,
                (_, Some(_)) => Heard::Of(Cow::Borrowed(&[]), asker),
            },
        }
    }
}

impl Heard<'_> {
    fn as_scope(&self) -> Scope<'_> {
        match self {
            Heard::All => Scope::All,
            Heard::Of(segments, Asker::From(ip)) => Scope::Container(segments, ip),
            Heard::Of(segments, Asker::Has(ips)) => Scope::Container(segments, ips),
        }
    }
}

/// The DNS server.
pub struct Dns {
    shared: Arc<Shared>,
    udp: UdpServer,
    host: Arc<Upstream>,
    /// For askers that must not reach outside resolvers.
    closed: Arc<Upstream>,
    /// Where weft itself listens.
    own: Arc<Mutex<Vec<SocketAddr>>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    places: BTreeMap<ListenPlace, Serving>,
    sandboxes: BTreeMap<String, Resident>,
}

/// Where to listen: an address; the device, by name and index, if several bridges have the address; the clients it is for; and whether
/// they may get answers from outside of the mesh.
type ListenPlace = (SocketAddr, Option<(String, u32)>, Audience, bool);

struct Serving {
    udp: usize,
    tcp: JoinHandle<()>,
}

/// A container whose questions come here.
struct Resident {
    sandbox: Sandbox,
    /// None: it did not work.
    serving: Option<(Serving, JoinHandle<()>, File)>,
    since: Instant,
}

/// A name without the domain that weft's names are in.
pub fn relative<'a>(name: &'a str, domain: &str) -> &'a str {
    let name = name.trim_end_matches('.');
    let at = name.len().saturating_sub(domain.len());
    match name.split_at_checked(at) {
        Some((own, rest)) if rest.eq_ignore_ascii_case(domain) => own.strip_suffix('.').unwrap_or(name),
        _ => name,
    }
}

/// The addresses of a name, nearest first.
pub fn lookup(names: &Names, name: &str, domain: &str) -> Vec<IpAddr> {
    let mut holders = names.lookup(Scope::All, relative(name, domain)).holders;
    holders.sort_by_key(|holder| holder.distance);
    holders.into_iter().flat_map(|holder| holder.ips).map(|(ip, _)| *ip).collect()
}

impl Resident {
    /// What it is, and whether it is to be tried again.
    fn place(&self) -> (Sandbox, bool) {
        (self.sandbox.clone(), self.serving.is_none() && self.since.elapsed() > TRY_AGAIN)
    }
}

/// What the server answers from.
pub struct DnsParts {
    /// All names.
    pub names: Arc<ArcSwap<Names>>,
    /// The endpoints of this host.
    pub attachments: Arc<Attachments>,
    /// The network driver, which knows containers' namespaces.
    pub docker: Option<Arc<Docker>>,
    /// Routes to containers.
    pub routing: Arc<Routing>,
    /// Where questions are counted.
    pub tallies: Tallies,
}

impl Dns {
    /// Starts the server; its tasks end with `tasks`.
    pub fn start(options: &Options, parts: DnsParts, tasks: &mut JoinSet<()>) -> Result<Arc<Dns>> {
        let DnsParts { names, attachments, docker, routing, tallies } = parts;
        let shared = Arc::new(Shared { zone: Zone::new(&options.dns_domain)?, names, tallies });
        meter::prepare(&shared.tallies);
        let own = Arc::<Mutex<Vec<SocketAddr>>>::default();
        let dns = Arc::new(Dns {
            udp: UdpServer::start(shared.clone())?,
            shared,
            closed: Upstream::closed(),
            host: Upstream::host(RESOLV_CONF.into(), own.clone()),
            own,
            state: Mutex::default(),
        });
        if let Some(address) = options.dns_listen {
            let place = (address, None, Audience::Host(None), true);
            let serving = dns.listen(&place)?;
            dns.state().places.insert(place, serving);
            dns.note_own();
        }
        tasks.spawn(keep_places(dns.clone(), attachments, routing, options.dns_listen));
        if let Some(docker) = docker {
            tasks.spawn(keep_sandboxes(dns.clone(), docker));
        }
        Ok(dns)
    }

    /// Where it listens, for people; and how many containers ask it without knowing.
    pub fn places(&self) -> (Vec<String>, usize, usize) {
        let state = self.state();
        // Several bridges may have one gateway address.
        let listen: BTreeSet<SocketAddr> = state.places.keys().map(|(address, ..)| *address).collect();
        let served = state.sandboxes.values().filter(|resident| resident.serving.is_some()).count();
        (listen.iter().map(SocketAddr::to_string).collect(), served, state.sandboxes.len() - served)
    }

    /// Leaves containers as their engine made them.
    pub fn stop(&self) {
        let residents: Vec<String> = self.state().sandboxes.keys().cloned().collect();
        residents.iter().for_each(|path| self.evict(path));
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listen(&self, (address, device, audience, is_open): &ListenPlace) -> Result<Serving> {
        let what = || format!("cannot answer DNS on {address}");
        let open = |kind, protocol| {
            let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
            let socket = Socket::new(domain, kind, Some(protocol))?;
            socket.set_nonblocking(true)?;
            socket.bind_device(device.as_ref().map(|(name, _)| name.as_bytes()))?;
            if kind == Type::STREAM {
                socket.set_reuse_address(true)?;
            }
            socket.bind(&(*address).into())?;
            Ok::<Socket, std::io::Error>(socket)
        };
        let udp = open(Type::DGRAM, Protocol::UDP).doing(what)?;
        let tcp = open(Type::STREAM, Protocol::TCP).doing(what)?;
        tcp.listen(64).doing(what)?;
        let upstream = if *is_open { &self.host } else { &self.closed };
        self.serve(udp.into(), tcp.into(), audience.clone(), upstream)
    }

    fn serve(
        &self,
        udp: std::net::UdpSocket,
        tcp: std::net::TcpListener,
        audience: Audience,
        upstream: &Arc<Upstream>,
    ) -> Result<Serving> {
        let listener = TcpListener::from_std(tcp).doing(|| "cannot use a DNS socket".into())?;
        let tcp = tokio::spawn(tcp::serve(self.shared.clone(), listener, audience.clone(), upstream.clone()));
        let udp = self.udp.add(Listener { socket: udp, audience, upstream: upstream.clone() });
        Ok(Serving { udp, tcp })
    }

    fn silence(&self, serving: &Serving) {
        self.udp.remove(serving.udp);
        serving.tcp.abort();
    }

    fn note_own(&self) {
        let own = self.state().places.keys().map(|(address, ..)| *address).collect();
        *self.own.lock().unwrap_or_else(PoisonError::into_inner) = own;
    }

    async fn admit(&self, sandbox: &Sandbox) {
        let Sandbox { path, segments, ips, is_internal } = sandbox;
        let audience = Audience::Container(segments.iter().copied().collect(), ips.iter().copied().collect());
        let Some(namespace) = sandbox::open(path).await else { return debug!(path, "a container did not come") };
        let admitted = sandbox::enter(namespace).and_then(|inside| {
            let (upstream, listen) =
                Upstream::engine(inside.upstream, inside.namespace.try_clone().doing(String::new)?, *is_internal)?;
            let serving = self.serve(inside.udp, inside.tcp, audience, &upstream)?;
            Ok((serving, tokio::spawn(listen), inside.namespace))
        });
        let serving = match admitted {
            Ok(serving) => Some(serving),
            Err(error) => {
                warn!(path, "a container finds names only at its network's gateway: {error}");
                None
            }
        };
        let resident = Resident { sandbox: sandbox.clone(), serving, since: Instant::now() };
        self.state().sandboxes.insert(path.clone(), resident);
    }

    fn evict(&self, path: &str) {
        let resident = self.state().sandboxes.remove(path);
        if let Some((serving, listener, namespace)) = resident.and_then(|resident| resident.serving) {
            // A container that ended has no rules any more.
            let _ = sandbox::leave(&namespace);
            self.silence(&serving);
            listener.abort();
        }
    }
}

/// Listens where segments have their gateways and where the host itself is in one, for as long as the router runs.
async fn keep_places(
    dns: Arc<Dns>,
    attachments: Arc<Attachments>,
    routing: Arc<Routing>,
    operator: Option<SocketAddr>,
) {
    let mut refused: BTreeSet<ListenPlace> = BTreeSet::new();
    let changed = attachments.changed();
    loop {
        dns.shared.zone.set_ranges(routing.wanted().ranges);
        let mut wanted: BTreeSet<ListenPlace> =
            operator.map(|address| (address, None, Audience::Host(None), true)).into_iter().collect();
        let all = attachments.all().await;
        let internal: BTreeSet<&str> = all.iter().filter(|a| a.is_internal).map(|a| a.segment.as_str()).collect();
        for attachment in &all {
            let segment = SegmentId::of(&attachment.segment);
            let is_open = !internal.contains(attachment.segment.as_str());
            let audience = Audience::Segments(vec![segment]);
            let bridge = bridge_name(segment);
            if let Ok(index) = nix::net::if_::if_nametoindex(bridge.as_str()) {
                for gateway in &attachment.gateways {
                    // A bridge that was made anew has another index, and sockets are bound to that.
                    let device = Some((bridge.clone(), index));
                    wanted.insert((SocketAddr::new(*gateway, 53), device, audience.clone(), is_open));
                }
            }
            if attachment.place == Place::Host {
                let own = attachment.ips.iter().map(|Prefix(ip, _)| SocketAddr::new(*ip, 53));
                wanted.extend(own.map(|address| (address, None, Audience::Host(Some(segment)), true)));
            }
        }
        let there: BTreeSet<ListenPlace> = dns.state().places.keys().cloned().collect();
        for place in there.difference(&wanted) {
            if let Some(serving) = dns.state().places.remove(place) {
                dns.silence(&serving);
            }
        }
        refused.retain(|place| wanted.contains(place));
        for place in wanted.difference(&there) {
            match dns.listen(place) {
                Ok(serving) => drop(dns.state().places.insert(place.clone(), serving)),
                Err(error) if refused.insert(place.clone()) => warn!("{error}"),
                Err(_) => {}
            }
        }
        dns.note_own();
        let _ = tokio::time::timeout(LOOK, changed.notified()).await;
    }
}

/// Has the questions of containers come here, for as long as the router runs.
async fn keep_sandboxes(dns: Arc<Dns>, docker: Arc<Docker>) {
    let changed = docker.sandboxes_changed();
    let mut admissions: JoinSet<String> = JoinSet::new();
    let mut on_the_way: BTreeSet<String> = BTreeSet::new();
    loop {
        let wanted: BTreeMap<String, Sandbox> =
            docker.sandboxes().await.into_iter().map(|sandbox| (sandbox.path.clone(), sandbox)).collect();
        let there: Vec<(Sandbox, bool)> = dns.state().sandboxes.values().map(Resident::place).collect();
        for (known, is_hopeless) in &there {
            // A container that joined another network hears of that, too.
            if *is_hopeless || wanted.get(&known.path).is_none_or(|sandbox| sandbox != known) {
                dns.evict(&known.path);
            }
        }
        for (path, sandbox) in wanted {
            let is_there = dns.state().sandboxes.contains_key(&path);
            if !is_there && on_the_way.insert(path.clone()) {
                let dns = dns.clone();
                admissions.spawn(async move {
                    dns.admit(&sandbox).await;
                    path
                });
            }
        }
        tokio::select! {
            () = changed.notified() => {}
            Some(Ok(path)) = admissions.join_next() => drop(on_the_way.remove(&path)),
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}
