//! Paths over TCP, for networks that let no UDP pass.
//!
//! A connection carries the datagrams that UDP would ([`connection`]). One is opened when the node first sends along a path, and closed
//! once no link has gone over it for a while. Every thread with a port sends on any connection; the packet workers, among which
//! connections are spread, receive.

pub mod connection;
mod opening;
mod proxy;
mod stream;
mod tls;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use connection::Connection;
pub use proxy::Proxy;
use socket2::{Protocol, SockRef, TcpKeepalive, Type};
use stream::Stream;
use tls::Tls;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tracing::warn;
use weft_mesh::node::Usage;
use weft_mesh::path::{Path, Transport};
use weft_mesh::wire::Lane;

use super::addresses::{socket_for, unmapped, with_a_family_there_is};
use crate::attach::prefix::Prefix;
use crate::error::{Doing, Failure, Result};

/// Accepted connections that no link goes over, in all and from one network: strangers can open them.
const MAX_UNUSED: usize = 512;
const MAX_UNUSED_FROM_ONE: usize = 32;
/// Connections that this host opened and no link goes over: members can have them opened by what they announce.
const MAX_OPENED_UNUSED: usize = 64;
/// How long a connection is kept that no link goes over, and how long opening one may take.
const UNUSED: Duration = Duration::from_secs(10);
const OPEN_WITHIN: Duration = Duration::from_secs(5);
const SWEEP: Duration = Duration::from_secs(1);
/// How long sent bytes may go unacknowledged (TCP_USER_TIMEOUT, RFC 5482), and when an idle end is asked.
const UNACKNOWLEDGED: Duration = Duration::from_secs(15);
const KEEPALIVE: Duration = Duration::from_secs(60);
/// TLS handshakes with strangers between two sweeps, in all and with one network.
const MAX_TLS_HANDSHAKES: u32 = 300;
const MAX_TLS_HANDSHAKES_WITH_ONE: u32 = 20;
/// What may wait unsent in the kernel, where nothing can overtake it, in bytes.
const UNSENT: u32 = 128 * 1024;
const BACKLOG: i32 = 1024;

/// All connections of this host.
pub struct Connections {
    all: RwLock<BTreeMap<Path, Arc<Connection>>>,
    /// Paths that links go over.
    in_use: Mutex<BTreeSet<Path>>,
    /// Where open connections go to be received from.
    opened: mpsc::UnboundedSender<Arc<Connection>>,
    /// What ended, for the node.
    closed: mpsc::UnboundedSender<Path>,
    runtime: tokio::runtime::Handle,
    proxy: Option<Proxy>,
    tls: Tls,
    /// Where connections brought nothing without TLS, and since when.
    wrapped: Mutex<BTreeMap<SocketAddr, Instant>>,
    /// TLS handshakes with strangers since the last sweep, by their networks.
    shaken: Mutex<BTreeMap<IpAddr, u32>>,
    /// Whether it was said that the proxy does not work.
    has_warned: AtomicBool,
    /// Runs dropped because a connection took no more.
    pub dropped: AtomicU64,
    /// Connections that no link went over, refused or closed for others.
    pub refused: AtomicU64,
}

/// The receiving ends: open connections, and those that ended.
pub struct Ends {
    /// To be received from.
    pub opened: mpsc::UnboundedReceiver<Arc<Connection>>,
    /// No longer there.
    pub closed: mpsc::UnboundedReceiver<Path>,
}

/// A connection that is received from no more.
pub enum Ended {
    /// It is over.
    Over(Arc<Connection>),
    /// It goes on inside TLS.
    InTls(Arc<Connection>),
}

