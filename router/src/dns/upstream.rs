//! Who knows what weft does not: the host's resolvers, or, in a container, the engine's resolver.
//!
//! Their answers are passed on as they are, but for the id. What is under way is bounded; equal questions share one answer, so
//! that one which comes back to where it was asked from waits for itself until its time is up.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use nix::sched::{CloneFlags, setns};
use rand::TryRng;
use rand::rngs::SysRng;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{Semaphore, oneshot};
use weft_mesh::records::digest_of;

use super::framing;
use super::sharing::Sharing;
use super::tally::Tally;
use super::zone::Transport;
use crate::attach::netlink::on_thread_in;
use crate::error::{Doing, Result};

/// Questions under way to one upstream, and those of one asker, equal ones included: what engines' own resolvers hold.
const MAX_UNDER_WAY: usize = 1024;
const MAX_OF_ONE: usize = 1024;
/// How long an answer is waited for, from all resolvers together: askers ask again after five seconds (resolv.conf(5)).
const PATIENCE: Duration = Duration::from_millis(4500);
/// How long the engine is waited for that cannot ask others itself, and how often it is looked whether it can.
const INTERNAL_PATIENCE: Duration = Duration::from_millis(300);
const LOOK_FOR_ROUTE: Duration = Duration::from_secs(2);
/// Times a resolver is asked by UDP: a datagram may be lost.
const TRIES: u32 = 2;
/// How often it is looked whether the host's resolvers changed.
const LOOK: Duration = Duration::from_secs(2);
/// The largest answer by UDP that is passed on: larger ones are asked for by TCP everywhere.
const MAX_ANSWER: usize = 4096;
/// The engine's resolver, as containers know it.
pub const ENGINE_RESOLVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11)), 53);
/// From here weft asks the engine's resolver: the redirection leaves it alone.
pub const OWN_LOOPBACK: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 12);

/// Who knows the rest.
pub struct Upstream {
    kind: Kind,
    room: Semaphore,
    shared: Sharing,
    askers: Tally<IpAddr>,
}

enum Kind {
    /// None.
    Closed,
    /// The host's resolvers.
    Host(Resolvers),
    /// The engine's resolver, in a container's network namespace.
    Engine { socket: Arc<UdpSocket>, waiting: Arc<Waiting>, namespace: File, way_out: Option<WayOut> },
}

/// Whether a container whose networks of weft's are internal has another way out: looked up now and then.
#[derive(Default)]
struct WayOut(Mutex<Option<(Instant, bool)>>);

impl WayOut {
    fn is_there(&self, namespace: &File) -> bool {
        let known = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, is_there)) = known.filter(|(since, _)| since.elapsed() < LOOK_FOR_ROUTE) {
            return is_there;
        }
        let look = || {
            // The default route is all zeros (proc(5), /proc/net/route).
            let routes = std::fs::read_to_string("/proc/thread-self/net/route").unwrap_or_default();
            let routes6 = std::fs::read_to_string("/proc/thread-self/net/ipv6_route").unwrap_or_default();
            let v4 = routes.lines().any(|line| line.split_whitespace().nth(1) == Some("00000000"));
            let v6 = |line: &str| line.starts_with(&"0".repeat(32)) && line.contains(" 00 ") && !line.ends_with(" lo");
            Ok(v4 || routes6.lines().any(v6))
        };
        let fd = namespace.try_clone().map(OwnedFd::from).ok();
        let is_there = fd.is_some_and(|fd| on_thread_in(Some(fd), look).unwrap_or(true));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), is_there));
        is_there
    }
}

type Waiting = Mutex<BTreeMap<u16, oneshot::Sender<Vec<u8>>>>;

impl Upstream {
    fn new(kind: Kind) -> Arc<Upstream> {
        let room = Semaphore::new(MAX_UNDER_WAY);
        Arc::new(Upstream { kind, room, shared: Sharing::default(), askers: Tally::default() })
    }

    /// Returns an upstream that answers nothing: there is no way out.
    pub fn closed() -> Arc<Upstream> {
        Upstream::new(Kind::Closed)
    }

    /// The resolvers of a `resolv.conf`, those left out that `own` names: they are weft's.
    pub fn host(path: PathBuf, own: Arc<Mutex<Vec<SocketAddr>>>) -> Arc<Upstream> {
        Upstream::new(Kind::Host(Resolvers { path, own, known: Mutex::default(), good: 0.into() }))
    }

    /// The engine's resolver, asked from a socket in the container's network namespace, which may have no way out. Returns the
    /// task that listens to it.
    pub fn engine(
        socket: std::net::UdpSocket,
        namespace: File,
        is_internal: bool,
    ) -> Result<(Arc<Upstream>, impl Future<Output = ()>)> {
        let socket = Arc::new(UdpSocket::from_std(socket).doing(|| "cannot use a container's socket".into())?);
        let waiting = Arc::<Waiting>::default();
        let listener = listen(socket.clone(), waiting.clone());
        let way_out = is_internal.then(WayOut::default);
        Ok((Upstream::new(Kind::Engine { socket, waiting, namespace, way_out }), listener))
    }

