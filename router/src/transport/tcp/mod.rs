//! Paths over TCP, for networks that let no UDP pass.
//!
//! A connection carries the datagrams that UDP would ([`connection`]). One is opened when the node first sends along a path, and closed
//! once no link has gone over it for a while. Whoever can send from here can send on a connection; the packet workers, among which
//! connections are spread, receive.

pub mod connection;
mod proxy;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use connection::Connection;
pub use proxy::Proxy;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tracing::{debug, warn};
use weft_mesh::path::{Path, Transport};
use weft_mesh::wire::Lane;

use super::addresses::{unmapped, with_a_family_there_is};
use crate::error::{Doing, Failure, Result};

/// Accepted connections that no link goes over, in all and from one address: strangers can open them.
const MAX_UNUSED: usize = 512;
const MAX_UNUSED_FROM_ONE: usize = 32;
/// Connections being opened, or open and unused: members can have them opened by what they announce.
const MAX_OPENING: usize = 64;
/// How long a connection is kept that no link goes over, and how long opening one may take.
const UNUSED: Duration = Duration::from_secs(10);
const OPEN_WITHIN: Duration = Duration::from_secs(5);
const SWEEP: Duration = Duration::from_secs(1);
/// How long sent bytes may go unacknowledged (TCP_USER_TIMEOUT, RFC 5482), and when an idle end is asked.
const UNACKNOWLEDGED: Duration = Duration::from_secs(15);
const KEEPALIVE: Duration = Duration::from_secs(60);
/// What may wait unsent in the kernel, where nothing can overtake it, in bytes.
const UNSENT: u32 = 128 * 1024;
const BACKLOG: i32 = 1024;

/// All connections of this host.
pub struct Connections {
    all: RwLock<BTreeMap<Path, Arc<Connection>>>,
    /// Where open connections go to be received from.
    opened: mpsc::UnboundedSender<Arc<Connection>>,
    /// What ended, for the node.
    closed: mpsc::UnboundedSender<Path>,
    runtime: tokio::runtime::Handle,
    proxy: Option<Proxy>,
    /// Runs dropped because a connection took no more.
    pub dropped: AtomicU64,
    /// Connections refused because there were too many.
    pub refused: AtomicU64,
}

/// The receiving ends: open connections, and those that ended.
pub struct Ends {
    /// To be received from.
    pub opened: mpsc::UnboundedReceiver<Arc<Connection>>,
    /// No longer there.
    pub closed: mpsc::UnboundedReceiver<Path>,
}

