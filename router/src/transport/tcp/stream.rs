//! What a connection's bytes go through: the socket, or TLS around it.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What TLS holds of sent bytes at most, beside what waits for room.
const MAX_RECORDS: usize = 64 * 1024;
/// What TLS may still hold of an earlier read: one record, and its header (RFC 8446, section 5.2).
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

    /// Reads what there is, up to `at_once` bytes from the network, into a buffer of more than twice that; returns how many bytes, none at the
    /// end. Errors as for [`Stream::write`].
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
    let mut len = 0;
    let mut end = false;
    loop {
        match tls.reader().read(&mut opened[len..]) {
            Ok(read @ 1..) => {
                len += read;
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && len == 0 && !end => {}
            Err(error) if len == 0 => return Err(error),
            _ => return Ok(len),
        }
        let read = socket.read(came)?;
        end = read == 0;
        let mut rest = &came[..read];
        loop {
            // Nothing: the end of the stream, which has to be told, too.
            tls.read_tls(&mut rest)?;
            tls.process_new_packets().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            while let Ok(read @ 1..) = tls.reader().read(&mut opened[len..]) {
                len += read;
            }
            if rest.is_empty() {
                break;
            }
        }
    }
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
