//! Spare UDP ports: many are opened at once towards a peer, which finds one of them where a NAT maps each destination to another port.
//!
//! What comes by one is received by a packet worker, as what comes by the ports of all; what goes out by it is sent by each thread. Those
//! that no link goes over are closed after a while.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tracing::debug;
use weft_mesh::node::Usage;
use weft_mesh::path::Path;
use weft_mesh::wire::Lane;

use super::addresses::unspecified;
use super::udp::UdpPort;

/// How long a port is kept that no link goes over: as long as a NAT keeps what was opened for it.
const UNUSED: Duration = Duration::from_secs(30);
const SWEEP: Duration = Duration::from_secs(5);
/// How long a NAT may take to say that a datagram got to it.
const REFUSED_WITHIN: Duration = Duration::from_millis(300);

/// A spare port.
pub struct SparePort {
    /// Its socket.
    pub udp: UdpPort,
    /// Since when no link goes over it.
    unused: Mutex<Option<Instant>>,
    is_open: AtomicBool,
}

impl SparePort {
    /// Whether it is still wanted.
    pub fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    fn is_unused(&self, now: Instant) -> bool {
        let unused = *self.unused.lock().unwrap_or_else(PoisonError::into_inner);
        unused.is_some_and(|since| now.duration_since(since) > UNUSED)
    }
}

/// What became of spare ports.
pub enum SpareChange {
    /// These are open: they are to be received from.
    Opened(Vec<Arc<SparePort>>),
    /// Some are open no more.
    Closed,
}

/// All spare ports of this host, by number.
pub struct SparePorts {
    all: RwLock<BTreeMap<u16, Arc<SparePort>>>,
    changes: mpsc::UnboundedSender<SpareChange>,
    runtime: tokio::runtime::Handle,
}

impl SparePorts {
    /// No ports yet. The receiver gets each change, for the workers. Call it within a tokio runtime.
    pub fn new() -> (Arc<SparePorts>, mpsc::UnboundedReceiver<SpareChange>) {
        let (changes, told) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Handle::current();
        (Arc::new(SparePorts { all: RwLock::default(), changes, runtime }), told)
    }

    /// Opens `count` ports beside those of `like`, in equal shares for each of `hops`, and sends from each a datagram with that TTL towards each
    /// path. If a NAT of the peer refuses a first one with a larger TTL, that share has the first, smallest TTL.
    pub fn open(self: &Arc<Self>, like: &UdpPort, towards: Vec<Path>, count: usize, hops: &[u8]) {
        let Some((fewest, more)) = hops.split_first() else { return };
        let (share, fewest, more) = (count / hops.len(), *fewest, more.to_vec());
        self.open_share(like, &towards, share, fewest);
        let (ports, like) = (self.clone(), like.clone());
        self.runtime.spawn(async move {
            for hops in more {
                let mut hops = hops;
                for to in &towards {
                    if gets_to_nat(*to, hops).await.unwrap_or(false) {
                        hops = fewest;
                        break;
                    }
                }
                ports.open_share(&like, &towards, share, hops);
            }
        });
    }

    /// With fewer ports than asked for the peer is found less often; with none, not at all.
    fn open_share(&self, like: &UdpPort, towards: &[Path], count: usize, hops: u8) {
        let mut opened = Vec::new();
        for _ in 0..count {
            let udp = match like.open_spare() {
                Ok(udp) => udp,
                Err(error) => {
                    debug!("no more than {} spare ports could be opened: {error}", opened.len());
                    break;
                }
            };
            // A datagram that could not be sent opens nothing: one of many.
            towards.iter().for_each(|to| drop(udp.open_nats(*to, hops)));
            let unused = Mutex::new(Some(Instant::now()));
            opened.push(Arc::new(SparePort { udp, unused, is_open: AtomicBool::new(true) }));
        }
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        all.extend(opened.iter().map(|port| (port.udp.port(), port.clone())));
        // The router ends with its workers.
        let _ = self.changes.send(SpareChange::Opened(opened));
    }

    /// Sends by a port. An error: it is not open any more, or some of the datagrams were lost.
    pub fn send(&self, number: u16, lane: Lane, to: Path, datagrams: &[u8], stride: usize) -> io::Result<()> {
        let port = self.read().get(&number).cloned().ok_or(io::ErrorKind::NotConnected)?;
        port.udp.send(lane, to, datagrams, stride)
    }