impl Connections {
    /// No connections yet. Call it within a tokio runtime, where connections are then opened, by the proxy if there is one.
    pub fn new(proxy: Option<Proxy>) -> Result<(Arc<Connections>, Ends)> {
        let ((opened, to_receive), (closed, ended)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let connections = Connections {
            all: RwLock::default(),
            in_use: Mutex::default(),
            opened,
            closed,
            runtime: tokio::runtime::Handle::current(),
            proxy,
            tls: Tls::new()?,
            wrapped: Mutex::default(),
            shaken: Mutex::default(),
            has_warned: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        };
        Ok((Arc::new(connections), Ends { opened: to_receive, closed: ended }))
    }

    /// Sends along a connection that there is. An error: the datagrams were lost.
    pub fn send(&self, lane: Lane, to: Path, datagrams: &[u8], stride: usize) -> io::Result<()> {
        let connection = self.read().get(&to.from_any()).cloned().ok_or(io::ErrorKind::NotConnected)?;
        let sent = connection.send(lane, datagrams, stride);
        match &sent {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
            // Who receives from it closes it. One that is being opened may still be.
            Err(_) => connection.shut_down(),
            Ok(()) => {}
        }
        sent
    }

    /// The same, along a connection that is opened if there is none and this end may open it.
    pub fn send_or_open(self: &Arc<Self>, lane: Lane, to: Path, datagrams: &[u8], stride: usize) -> io::Result<()> {
        let to = to.from_any();
        if to.transport == Transport::Tcp && !self.read().contains_key(&to) {
            let unused = self.unused(Transport::Tcp);
            if unused.len() >= MAX_OPENED_UNUSED {
                self.evict(unused.into_iter());
            }
            let connection = Arc::new(Connection::new(to));
            if !self.insert(&connection) {
                return self.send(lane, to, datagrams, stride);
            }
            self.begin_to_open(&connection);
        }
        self.send(lane, to, datagrams, stride)
    }

    /// Makes an open stream a connection's.
    fn take_up(&self, connection: &Arc<Connection>, stream: Stream) -> io::Result<()> {
        stream.socket().set_nodelay(true)?;
        let socket = SockRef::from(stream.socket());
        // Where the kernel does not know them, its own limits have to do.
        let _ = socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
        let _ = socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE));
        let _ = socket.set_tcp_notsent_lowat(UNSENT);
        connection.open(stream)?;
        if !holds(&self.read(), connection) {
            // It had to go meanwhile.
            connection.shut_down();
            return Err(io::ErrorKind::NotConnected.into());
        }
        // The router ends with its workers.
        let _ = self.opened.send(connection.clone());
        Ok(())
    }

    /// Takes a connection away that has ended; returns whether it was still there.
    pub fn close(&self, connection: &Arc<Connection>) -> bool {
        let was_there = {
            let mut all = self.write();
            holds(&all, connection) && all.remove(&connection.path).is_some()
        };
        if was_there {
            let _ = self.closed.send(connection.path);
        }
        connection.give_up();
        was_there
    }

    /// Whether a connection with an address is inside TLS.
    pub fn is_in_tls(&self, remote: SocketAddr) -> bool {
        self.read().values().any(|connection| connection.path.remote == remote && connection.is_in_tls())
    }

    /// Notes how the connection of a path is used.
    pub fn set_usage(&self, path: Path, usage: Usage) {
        let (path, is_used) = (path.from_any(), usage == Usage::InUse);
        let mut in_use = self.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = if is_used { in_use.insert(path) } else { in_use.remove(&path) };
        let connection = self.read().get(&path).cloned();
        let Some(connection) = connection else { return };
        connection.set_used(is_used);
        if usage == Usage::Dead {
            self.close(&connection);
        }
    }

    /// Adds a connection, unless there is one with its path.
    fn insert(&self, connection: &Arc<Connection>) -> bool {
        let in_use = self.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        connection.set_used(in_use.contains(&connection.path));
        match self.write().entry(connection.path) {
            Entry::Vacant(entry) => {
                entry.insert(connection.clone());
                true
            }
            Entry::Occupied(_) => false,
        }
    }

    /// Connections of a kind that no link goes over, and for how long.
    fn unused(&self, transport: Transport) -> Vec<(Duration, Arc<Connection>)> {
        let all = self.read();
        let of_kind = all.values().filter(|connection| connection.path.transport == transport);
        of_kind.filter_map(|connection| Some((connection.unused_for()?, connection.clone()))).collect()
    }

    /// Closes the longest unused of these.
    fn evict(&self, unused: impl Iterator<Item = (Duration, Arc<Connection>)>) {
        if let Some((_, connection)) = unused.max_by_key(|(unused, _)| *unused) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            self.close(&connection);
        }
    }

    /// Accepts connections for as long as the task runs.
    pub async fn accept(self: Arc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, from)) => self.admit(stream, unmapped(from)),
                // Out of file descriptors, perhaps: others need time to end.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    fn admit(&self, stream: TcpStream, from: SocketAddr) {
        self.make_room(network_of(from.ip()));
        let connection = Arc::new(Connection::new(Path::accepted_tcp(from)));
        if !self.insert(&connection) {
            // From one port to two of this host's: the first one stays.
            self.refused.fetch_add(1, Ordering::Relaxed);
        } else if stream.into_std().and_then(|stream| self.take_up(&connection, Stream::Plain(stream))).is_err() {
            self.close(&connection);
        }
    }

    /// A connection is received from no more.
    pub fn on_ended(self: &Arc<Self>, ended: Ended) {
        match ended {
            Ended::Over(connection) if connection.is_mute() => self.open_otherwise(&connection),
            Ended::Over(connection) => drop(self.close(&connection)),
            Ended::InTls(connection) => self.go_on_in_tls(&connection),
        }
    }

    fn go_on_in_tls(self: &Arc<Self>, connection: &Arc<Connection>) {
        let socket = connection.stream().and_then(|stream| stream.socket().try_clone().ok());
        let wrapped = Arc::new(Connection::new(connection.path));
        let is_allowed = self.may_shake_hands(network_of(connection.path.remote.ip()));
        let Some(socket) = socket.filter(|_| is_allowed && self.replace(connection, &wrapped)) else {
            self.refused.fetch_add(1, Ordering::Relaxed);
            self.close(connection);
            return;
        };
        let (connections, taken_up) = (self.clone(), wrapped.clone());
        let task = self.runtime.spawn(async move {
            let begun = in_time(async { connections.tls.accept(TcpStream::from_std(socket)?).await }).await;
            if begun.and_then(|stream| connections.take_up(&taken_up, stream)).is_err() {
                connections.refused.fetch_add(1, Ordering::Relaxed);
                connections.close(&taken_up);
            }
        });
        wrapped.set_task(task.abort_handle());
    }

    /// Whether a TLS handshake may be made with a stranger in a network; counts as made.
    fn may_shake_hands(&self, with: IpAddr) -> bool {
        let mut shaken = self.shaken.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, one) = (shaken.values().sum::<u32>(), shaken.get(&with).copied().unwrap_or(0));
        let may = all < MAX_TLS_HANDSHAKES && one < MAX_TLS_HANDSHAKES_WITH_ONE;
        if may {
            shaken.insert(with, one + 1);
        }
        may
    }

    /// Puts a connection in the place of another, if that is still there.
    fn replace(&self, old: &Arc<Connection>, new: &Arc<Connection>) -> bool {
        let in_use = self.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        new.set_used(in_use.contains(&new.path));
        let mut all = self.write();
        holds(&all, old) && all.insert(new.path, new.clone()).is_some()
    }

    /// Makes room for one more connection from a network: another one from there has to go, or, if there are too many in all, one
    /// from the network that has most.
    fn make_room(&self, from: IpAddr) {
        let unused = self.unused(Transport::AcceptedTcp);
        let mut counts: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for (_, connection) in &unused {
            *counts.entry(network_of(connection.path.remote.ip())).or_default() += 1;
        }
        let crowd = match counts.get(&from) {
            Some(count) if *count >= MAX_UNUSED_FROM_ONE => Some(from),
            _ if unused.len() < MAX_UNUSED => None,
            _ => counts.into_iter().max_by_key(|(_, count)| *count).map(|(network, _)| network),
        };
        if let Some(crowd) = crowd {
            self.evict(unused.into_iter().filter(|(_, other)| network_of(other.path.remote.ip()) == crowd));
        }
    }

    /// Ends connections that no link goes over, for as long as the task runs.
    pub async fn sweep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(SWEEP).await;
            self.shaken.lock().unwrap_or_else(PoisonError::into_inner).clear();
            let is_over = |connection: &&Arc<Connection>| connection.unused_for().is_some_and(|unused| unused > UNUSED);
            self.read().values().filter(is_over).for_each(|connection| connection.shut_down());
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<Path, Arc<Connection>>> {
        self.all.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<Path, Arc<Connection>>> {
        self.all.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a connection is among these, and no other has its path by now.
fn holds(all: &BTreeMap<Path, Arc<Connection>>, connection: &Arc<Connection>) -> bool {
    all.get(&connection.path).is_some_and(|there| Arc::ptr_eq(there, connection))
}

/// Does something that is over in a while, or failed.
async fn in_time<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(OPEN_WITHIN, work).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
}

/// What one site or customer has: an IPv4 address, or an IPv6 network of /64.
fn network_of(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(_) => Prefix(ip, 64).network().0,
    }
}