    /// Asks on behalf of an asker; none if no answer comes in time.
    pub async fn ask(&self, from: IpAddr, packet: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let _asker = self.askers.count(from, MAX_OF_ONE)?;
        question(packet)?;
        // Equal but for the id, down to the case of letters: the answer repeats the question.
        let key = digest_of(&[packet.get(2..)?, &[(transport == Transport::Tcp).into()]].concat());
        let mut answer = match self.shared.enter(key) {
            Ok(mut first) => {
                first.answer = self.ask_once(packet, transport).await;
                first.answer.clone()?
            }
            Err(answer) => tokio::time::timeout(PATIENCE, answer).await.ok()?.ok()??,
        };
        answer.get_mut(..2)?.copy_from_slice(&packet[..2]);
        Some(answer)
    }

    async fn ask_once(&self, packet: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let _permit = self.room.try_acquire().ok()?;
        match &self.kind {
            Kind::Closed => None,
            Kind::Host(resolvers) => resolvers.ask(packet, transport).await,
            Kind::Engine { socket, waiting, namespace, way_out } => {
                let has_none = way_out.as_ref().is_some_and(|way_out| !way_out.is_there(namespace));
                let patience = if has_none { INTERNAL_PATIENCE } else { PATIENCE };
                let asked = async {
                    match transport {
                        Transport::Udp => ask_engine(socket, waiting, packet).await,
                        Transport::Tcp => ask_engine_by_tcp(namespace, packet).await,
                    }
                };
                match tokio::time::timeout(patience, asked).await {
                    Ok(answer) => answer,
                    // No other resolver can be asked.
                    Err(_) => has_none.then(|| denial(packet)),
                }
            }
        }
    }
}

/// The host's resolvers.
struct Resolvers {
    path: PathBuf,
    own: Arc<Mutex<Vec<SocketAddr>>>,
    known: Mutex<Known>,
    /// Which of them answered last.
    good: AtomicUsize,
}

/// What the file said, and when it was looked at and had been changed.
#[derive(Default)]
struct Known {
    looked: Option<(Instant, Option<SystemTime>)>,
    resolvers: Vec<SocketAddr>,
}

impl Resolvers {
    async fn ask(&self, packet: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let all = self.all();
        let patience = PATIENCE / all.len().max(1) as u32;
        let start = self.good.load(Ordering::Relaxed);
        let mut last_resort = None;
        for number in (0..all.len()).map(|step| (start + step) % all.len()) {
            let asked = async {
                match transport {
                    Transport::Udp => ask_by_udp(all[number], packet, patience / TRIES).await,
                    Transport::Tcp => ask_by_tcp(all[number], packet).await,
                }
            };
            let Ok(Some(answer)) = tokio::time::timeout(patience, asked).await else { continue };
            // Server failure, not implemented, refused: another one may know better.
            if matches!(answer[3] & 0x0f, 2 | 4 | 5) {
                last_resort = Some(answer);
                continue;
            }
            self.good.store(number, Ordering::Relaxed);
            return Some(answer);
        }
        last_resort
    }

    /// The resolvers, read again when the file changed.
    fn all(&self) -> Vec<SocketAddr> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Known { looked, resolvers } = &mut *known;
        if looked.is_none_or(|(at, _)| at.elapsed() >= LOOK) {
            let changed = std::fs::metadata(&self.path).and_then(|metadata| metadata.modified()).ok();
            if looked.is_none_or(|(_, before)| before != changed) {
                *resolvers = parse(&std::fs::read_to_string(&self.path).unwrap_or_default());
            }
            *looked = Some((Instant::now(), changed));
        }
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        resolvers.iter().copied().filter(|resolver| !own.contains(resolver)).collect()
    }
}

/// The resolvers that a `resolv.conf` names, three at most as everywhere (resolv.conf(5)).
fn parse(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
        match address.split_once('%') {
            None => Some(SocketAddr::new(address.parse().ok()?, 53)),
            Some((address, interface)) => {
                let scope = nix::net::if_::if_nametoindex(interface).ok()?;
                Some(SocketAddrV6::new(address.parse().ok()?, 53, 0, scope).into())
            }
        }
    });
    servers.take(3).collect()
}

/// The part of a message that says what is asked: name, type and class.
fn question(packet: &[u8]) -> Option<&[u8]> {
    let mut end = 12;
    loop {
        let length = *packet.get(end)?;
        end += 1 + usize::from(length);
        if length == 0 {
            return packet.get(12..end + 4);
        }
        if length > 63 {
            return None;
        }
    }
}

