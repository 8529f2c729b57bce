//! Messages over TCP: each after its length (RFC 1035, section 4.2.2).

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long a connection may be silent.
const PATIENCE: Duration = Duration::from_secs(10);

/// Reads one message; none if there is none in time.
pub async fn read(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let message = async {
        let length = stream.read_u16().await.ok()?;
        let mut packet = vec![0; usize::from(length)];
        stream.read_exact(&mut packet).await.ok()?;
        Some(packet)
    };
    tokio::time::timeout(PATIENCE, message).await.ok()?
}

/// Writes one message.
pub async fn write(stream: &mut TcpStream, message: &[u8]) -> Option<()> {
    let length = u16::try_from(message.len()).ok()?;
    let framed = [&length.to_be_bytes()[..], message].concat();
    tokio::time::timeout(PATIENCE, stream.write_all(&framed)).await.ok()?.ok()
}
