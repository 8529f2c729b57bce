//! One TCP connection as a path for datagrams: each with its length before it, many in one write and one read.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;
use weft_mesh::ingress::RxBuffer;
use weft_mesh::path::{Path, Transport};
use weft_mesh::wire::Lane;

use super::stream::Stream;
use super::tls;

/// Bytes of a datagram's length, in network byte order.
pub const LENGTH: usize = 2;
/// What waits for room at most: bytes, and how long the oldest of them. TCP repeats and holds back, so what waits longer would only make
/// the connections inside wait, which repeat it themselves.
const MAX_WAITING: usize = 512 * 1024;
const MAX_WAIT: Duration = Duration::from_millis(100);
/// How much of it bulk may take: the rest is for what is urgent.
const MAX_BULK: usize = MAX_WAITING / 8 * 7;
/// The smallest packet that means anything, in bytes: smaller ones would cost more than their bytes.
const SMALLEST: usize = 40;
/// What an end may send that has proven nothing yet, in bytes: a datagram, at one time, and in all. The first link goes up within a round trip,
/// while the other end may already send.
const UNPROVEN_DATAGRAM: usize = 10_000;
const UNPROVEN_AT_ONCE: usize = 16 * 1024;
const UNPROVEN: usize = 4 << 20;
/// What is kept of what was sent before anything came, in bytes: a few handshakes.
const MAX_UNANSWERED: usize = 16 * 1024;

/// A connection, open or being opened.
pub struct Connection {
    /// The path that it is.
    pub path: Path,
    /// Once it is open.
    stream: OnceLock<Stream>,
    /// The task that opens it.
    opening: OnceLock<AbortHandle>,
    /// Whether anything came by it.
    was_heard: AtomicBool,
    /// Whether one before it for the same path brought nothing.
    is_second: bool,
    waiting: Mutex<Waiting>,
    /// Since when no link goes over it; none if one does.
    unused_since: Mutex<Option<Instant>>,
}

/// What waits for room, framed.
#[derive(Default)]
struct Waiting {
    /// Datagrams of which the kernel has the beginning, and how many bytes: nothing may come before the rest.
    begun: Vec<u8>,
    written: usize,
    /// In the order of [`Lane::ALL`].
    lanes: [VecDeque<Piece>; Lane::ALL.len()],
    len: usize,
    /// The first datagrams that this host sent over a connection by which nothing has come, framed; up to [`MAX_UNANSWERED`].
    unanswered: Vec<u8>,
}

/// Datagrams that were sent in one go.
struct Piece {
    bytes: Vec<u8>,
    since: Instant,
}

impl Connection {
    /// A connection that is not open yet: what is sent waits.
    pub fn new(path: Path) -> Self {
        Connection {
            path,
            stream: OnceLock::new(),
            opening: OnceLock::new(),
            was_heard: AtomicBool::new(false),
            is_second: false,
            waiting: Mutex::default(),
            unused_since: Mutex::new(Some(Instant::now())),
        }
    }

    /// A task opens it, which ends if the connection is given up before.
    pub fn set_task(&self, task: AbortHandle) {
        // Each connection is opened once.
        let _ = self.opening.set(task);
    }

    /// The connection is open: what waits is sent.
    pub fn open(&self, stream: Stream) -> io::Result<()> {
        let _ = self.stream.set(stream);
        self.flush()
    }

    /// The stream, once it is open.
    pub fn stream(&self) -> Option<&Stream> {
        self.stream.get()
    }

    /// Whether it is inside TLS.
    pub fn is_in_tls(&self) -> bool {
        matches!(self.stream(), Some(Stream::Tls(..)))
    }

    /// Whether this host opened it, and nothing has come by it.
    pub fn is_mute(&self) -> bool {
        self.path.transport == Transport::Tcp && self.stream().is_some() && !self.was_heard.load(Ordering::Relaxed)
    }

    /// A second connection for its path that is not open yet, in which the unanswered datagrams wait; none if it is a second one itself.
    pub fn again(&self) -> Option<Self> {
        if self.is_second {
            return None;
        }
        let bytes = std::mem::take(&mut self.waiting().unanswered);
        let waiting = Waiting { len: bytes.len(), begun: bytes, ..Waiting::default() };
        Some(Connection { is_second: true, waiting: Mutex::new(waiting), ..Connection::new(self.path) })
    }

    /// Notes whether a link goes over it.
    pub fn set_used(&self, is_used: bool) {
        let mut since = self.unused_since.lock().unwrap_or_else(PoisonError::into_inner);
        *since = if is_used { None } else { since.or_else(|| Some(Instant::now())) };
    }

    /// How long no link has gone over it; none if one does.
    pub fn unused_for(&self) -> Option<Duration> {
        let since = *self.unused_since.lock().unwrap_or_else(PoisonError::into_inner);
        since.map(|since| since.elapsed())
    }