impl Connections {
    /// No connections yet. Call it within a tokio runtime, where connections are then opened, by the proxy if there is one.
    pub fn new(proxy: Option<Proxy>) -> (Arc<Connections>, Ends) {
        let ((opened, to_receive), (closed, ended)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let connections = Connections {
            all: RwLock::default(),
            opened,
            closed,
            runtime: tokio::runtime::Handle::current(),
            proxy,
            dropped: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        };
        (Arc::new(connections), Ends { opened: to_receive, closed: ended })
    }

    /// Sends along a connection that there is. An error: the datagrams were lost.
    pub fn send(&self, lane: Lane, to: Path, datagrams: &[u8], stride: usize) -> io::Result<()> {
        let connection = self.read().get(&to.from_any()).cloned().ok_or(io::ErrorKind::NotConnected)?;
        let sent = connection.send(lane, datagrams, stride);
        match &sent {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
            // Who receives from it closes it.
            Err(_) => connection.shut_down(),
            Ok(()) => {}
        }
        sent
    }

    /// The same, along a connection that is opened if there is none and this end may open it.
    pub fn send_or_open(self: &Arc<Self>, lane: Lane, to: Path, datagrams: &[u8], stride: usize) -> io::Result<()> {
        let to = to.from_any();
        if to.transport == Transport::Tcp && !self.read().contains_key(&to) {
            let unused = |(path, connection): &(&Path, &Arc<Connection>)| {
                path.transport == Transport::Tcp && connection.unused_for().is_some()
            };
            if self.read().iter().filter(unused).count() >= MAX_OPENING {
                self.refused.fetch_add(1, Ordering::Relaxed);
                return Err(io::ErrorKind::QuotaExceeded.into());
            }
            let connection = Arc::new(Connection::new(to));
            self.write().insert(to, connection.clone());
            let connections = self.clone();
            self.runtime.spawn(async move { connections.open(&connection).await });
        }
        self.send(lane, to, datagrams, stride)
    }

    async fn open(&self, connection: &Arc<Connection>) {
        let to = connection.path.remote;
        let opening = async {
            match &self.proxy {
                Some(proxy) => proxy.connect(to).await,
                None => TcpStream::connect(to).await,
            }
        };
        let opened = tokio::time::timeout(OPEN_WITHIN, opening).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()));
        if let Err(error) = opened.and_then(|stream| self.take_up(connection, stream)) {
            debug!(path = %connection.path, "a connection cannot be opened: {error}");
            self.close(connection);
        }
    }

    /// Makes an open stream a connection's.
    fn take_up(&self, connection: &Arc<Connection>, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let socket = SockRef::from(&stream);
        // Where the kernel does not know them, its own limits have to do.
        let _ = socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
        let _ = socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE));
        let _ = socket.set_tcp_notsent_lowat(UNSENT);
        connection.open(stream.into_std()?)?;
        // The router ends with its workers.
        let _ = self.opened.send(connection.clone());
        Ok(())
    }

    /// Takes a connection away that has ended.
    pub fn close(&self, connection: &Arc<Connection>) {
        connection.shut_down();
        let mut all = self.write();
        // Another may have its path by now.
        if all.get(&connection.path).is_some_and(|there| Arc::ptr_eq(there, connection)) {
            all.remove(&connection.path);
            let _ = self.closed.send(connection.path);
        }
    }

    /// Notes whether a link goes over the connection of a path.
    pub fn set_used(&self, path: Path, is_used: bool) {
        if let Some(connection) = self.read().get(&path.from_any()) {
            connection.set_used(is_used);
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
        if !self.has_room(from.ip()) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let connection = Arc::new(Connection::new(Path::accepted_tcp(from)));
        self.write().insert(connection.path, connection.clone());
        if self.take_up(&connection, stream).is_err() {
            self.close(&connection);
        }
    }

    /// Whether one more connection may be accepted from an address. The longest unused one of all makes room if need be.
    fn has_room(&self, from: IpAddr) -> bool {
        let all = self.read();
        let accepted = all.values().filter(|connection| connection.path.transport == Transport::AcceptedTcp);
        let unused: Vec<(Duration, &Arc<Connection>)> =
            accepted.filter_map(|connection| Some((connection.unused_for()?, connection))).collect();
        if unused.iter().filter(|(_, connection)| connection.path.remote.ip() == from).count() >= MAX_UNUSED_FROM_ONE {
            return false;
        }
        if unused.len() >= MAX_UNUSED {
            let longest = unused.iter().max_by_key(|(unused, _)| *unused);
            longest.into_iter().for_each(|(_, connection)| connection.shut_down());
        }
        unused.len() < 2 * MAX_UNUSED
    }

    /// Ends connections that no link goes over, for as long as the task runs.
    pub async fn sweep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(SWEEP).await;
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
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The ports of listeners.
pub fn ports(listeners: &[std::net::TcpListener]) -> Vec<u16> {
    let mut ports: Vec<u16> =
        listeners.iter().filter_map(|listener| Some(listener.local_addr().ok()?.port())).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// Makes a listener one of the event loop's.
pub fn in_runtime(listener: std::net::TcpListener) -> Result<TcpListener> {
    TcpListener::from_std(listener).doing(|| "cannot accept TCP connections".into())
}
