//! The other end of the control socket: what the commands use.

use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::error::{Doing, Failure, Result};

/// How long an answer is awaited.
const PATIENCE: Duration = Duration::from_secs(30);

/// Asks the router on this host.
pub async fn ask<T: DeserializeOwned>(socket: &Path, method: Method, path: &str, body: &impl Serialize) -> Result<T> {
    tokio::time::timeout(PATIENCE, converse(socket, method, path, body)).await.unwrap_or_else(|_| {
        Err(Failure::new(format!(
            "the router on {} has not answered for {PATIENCE:?}; see its log, or restart it",
            socket.display()
        )))
    })
}

/// Whether a router is there.
pub async fn is_served(socket: &Path) -> bool {
    let refused = [std::io::ErrorKind::NotFound, std::io::ErrorKind::ConnectionRefused];
    UnixStream::connect(socket).await.map_or_else(|error| !refused.contains(&error.kind()), |_| true)
}

async fn converse<T: DeserializeOwned>(socket: &Path, method: Method, path: &str, body: &impl Serialize) -> Result<T> {
    let what = || format!("cannot talk to the router on {}", socket.display());
    let stream = UnixStream::connect(socket).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            Failure::new(format!("may not use {}: run as the user that the router runs as", socket.display()))
        }
        _ => Failure::new(format!("no router runs here (on {}); start one with: weft launch", socket.display())),
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.doing(what)?;
    tokio::spawn(connection);
    let body = serde_json::to_vec(body).doing(what)?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "weft")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .doing(what)?;
    let response = sender.send_request(request).await.doing(what)?;
    let status = response.status();
    let body = response.into_body().collect().await.doing(what)?.to_bytes();
    if status.is_success() {
        return serde_json::from_slice(&body).doing(what);
    }
    let error: Value = serde_json::from_slice(&body).unwrap_or_default();
    let message = error["error"].as_str().map_or_else(|| format!("{}: {status}", what()), str::to_owned);
    Err(if status == hyper::StatusCode::BAD_REQUEST { Failure::Usage(message) } else { Failure::new(message) })
}