    /// Ends it, for both directions.
    pub fn shut_down(&self) {
        if let Some(stream) = self.stream() {
            // It may be closed by the other end already.
            let _ = stream.socket().shutdown(Shutdown::Both);
        }
    }

    /// Ends it, also if it is only being opened.
    pub fn give_up(&self) {
        if let Some(task) = self.opening.get() {
            task.abort();
        }
        self.shut_down();
    }

    /// Sends datagrams of `stride` bytes each, the last one maybe shorter. An error: they were lost, for want of room if it is
    /// [`io::ErrorKind::WouldBlock`].
    pub fn send(&self, lane: Lane, datagrams: &[u8], stride: usize) -> io::Result<()> {
        let stride = stride.clamp(1, usize::from(u16::MAX));
        let mut waiting = self.waiting();
        let now = Instant::now();
        if !waiting.has_room(lane, datagrams.len(), now) {
            // What cannot be opened is no connection that takes too little.
            let is_open = self.stream().is_some();
            return Err(if is_open { io::ErrorKind::WouldBlock } else { io::ErrorKind::NotConnected }.into());
        }
        let mut bytes = Vec::with_capacity(datagrams.len() + datagrams.len().div_ceil(stride) * LENGTH);
        for datagram in datagrams.chunks(stride) {
            bytes.extend_from_slice(&(datagram.len() as u16).to_be_bytes());
            bytes.extend_from_slice(datagram);
        }
        if self.was_heard.load(Ordering::Relaxed) {
            waiting.unanswered = Vec::new();
        } else if self.path.transport == Transport::Tcp && waiting.unanswered.len() + bytes.len() <= MAX_UNANSWERED {
            waiting.unanswered.extend_from_slice(&bytes);
        }
        waiting.len += bytes.len();
        waiting.lanes[lane as usize].push_back(Piece { bytes, since: now });
        self.stream().map_or(Ok(()), |stream| waiting.flush(stream))
    }