/// Whether an answer is to a question: the same id and the same question, regardless of case.
fn is_answer_to(answer: &[u8], id: [u8; 2], packet: &[u8]) -> bool {
    let is_same = || Some(question(answer)?.eq_ignore_ascii_case(question(packet)?));
    // Servers that cannot read a question do not repeat it (RFC 1035, section 4.1.1).
    let has_none = || answer[4..6] == [0, 0] && answer[3] & 0x0f != 0;
    answer.len() >= 12 && answer[..2] == id && answer[2] & 0x80 != 0 && (has_none() || is_same() == Some(true))
}

fn random_id() -> [u8; 2] {
    let mut id = [0; 2];
    // Without it an answer is only easier to forge, and the address is still random.
    let _ = SysRng.try_fill_bytes(&mut id);
    id
}

/// A socket of its own for each question: its port and the id are what forgers have to guess (RFC 5452).
async fn ask_by_udp(resolver: SocketAddr, packet: &[u8], patience: Duration) -> Option<Vec<u8>> {
    let any: SocketAddr = if resolver.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await.ok()?;
    socket.connect(resolver).await.ok()?;
    let id = random_id();
    let asked = [&id, &packet[2..]].concat();
    let mut answer = vec![0; MAX_ANSWER];
    for _ in 0..TRIES {
        socket.send(&asked).await.ok()?;
        let received = async {
            loop {
                let length = socket.recv(&mut answer).await.ok()?;
                if is_answer_to(&answer[..length], id, packet) {
                    return Some(length);
                }
            }
        };
        match tokio::time::timeout(patience, received).await {
            Ok(length) => {
                answer.truncate(length?);
                return Some(answer);
            }
            Err(_) => continue,
        }
    }
    None
}

async fn ask_by_tcp(resolver: SocketAddr, packet: &[u8]) -> Option<Vec<u8>> {
    converse(TcpStream::connect(resolver).await.ok()?, packet).await
}

async fn converse(mut stream: TcpStream, packet: &[u8]) -> Option<Vec<u8>> {
    let id = random_id();
    framing::write(&mut stream, &[&id, &packet[2..]].concat()).await?;
    let answer = framing::read(&mut stream).await?;
    is_answer_to(&answer, id, packet).then_some(answer)
}

async fn ask_engine(socket: &UdpSocket, waiting: &Waiting, packet: &[u8]) -> Option<Vec<u8>> {
    let (sender, answer) = oneshot::channel();
    let id = {
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let id = (0..8).map(|_| u16::from_be_bytes(random_id())).find(|id| !waiting.contains_key(id))?;
        waiting.insert(id, sender);
        id
    };
    let id = id.to_be_bytes();
    let sent = socket.send_to(&[&id, &packet[2..]].concat(), ENGINE_RESOLVER).await;
    let patience = if sent.is_ok() { PATIENCE } else { Duration::ZERO };
    let answer = tokio::time::timeout(patience, answer).await;
    if answer.is_err() {
        waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&u16::from_be_bytes(id));
    }
    let answer = answer.ok()?.ok()?;
    is_answer_to(&answer, id, packet).then_some(answer)
}

/// Hands the engine's answers to whom they are for.
async fn listen(socket: Arc<UdpSocket>, waiting: Arc<Waiting>) {
    let mut buffer = vec![0; MAX_ANSWER];
    loop {
        // An error is that of an earlier question.
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
        if from.ip() != ENGINE_RESOLVER.ip() || length < 12 {
            continue;
        }
        let id = u16::from_be_bytes([buffer[0], buffer[1]]);
        let sender = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        if let Some(sender) = sender {
            let _ = sender.send(buffer[..length].to_vec());
        }
    }
}

async fn ask_engine_by_tcp(namespace: &File, packet: &[u8]) -> Option<Vec<u8>> {
    let namespace = OwnedFd::from(namespace.try_clone().ok()?);
    let (sender, stream) = oneshot::channel();
    // A thread that has changed its namespace is never used for anything else.
    std::thread::spawn(move || drop(sender.send(connect_inside(&namespace))));
    let stream = tokio::time::timeout(PATIENCE, stream).await.ok()?.ok()?.ok()?;
    let stream = TcpStream::from_std(stream).ok()?;
    tokio::time::timeout(PATIENCE, converse(stream, packet)).await.ok()?
}

fn connect_inside(namespace: &OwnedFd) -> Result<std::net::TcpStream> {
    let what = || "cannot connect to the engine's resolver".to_owned();
    setns(namespace, CloneFlags::CLONE_NEWNET).doing(what)?;
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).doing(what)?;
    socket.bind(&SocketAddr::from((OWN_LOOPBACK, 0)).into()).doing(what)?;
    socket.connect_timeout(&ENGINE_RESOLVER.into(), PATIENCE).doing(what)?;
    socket.set_nonblocking(true).doing(what)?;
    Ok(socket.into())
}

