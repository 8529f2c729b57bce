//! Opening a connection: plainly, or inside TLS where connections opened the other way bring nothing.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tracing::{debug, warn};

use super::connection::Connection;
use super::stream::Stream;
use super::{Connections, in_time};

/// How long an open connection may bring nothing before it is opened the other way: this many times what opening it took, which is a round trip
/// or more, within bounds.
const PATIENCE: u32 = 4;
const LEAST_PATIENCE: Duration = Duration::from_millis(500);
const MOST_PATIENCE: Duration = Duration::from_secs(2);
/// Addresses that connections are opened to inside TLS, and for how long: a host that was only slow, or a network that looks no longer, is tried without again.
const MAX_WRAPPED: usize = 1024;
const WRAPPED_FOR: Duration = Duration::from_secs(3600);

impl Connections {
    /// Opens a connection in a task of its own. If it brings nothing, it is opened once more the other way, and what was sent is sent again.
    pub(super) fn begin_to_open(self: &Arc<Self>, connection: &Arc<Connection>) {
        let (connections, opened) = (self.clone(), connection.clone());
        let task = self.runtime.spawn(async move {
            let begun = Instant::now();
            if let Err(error) = connections.open(&opened).await {
                connections.give_up_opening(&opened, &error);
                return;
            }
            let patience = (begun.elapsed() * PATIENCE).clamp(LEAST_PATIENCE, MOST_PATIENCE);
            tokio::time::sleep(patience).await;
            if opened.is_mute() {
                connections.open_otherwise(&opened);
            }
        });
        connection.set_task(task.abort_handle());
    }

    async fn open(&self, connection: &Arc<Connection>) -> io::Result<()> {
        let to = connection.path.remote;
        let stream = in_time(async {
            match &self.proxy {
                Some(proxy) => proxy.connect(to).await,
                None => TcpStream::connect(to).await,
            }
        });
        let stream = stream.await?;
        let is_wrapped = self.wrapped().get(&to).is_some_and(|since| since.elapsed() < WRAPPED_FOR);
        let stream = if is_wrapped {
            let wrapped = in_time(self.tls.connect(stream, to)).await;
            wrapped.inspect_err(|_| self.wrap_otherwise(to))?
        } else {
            Stream::Plain(stream.into_std()?)
        };
        self.take_up(connection, stream)
    }

    fn give_up_opening(&self, connection: &Arc<Connection>, error: &io::Error) {
        match &self.proxy {
            Some(_) if !self.has_warned.swap(true, Ordering::Relaxed) => {
                warn!(path = %connection.path, "the proxy leads to no other host; see --proxy: {error}");
            }
            _ => debug!(path = %connection.path, "a connection cannot be opened: {error}"),
        }
        self.close(connection);
    }

    /// A connection brought nothing: the other way is tried, at once if it was not the second one.
    pub(super) fn open_otherwise(self: &Arc<Self>, mute: &Arc<Connection>) {
        let other = mute.again().map(Arc::new);
        if let Some(other) = other.filter(|other| self.replace(mute, other)) {
            self.wrap_otherwise(mute.path.remote);
            self.begin_to_open(&other);
            mute.shut_down();
        } else if self.close(mute) {
            self.wrap_otherwise(mute.path.remote);
        }
    }

    /// The next connection to an address goes inside TLS, or if the last one did, without.
    fn wrap_otherwise(&self, to: SocketAddr) {
        let mut wrapped = self.wrapped();
        if wrapped.remove(&to).is_some_and(|since| since.elapsed() < WRAPPED_FOR) {
            return;
        }
        if wrapped.len() >= MAX_WRAPPED {
            wrapped.pop_first();
        }
        wrapped.insert(to, Instant::now());
        debug!(%to, "connections bring nothing: the next goes inside TLS");
    }

    fn wrapped(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Instant>> {
        self.wrapped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use weft_mesh::path::Path;
    use weft_mesh::wire::Lane;

    use super::*;
    use crate::transport::tcp::connection::Incoming;
    use crate::transport::tcp::tls::{FIRST_BYTE, Tls};
    use crate::transport::tcp::{Ended, Proxy};

    async fn datagram(stream: &mut (impl AsyncReadExt + Unpin)) -> Vec<u8> {
        let length = stream.read_u16().await.unwrap();
        let mut datagram = vec![0; usize::from(length)];
        stream.read_exact(&mut datagram).await.unwrap();
        datagram
    }

    #[tokio::test]
    async fn what_is_sent_while_a_connection_is_slow_to_open_does_not_end_it() {
        let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at: Proxy = format!("http://{}", proxy.local_addr().unwrap()).parse().unwrap();
        let (connections, _ends) = Connections::new(Some(at)).unwrap();
        let to = Path::tcp(([192, 0, 2, 1], 443).into());
        connections.send_or_open(Lane::Main, to, &[1; 100], 100).unwrap();
        let (mut client, _) = proxy.accept().await.unwrap();
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            asked.push(client.read_u8().await.unwrap());
        }
        // What waits is late by now, and what is sent is dropped.
        tokio::time::sleep(Duration::from_millis(150)).await;
        let sent = connections.send_or_open(Lane::Main, to, &[2; 100], 100);
        assert_eq!(sent.map_err(|error| error.kind()), Err(io::ErrorKind::NotConnected));
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
        let mut datagram = [0; 102];
        client.read_exact(&mut datagram).await.unwrap();
        assert_eq!(datagram[..3], [0, 100, 1]);
    }

    #[tokio::test]
    async fn a_connection_that_brings_nothing_is_opened_again_inside_tls_and_says_the_same() {
        is_opened_again(false).await;
    }

    #[tokio::test]
    async fn so_is_one_that_is_closed_before_anything_came() {
        is_opened_again(true).await;
    }

    async fn is_opened_again(is_closed: bool) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = Path::tcp(listener.local_addr().unwrap());
        let (connections, mut ends) = Connections::new(None).unwrap();
        let begun = Instant::now();
        connections.send_or_open(Lane::Main, to, &[1; 200], 100).unwrap();
        let (mut plain, _) = listener.accept().await.unwrap();
        assert_eq!(datagram(&mut plain).await, [1; 100]);
        assert_eq!(datagram(&mut plain).await, [1; 100]);
        if is_closed {
            drop(plain);
            let first = Incoming::of(ends.opened.recv().await.unwrap()).unwrap();
            connections.on_ended(Ended::Over(first.connection().clone()));
        }
        let (second, _) = listener.accept().await.unwrap();
        assert!(is_closed || begun.elapsed() >= LEAST_PATIENCE);
        let mut first = [0];
        second.peek(&mut first).await.unwrap();
        assert_eq!(first, [FIRST_BYTE]);
        let far = Connection::new(Path::accepted_tcp(to.remote));
        far.open(Tls::new().unwrap().accept(second).await.unwrap()).unwrap();
        let mut incoming = Incoming::of(Arc::new(far)).unwrap();
        let mut buffer = vec![0; 1 << 18];
        let said: Vec<Vec<u8>> = loop {
            match incoming.read(false, &mut buffer) {
                Ok(datagrams) if datagrams.is_empty() => {}
                Ok(datagrams) => break datagrams.into_iter().map(|datagram| datagram.data.to_vec()).collect(),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        assert_eq!(said, [[1; 100], [1; 100]]);
        assert!(connections.is_in_tls(to.remote));
        assert!(ends.closed.try_recv().is_err(), "for the node it is the same path");
    }
}