    /// Sends what waits, as far as there is room. An error: the connection is broken.
    pub fn flush(&self) -> io::Result<()> {
        self.stream().map_or(Ok(()), |stream| self.waiting().flush(stream))
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn has_room(&self, lane: Lane, len: usize, now: Instant) -> bool {
        let most = if lane == Lane::Urgent { MAX_WAITING } else { MAX_BULK };
        let is_late = self.lanes[lane as usize].front().is_some_and(|piece| now - piece.since > MAX_WAIT);
        self.len + len <= most && !is_late
    }

    fn flush(&mut self, stream: &Stream) -> io::Result<()> {
        loop {
            if self.written == self.begun.len() {
                let Some(piece) = self.lanes.iter_mut().find_map(VecDeque::pop_front) else { break };
                (self.begun, self.written) = (piece.bytes, 0);
            }
            match stream.write(&self.begun[self.written..]) {
                Ok(written) => {
                    self.len -= written;
                    self.written += written;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        match stream.flush() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            flushed => flushed,
        }
    }
}

/// The receiving side of a connection.
pub struct Incoming {
    /// Open.
    connection: Arc<Connection>,
    /// The beginning of a datagram whose rest has not come yet.
    begun: Vec<u8>,
    /// Bytes that have come before anything was proven.
    unproven: usize,
}

impl Incoming {
    /// What comes over a connection; none if it is not open.
    pub fn of(connection: Arc<Connection>) -> Option<Incoming> {
        connection.stream().is_some().then(|| Incoming { connection, begun: Vec::new(), unproven: 0 })
    }

    /// The connection.
    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// The descriptor to wait on.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream().socket().as_fd()
    }

    fn stream(&self) -> &Stream {
        // It was open when this was made, and stays so.
        self.connection.stream().expect("an open connection")
    }

    /// Whether the other end, which opened the connection, begins with a TLS handshake; nothing was read yet then. An error: nothing came yet, or
    /// the connection is over.
    pub fn begins_with_tls(&self) -> io::Result<bool> {
        let may_be = self.connection.path.transport == Transport::AcceptedTcp
            && !self.connection.was_heard.load(Ordering::Relaxed);
        let mut first = [0];
        match self.stream() {
            Stream::Plain(socket) if may_be => Ok(socket.peek(&mut first)? > 0 && first == [tls::FIRST_BYTE]),
            _ => Ok(false),
        }
    }

    /// Reads what there is into a buffer of 128 KiB at least, and returns the datagrams in it. An error of another kind than
    /// [`io::ErrorKind::WouldBlock`]: the connection is over, or what comes is no row of datagrams.
    pub fn read<'a>(&mut self, is_proven: bool, buffer: &'a mut [u8]) -> io::Result<Vec<RxBuffer<'a>>> {
        let begun = self.begun.len();
        buffer[..begun].copy_from_slice(&self.begun);
        let (longest, at_once) = match is_proven {
            true => (usize::from(u16::MAX), buffer.len()),
            false => (UNPROVEN_DATAGRAM, UNPROVEN_AT_ONCE),
        };
        let read = self.stream().read(&mut buffer[begun..], at_once.saturating_sub(begun).max(1))?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.connection.was_heard.store(true, Ordering::Relaxed);
        self.begun.clear();
        self.unproven += if is_proven { 0 } else { read };
        if self.unproven > UNPROVEN {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let mut datagrams = Vec::new();
        let mut rest = &mut buffer[..begun + read];
        while let Some(length) = rest.first_chunk::<LENGTH>() {
            let length = usize::from(u16::from_be_bytes(*length));
            if !(SMALLEST..=longest).contains(&length) {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if rest.len() < LENGTH + length {
                break;
            }
            let (datagram, more) = std::mem::take(&mut rest).split_at_mut(LENGTH + length);
            datagrams.push(RxBuffer { from: self.connection.path, data: &mut datagram[LENGTH..], stride: length });
            rest = more;
        }
        self.begun.extend_from_slice(rest);
        Ok(datagrams)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// A connection, and the stream at its other end.
    fn connected() -> (Arc<Connection>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, from) = listener.accept().unwrap();
        near.set_nonblocking(true).unwrap();
        let connection = Connection::new(Path::tcp(from));
        connection.open(Stream::Plain(near)).unwrap();
        (Arc::new(connection), far)
    }

    fn socket(connection: &Connection) -> &TcpStream {
        connection.stream().unwrap().socket()
    }

    #[test]
    fn datagrams_arrive_whole_however_the_bytes_come() {
        let (near, far) = connected();
        let (other, _far) = connected();
        far.set_nonblocking(true).unwrap();
        let receiver = Connection::new(Path::accepted_tcp(socket(&near).local_addr().unwrap()));
        receiver.open(Stream::Plain(far)).unwrap();
        let mut incoming = Incoming::of(Arc::new(receiver)).unwrap();
        let mut buffer = vec![0; 1 << 18];
        let mut received: Vec<Vec<u8>> = Vec::new();
        let mut writer = socket(&near);
        near.send(Lane::Main, &[7; 2500], 1000).unwrap();
        // A datagram in three parts.
        let last = [&[0, 50][..], &[1; 50]].concat();
        for part in [&last[..1], &last[1..20], &last[20..]] {
            writer.write_all(part).unwrap();
            std::thread::sleep(Duration::from_millis(5));
            match incoming.read(false, &mut buffer) {
                Ok(datagrams) => received.extend(datagrams.into_iter().map(|datagram| datagram.data.to_vec())),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        assert_eq!(received, [vec![7; 1000], vec![7; 1000], vec![7; 500], vec![1; 50]]);
        drop(other);
    }

    #[test]
    fn what_is_no_row_of_datagrams_ends_the_connection() {
        let mut buffer = vec![0; 1 << 18];
        for (bytes, is_proven) in
            [(&b"GET / HTTP/1.1\r\n\r\n"[..], false), (&[0, 0, 1][..], true), (&[0, 1, 1][..], true)]
        {
            let (near, mut far) = connected();
            far.write_all(bytes).unwrap();
            let mut incoming = Incoming::of(near.clone()).unwrap();
            socket(&near).set_nonblocking(false).unwrap();
            let error = incoming.read(is_proven, &mut buffer).err().expect("refused");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        let (near, far) = connected();
        drop(far);
        socket(&near).set_nonblocking(false).unwrap();
        let error = Incoming::of(near).unwrap().read(true, &mut buffer).err().expect("closed");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_connection_that_takes_nothing_drops_and_does_not_grow() {
        let (near, far) = connected();
        let sent = (0..10_000).filter(|_| near.send(Lane::Main, &[1; 64_000], 1400).is_ok()).count();
        let waiting = near.waiting().len;
        assert!(sent < 9_000 && waiting <= MAX_BULK + MAX_BULK / 100, "{sent} sent, {waiting} wait");
        near.send(Lane::Urgent, &[1; 100], 100).expect("bulk leaves room for what is urgent");
        // What waits leaves in order once there is room, with what is urgent first; no datagram is torn.
        near.waiting().lanes[Lane::Main as usize].iter_mut().for_each(|piece| piece.since = Instant::now());
        let reader = std::thread::spawn(move || {
            let mut lengths = BTreeSet::new();
            let (mut far, mut length) = (far, [0; LENGTH]);
            while far.read_exact(&mut length).is_ok() {
                let mut datagram = vec![0; usize::from(u16::from_be_bytes(length))];
                far.read_exact(&mut datagram).unwrap();
                assert!(datagram.iter().all(|byte| *byte == 1));
                lengths.insert(datagram.len());
            }
            lengths
        });
        while near.waiting().len > 0 {
            near.flush().unwrap();
            std::thread::yield_now();
        }
        near.shut_down();
        assert_eq!(reader.join().unwrap(), [100, 64_000 % 1400, 1400].into());
    }
}