/// The answer where no resolver answered in time.
pub fn failure(packet: &[u8]) -> Vec<u8> {
    refusal(packet, ResponseCode::ServFail)
}

/// The answer that there is no such name.
fn denial(packet: &[u8]) -> Vec<u8> {
    refusal(packet, ResponseCode::NXDomain)
}

fn refusal(packet: &[u8], code: ResponseCode) -> Vec<u8> {
    let id = packet.get(..2).map_or(0, |id| u16::from_be_bytes([id[0], id[1]]));
    let mut message = Message::error_msg(id, OpCode::Query, code);
    if let Ok(question) = Message::from_vec(packet) {
        message.metadata.recursion_desired = question.metadata.recursion_desired;
        message.add_queries(question.queries);
    }
    message.metadata.message_type = MessageType::Response;
    message.metadata.recursion_available = true;
    message.to_vec().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;

    #[test]
    fn resolvers_are_read_as_others_read_them() {
        let text = "# nameserver 1.1.1.1\nnameserver 192.0.2.1\nsearch a\nnameserver  fd00::1 \nnameserver x\n\
                    nameserver 192.0.2.2\nnameserver 192.0.2.3\n";
        let found: Vec<String> = parse(text).iter().map(SocketAddr::to_string).collect();
        assert_eq!(found, ["192.0.2.1:53", "[fd00::1]:53", "192.0.2.2:53"]);
    }

    #[test]
    fn an_answer_has_the_id_and_the_question() {
        let packet = [&[0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], b"\x03www\x07example\x00\x00\x01\x00\x01"].concat();
        let mut answer = packet.clone();
        answer[..3].copy_from_slice(&[9, 9, 0x81]);
        assert!(is_answer_to(&answer, [9, 9], &packet));
        assert!(!is_answer_to(&answer, [9, 8], &packet));
        answer[13] = b'W';
        assert!(is_answer_to(&answer, [9, 9], &packet));
        answer[13] = b'x';
        assert!(!is_answer_to(&answer, [9, 9], &packet));
        assert!(!is_answer_to(&answer[..5], [9, 9], &packet));
    }

    /// A resolver that answers once it was asked `all` questions, and counts them.
    async fn resolver(file: &std::path::Path, all: usize) -> (Arc<Upstream>, watch::Receiver<usize>) {
        let socket = UdpSocket::bind("127.0.0.53:53").await.expect("port 53 of this address is free, and this is root");
        std::fs::write(file, "nameserver 127.0.0.53\n").unwrap();
        let (count, asked) = watch::channel(0);
        tokio::spawn(async move {
            let (socket, mut buffer) = (Arc::new(socket), [0; 512]);
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let mut heard = count.subscribe();
                count.send_modify(|count| *count += 1);
                let mut answer = buffer[..length].to_vec();
                answer[2] |= 0x80;
                let socket = socket.clone();
                tokio::spawn(async move {
                    if heard.wait_for(|count| *count >= all).await.is_ok() {
                        let _ = socket.send_to(&answer, from).await;
                    }
                });
            }
        });
        (Upstream::host(file.to_owned(), Arc::default()), asked)
    }

    #[tokio::test]
    async fn a_thousand_questions_are_under_way_and_equal_ones_share_an_answer() {
        let file = std::env::temp_dir().join(format!("weft-resolv-{}", std::process::id()));
        let (upstream, mut asked) = resolver(&file, 1000).await;
        let ask = |number: usize, id: u16| {
            let upstream = upstream.clone();
            let name = format!("n{number:04}");
            let packet =
                [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 5], name.as_bytes(), &[0, 0, 1, 0, 1]].concat();
            tokio::spawn(async move {
                let from = IpAddr::from([10, 0, (id >> 8) as u8, 1]);
                upstream.ask(from, &packet, Transport::Udp).await.is_some_and(|answer| answer[..2] == packet[..2])
            })
        };
        let mut all: Vec<_> = (0..500).map(|id| ask(7, 2000 + id)).collect();
        // No more at once than the resolver's socket has room for; none is answered before all are asked.
        for number in 0..1000 {
            all.push(ask(number, number as u16));
            if number % 100 == 99 {
                asked.wait_for(|count| *count > number).await.unwrap();
            }
        }
        let mut answered = 0;
        for question in all {
            answered += usize::from(question.await.unwrap());
        }
        assert_eq!(answered, 1500);
        let asked = *asked.borrow();
        assert!(asked < 1400, "{asked} questions for a thousand");
        std::fs::remove_file(file).unwrap();
    }
}