/// An address to accept connections at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Listen {
    /// The address.
    pub address: SocketAddr,
    /// Whether the router is not to start without it.
    pub is_required: bool,
}

/// Listens at each address. An error: one that is required is in use, or no address of this host.
pub fn listen(at: &[Listen]) -> Result<Vec<std::net::TcpListener>> {
    let mut listeners = Vec::new();
    for Listen { address, is_required } in at {
        match with_a_family_there_is(*address, bind) {
            Ok((_, listener)) => listeners.push(listener),
            Err(error) if *is_required => {
                return Err(Failure::new(format!(
                    "cannot listen on TCP {address}: {error}; choose another with --listen"
                )));
            }
            Err(error) => {
                warn!(
                    "hosts without UDP cannot reach this one: cannot listen on TCP {address}: {error}; free it, or see --listen"
                );
            }
        }
    }
    Ok(listeners)
}

fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = socket_for(address, Type::STREAM, Protocol::TCP)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The ports at which other hosts find listeners.
pub fn ports(listeners: &[std::net::TcpListener]) -> Vec<u16> {
    let bound = listeners.iter().filter_map(|listener| listener.local_addr().ok());
    let mut ports: Vec<u16> = bound.filter(|at| !at.ip().is_loopback()).map(|at| at.port()).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// Makes a listener one of the event loop's.
pub fn in_runtime(listener: std::net::TcpListener) -> Result<TcpListener> {
    TcpListener::from_std(listener).doing(|| "cannot accept TCP connections".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_network_has_few_tls_handshakes_and_leaves_others_theirs() {
        let (connections, _ends) = Connections::new(None).unwrap();
        let [one, other] = [1, 2].map(|n| IpAddr::from([192, 0, 2, n]));
        let made = (0..1000).filter(|_| connections.may_shake_hands(one)).count();
        assert_eq!(made, MAX_TLS_HANDSHAKES_WITH_ONE as usize);
        assert!(connections.may_shake_hands(other));
    }
}
