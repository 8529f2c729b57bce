//! A connection's stream of bytes: a socket, or TLS around one.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Sent bytes that TLS holds at most, beside those that wait for room.
const MAX_RECORDS: usize = 64 * 1024;
/// Received bytes that TLS may hold of an earlier read: one record with its header (RFC 8446, section 5.2).
const LONGEST_RECORD: usize = 18 * 1024;

/// An open stream of bytes, which does not block.
pub enum Stream {
    /// The socket's own.
    Plain(TcpStream),
    /// Inside TLS.
    Tls(TcpStream, Box<Mutex<rustls::Connection>>),
}

impl Stream {
    /// A stream inside TLS, after its handshake.
    pub fn tls(socket: TcpStream, mut tls: rustls::Connection) -> Stream {
        tls.set_buffer_limit(Some(MAX_RECORDS));
        Stream::Tls(socket, Box::new(Mutex::new(tls)))
    }

    /// The socket under it.
    pub fn socket(&self) -> &TcpStream {
        match self {
            Stream::Plain(socket) | Stream::Tls(socket, _) => socket,
        }
    }

    /// Takes bytes to send; returns how many. An error of another kind than [`io::ErrorKind::WouldBlock`]: the stream is broken.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => (&*socket).write(bytes),
            Stream::Tls(socket, tls) => {
                let mut tls = lock(tls);
                write_records(&mut tls, socket)?;
                let taken = tls.writer().write(bytes)?;
                match write_records(&mut tls, socket) {
                    Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
                    _ => Ok(taken),
                }
            }
        }
    }

    /// Sends what was taken and has not left yet. Errors as for [`Stream::write`].
    pub fn flush(&self) -> io::Result<()> {
        match self {
            Stream::Plain(_) => Ok(()),
            Stream::Tls(socket, tls) => write_records(&mut lock(tls), socket),
        }
    }

    /// Reads what there is, up to `at_once` bytes from the network and no more than fit the buffer twice; returns how many bytes, none at
    /// the end. Errors as for [`Stream::write`].
    pub fn read(&self, buffer: &mut [u8], at_once: usize) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => {
                let end = at_once.min(buffer.len());
                (&*socket).read(&mut buffer[..end])
            }
            Stream::Tls(socket, tls) => read_records(&mut lock(tls), socket, buffer, at_once),
        }
    }
}

fn lock(tls: &Mutex<rustls::Connection>) -> MutexGuard<'_, rustls::Connection> {
    tls.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write_records(tls: &mut rustls::Connection, mut socket: &TcpStream) -> io::Result<()> {
    while tls.wants_write() {
        match tls.write_tls(&mut socket) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            written => drop(written?),
        }
    }
    Ok(())
}

fn read_records(
    tls: &mut rustls::Connection,
    mut socket: &TcpStream,
    buffer: &mut [u8],
    at_once: usize,
) -> io::Result<usize> {
    // The end of the buffer takes what comes, the rest what is inside.
    let at_once = at_once.min(buffer.len().saturating_sub(LONGEST_RECORD) / 2).max(1);
    let (opened, came) = buffer.split_at_mut(buffer.len() - at_once);
    match tls.reader().read(opened) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        // Opened before, with the end of the handshake.
        read => return read,
    }
    let read = socket.read(came)?;
    let (mut rest, mut len) = (&came[..read], 0);
    loop {
        // Nothing, at the end of the stream: that has to be told, too. After that nothing is taken.
        let taken = tls.read_tls(&mut rest)?;
        tls.process_new_packets().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        while let Ok(read @ 1..) = tls.reader().read(&mut opened[len..]) {
            len += read;
        }
        if taken == 0 || rest.is_empty() {
            break;
        }
    }
    if len > 0 { Ok(len) } else { tls.reader().read(opened) }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::super::tls::Tls;
    use super::*;

    /// Two ends of one stream inside TLS.
    async fn connected() -> (Stream, Stream) {
        let tls = Tls::new().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let near = async { tls.connect(tokio::net::TcpStream::connect(at).await?, at).await };
        let far = async { tls.accept(listener.accept().await?.0).await };
        tokio::try_join!(near, far).unwrap()
    }

    #[tokio::test]
    async fn bytes_come_out_of_tls_as_they_went_in_however_they_are_read() {
        let (near, far) = connected().await;
        let sent: Vec<u8> = (0..3_000_000u32).map(|n| (n / 7) as u8).collect();
        let (mut given, mut taken) = (0, Vec::new());
        let mut buffer = vec![0; 128 * 1024];
        while taken.len() < sent.len() {
            match near.write(&sent[given..]) {
                Ok(written) => given += written,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
            let _ = near.flush();
            let at_once = if taken.len() % 2 == 0 { 16 * 1024 } else { buffer.len() };
            match far.read(&mut buffer, at_once) {
                Ok(read) => taken.extend_from_slice(&buffer[..read]),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        assert!(taken == sent);
        drop(near);
        let ended = std::iter::repeat_with(|| far.read(&mut buffer, 1024))
            .find(|read| !matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock));
        assert!(matches!(ended, Some(Ok(0) | Err(_))), "{ended:?}");
    }

    #[tokio::test]
    async fn a_stream_is_over_once_the_other_end_says_so_whatever_comes_after() {
        let (near, far) = connected().await;
        let Stream::Tls(mut socket, tls) = far else { panic!("it is inside TLS") };
        lock(&tls).send_close_notify();
        let mut burst = Vec::new();
        lock(&tls).write_tls(&mut burst).unwrap();
        burst.extend([23; 10_000]);
        socket.write_all(&burst).unwrap();
        let mut buffer = vec![0; 128 * 1024];
        let read = std::iter::repeat_with(|| near.read(&mut buffer, 16 * 1024)).find_map(|read| match read {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            read => Some(read),
        });
        assert!(matches!(read, Some(Ok(0) | Err(_))), "{read:?}");
    }

    #[tokio::test]
    async fn what_is_no_record_breaks_the_stream_and_what_waits_is_bounded() {
        let (near, far) = connected().await;
        let taken: usize = std::iter::repeat_with(|| near.write(&[7; 4096])).map_while(io::Result::ok).sum();
        assert!(taken < 64 << 20, "{taken} bytes are taken that have no way");
        let Stream::Tls(mut socket, _) = far else { panic!("it is inside TLS") };
        socket.write_all(b"no record of TLS at all").unwrap();
        let mut buffer = vec![0; 128 * 1024];
        let broken = std::iter::repeat_with(|| near.read(&mut buffer, 1024)).find_map(|read| match read {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            read => Some(read),
        });
        assert!(matches!(broken, Some(Err(_))), "{broken:?}");
    }
}
