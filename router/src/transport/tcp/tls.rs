//! TLS around connections, for networks that let nothing else out to port 443.
//!
//! It is a wrapper that proves nothing: each host makes itself a certificate, and takes any. What the connection carries is sealed and
//! authenticated without it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::stream::Stream;
use crate::error::{Doing, Result};

/// The first byte of a connection inside TLS (ContentType handshake, RFC 8446, section 5.1). No datagram that begins a connection has a
/// length with this first byte: the first are handshakes and pings, of some hundred bytes.
pub const FIRST_BYTE: u8 = 22;
/// What certificates are made out to: all hosts are alike.
const NAME: &str = "localhost";

/// Both ends of TLS.
pub struct Tls {
    connector: TlsConnector,
    acceptor: TlsAcceptor,
}

impl Tls {
    /// Makes this host a key and a certificate.
    pub fn new() -> Result<Tls> {
        let what = || "cannot make a TLS certificate".to_owned();
        let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()]).doing(what)?;
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = Arc::new(AnyCertificate(provider.signature_verification_algorithms));
        let client = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let mut client =
            client.doing(what)?.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
        // Nothing is kept for the next time.
        client.resumption = Resumption::disabled();
        Ok(Tls {
            connector: TlsConnector::from(Arc::new(client)),
            acceptor: TlsAcceptor::from(Arc::new(server(provider, made.cert.into(), key).doing(what)?)),
        })
    }

    /// Wraps a connection that this host opened to an address.
    pub async fn connect(&self, stream: TcpStream, to: SocketAddr) -> io::Result<Stream> {
        let (stream, tls) = self.connector.connect(ServerName::from(to.ip()), stream).await?.into_inner();
        Ok(Stream::tls(stream.into_std()?, tls.into()))
    }

    /// Answers a stranger's TLS handshake.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<Stream> {
        let (stream, tls) = self.acceptor.accept(stream).await?.into_inner();
        Ok(Stream::tls(stream.into_std()?, tls.into()))
    }
}

fn server(
    provider: Arc<CryptoProvider>,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
) -> std::result::Result<ServerConfig, rustls::Error> {
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = config.with_no_client_auth().with_single_cert(vec![certificate], key)?;
    // Nothing is kept for hosts that come back.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(config)
}

/// Takes any certificate, so that its owner has the key.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
