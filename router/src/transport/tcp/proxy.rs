//! Connections by way of an HTTP proxy (CONNECT, RFC 9110, section 9.3.6).

use std::io;
use std::net::SocketAddr;
use std::str::FromStr;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::header::{HOST, HeaderValue, PROXY_AUTHORIZATION};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use tokio::net::TcpStream;

/// The port of proxies that name none.
const DEFAULT_PORT: u16 = 3128;

/// An HTTP proxy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proxy {
    /// `host:port`.
    authority: String,
    /// What it knows this host by.
    authorization: Option<HeaderValue>,
}

impl FromStr for Proxy {
    type Err = String;

    /// Reads `http://[USER:PASSWORD@]HOST[:PORT]`.
    fn from_str(text: &str) -> Result<Proxy, String> {
        let bad = || format!("'{text}' is no proxy: it takes http://[USER:PASSWORD@]HOST[:PORT]");
        let uri: Uri = text.parse().map_err(|_| bad())?;
        let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http")).ok_or_else(bad)?;
        let host = Some(authority.host()).filter(|host| !host.is_empty()).ok_or_else(bad)?;
        let authorization = match authority.as_str().rsplit_once('@') {
            None => None,
            Some((login, _)) => {
                let login = percent_decode_str(login).collect::<Vec<u8>>();
                let login = BASE64_STANDARD.encode(login);
                let mut value = HeaderValue::from_str(&format!("Basic {login}")).map_err(|_| bad())?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let after = authority.as_str().rsplit_once(host).map_or("", |(_, rest)| rest);
        let port = match after.strip_prefix(':') {
            Some(port) => port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(bad)?,
            None => DEFAULT_PORT,
        };
        Ok(Proxy { authority: format!("{host}:{port}"), authorization })
    }
}

impl Proxy {
    /// Opens a connection to an address. An error: the proxy is not there, or refuses.
    pub async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(&self.authority).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        tokio::spawn(connection.with_upgrades());
        let mut request = Request::builder().method(Method::CONNECT).uri(to.to_string()).header(HOST, to.to_string());
        if let Some(authorization) = &self.authorization {
            request = request.header(PROXY_AUTHORIZATION, authorization);
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        if !response.status().is_success() {
            return Err(io::Error::other(format!("the proxy {} answers {}", self.authority, response.status())));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(io::Error::other)?;
        let parts = upgraded.downcast::<TokioIo<TcpStream>>().map_err(|_| io::ErrorKind::InvalidData)?;
        // The other end of a new connection says nothing before it is asked.
        if parts.read_buf.is_empty() { Ok(parts.io.into_inner()) } else { Err(io::ErrorKind::InvalidData.into()) }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A proxy that takes one request, answers it, and then says back what it hears. Returns what was asked.
    async fn serve(listener: TcpListener, answer: &'static [u8]) -> String {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            asked.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(answer).await.unwrap();
        let mut buffer = [0; 16];
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            stream.write_all(&buffer[..read]).await.unwrap();
        }
        String::from_utf8(asked).unwrap()
    }

    #[tokio::test]
    async fn a_connection_leads_through_a_proxy_that_wants_a_login() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy: Proxy = format!("http://weft:se%20cret@{}", listener.local_addr().unwrap()).parse().unwrap();
        let served = tokio::spawn(serve(listener, b"HTTP/1.1 200 Connection established\r\n\r\n"));
        let mut stream = proxy.connect(([192, 0, 2, 1], 443).into()).await.unwrap();
        stream.write_all(b"ping").await.unwrap();
        let mut echo = [0; 4];
        stream.read_exact(&mut echo).await.unwrap();
        assert_eq!(&echo, b"ping");
        drop(stream);
        let asked = served.await.unwrap();
        assert!(asked.starts_with("CONNECT 192.0.2.1:443 HTTP/1.1\r\n"), "{asked}");
        let login = BASE64_STANDARD.encode("weft:se cret");
        assert!(asked.contains(&format!("Basic {login}\r\n")), "{asked}");
    }

    #[tokio::test]
    async fn a_proxy_that_refuses_is_named_with_its_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy: Proxy = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(serve(listener, b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n"));
        let error = proxy.connect(([192, 0, 2, 1], 443).into()).await.unwrap_err().to_string();
        assert!(error.contains("407") && error.contains(&proxy.authority), "{error}");
    }

    #[test]
    fn what_is_no_proxy_is_refused() {
        assert_eq!("http://proxy".parse::<Proxy>().unwrap().authority, "proxy:3128");
        assert_eq!("http://[fd00::1]:8080".parse::<Proxy>().unwrap().authority, "[fd00::1]:8080");
        for bad in
            ["", "proxy:3128", "https://proxy", "socks5://proxy", "http://", "http://proxy:99999", "http://proxy:0"]
        {
            assert!(bad.parse::<Proxy>().is_err(), "{bad}");
        }
    }
}