    /// Notes how a port is used. One that a link was lost by stays as long as any other: the peer may ask again.
    pub fn set_usage(&self, number: u16, usage: Usage) {
        if let Some(port) = self.read().get(&number) {
            let unused = (usage != Usage::InUse).then(Instant::now);
            *port.unused.lock().unwrap_or_else(PoisonError::into_inner) = unused;
        }
    }

    /// Closes ports that no link goes over, for as long as the task runs.
    pub async fn sweep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(SWEEP).await;
            self.close_unused(Instant::now());
        }
    }

    fn close_unused(&self, now: Instant) {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        let before = all.len();
        all.retain(|_, port| {
            let is_kept = !port.is_unused(now);
            port.is_open.store(is_kept, Ordering::Relaxed);
            is_kept
        });
        if all.len() != before {
            let _ = self.changes.send(SpareChange::Closed);
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<u16, Arc<SparePort>>> {
        self.all.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a datagram that so many routers pass on gets to a NAT that takes it for its own: such a one says that the port is unreachable.
/// It then maps what the peer sends to where that came from to another port; Linux does so with all that the peer sends to anywhere new
/// from then on.
async fn gets_to_nat(to: Path, hops: u8) -> io::Result<bool> {
    let any = unspecified(to.remote.is_ipv6());
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(to.remote).await?;
    match any {
        IpAddr::V4(_) => SockRef::from(&socket).set_ttl_v4(hops.into())?,
        IpAddr::V6(_) => SockRef::from(&socket).set_unicast_hops_v6(hops.into())?,
    }
    socket.send(&[0xff]).await?;
    let answer = tokio::time::timeout(REFUSED_WITHIN, socket.recv(&mut [0])).await;
    Ok(matches!(answer, Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use weft_mesh::path::Transport;

    use super::*;

    /// The next ports that were opened.
    async fn opened(changes: &mut mpsc::UnboundedReceiver<SpareChange>) -> Vec<Arc<SparePort>> {
        match changes.recv().await {
            Some(SpareChange::Opened(opened)) => opened,
            _ => panic!("nothing was opened"),
        }
    }

    #[tokio::test]
    async fn each_port_opens_the_way_to_it_and_the_one_in_use_stays() {
        let [own] = UdpPort::bind((Ipv4Addr::LOCALHOST, 0).into(), 1).unwrap().try_into().ok().unwrap();
        let peer = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let to = Path::udp(peer.local_addr().unwrap());
        let (ports, mut changes) = SparePorts::new();
        ports.open(&own, vec![to], 4, &[1, 2]);
        let opened = [opened(&mut changes).await, opened(&mut changes).await].concat();
        let (mut buffer, mut from) = ([0; 100], Vec::new());
        for _ in 0..5 {
            from.push(peer.recv_from(&mut buffer).await.unwrap().1.port());
        }
        // The third one tried how far such datagrams get.
        assert!(opened.iter().all(|port| port.udp.port() != from[2]));
        from.remove(2);
        assert_eq!(from, opened.iter().map(|port| port.udp.port()).collect::<Vec<_>>());
        assert!(!from.contains(&own.port()));

        ports.set_usage(from[2], Usage::InUse);
        ports.close_unused(Instant::now() + UNUSED + SWEEP);
        assert!(matches!(changes.try_recv(), Ok(SpareChange::Closed)));
        assert_eq!(opened.iter().map(|port| port.is_open()).collect::<Vec<_>>(), [false, false, true, false]);
        assert!(ports.send(from[0], Lane::Main, to, b"lost", 4).is_err());
        let by = Path { transport: Transport::SpareUdp(from[2]), ..to };
        ports.send(from[2], Lane::Urgent, by, b"hello", 5).unwrap();
        let (length, port) = peer.recv_from(&mut buffer).await.map(|(length, from)| (length, from.port())).unwrap();
        assert_eq!((&buffer[..length], port), (&b"hello"[..], from[2]));

        ports.set_usage(from[2], Usage::Dead);
        ports.close_unused(Instant::now());
        assert!(opened[2].is_open(), "the peer may ask again");
        ports.close_unused(Instant::now() + UNUSED + SWEEP);
        assert!(!opened[2].is_open());
    }

    #[tokio::test]
    async fn datagrams_that_would_get_to_a_nat_of_the_peer_go_less_far() {
        let closed = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
        assert!(gets_to_nat(Path::udp(closed), 1).await.unwrap());
        let silent = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).await.unwrap();
        assert!(!gets_to_nat(Path::udp(silent.local_addr().unwrap()), 1).await.unwrap());
    }
}
