//! The HTTP server: it only reads, and only for those that asked for this host.
//!
//! Its clients are strangers to the mesh, who may be slow or many: a connection without a request, or one whose client takes nothing, ends;
//! when there are too many the oldest goes; and the node is asked at times only, however many ask for the same.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{Query, Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use serde_json::json;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tracing::{debug, warn};

use super::live::{self, Views};
use super::paced::Paced;
use super::{metrics, page};
use crate::daemon::api::Api;
use crate::daemon::why;
use crate::error::{Failure, Result};
use crate::transport::tcp::Listen;

/// Connections at once; one more ends the oldest.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take for the head of a request, and how long it may leave bytes unacknowledged (TCP_USER_TIMEOUT, RFC 5482).
const HEAD_WITHIN: Duration = Duration::from_secs(5);
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);
/// How long after an explanation the next one is asked for, at least, and how many times as long as it took: each takes the node's time.
const BETWEEN_EXPLANATIONS: Duration = Duration::from_millis(100);
const SHARE: u32 = 20;

/// Listens. Returns none if the default address is in use; an error if an address that the operator named is in use, or belongs to another host.
pub fn bind(Listen { address, is_required }: Listen) -> Result<Option<std::net::TcpListener>> {
    let bound = std::net::TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    match bound {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if is_required => Err(Failure::new(format!(
            "cannot serve HTTP on {address}: {error}; choose another address with --http, or --http none"
        ))),
        Err(error) => {
            warn!(
                "there are neither metrics nor a page of this router: cannot serve HTTP on {address}: {error}; choose another address with --http, or --http none"
            );
            Ok(None)
        }
    }
}

/// What requests work with.
#[derive(Clone)]
struct Server {
    api: Api,
    /// The metrics, or why they cannot be read.
    metrics: Paced<std::result::Result<Bytes, String>>,
    views: Views,
    /// Held while the node explains a path, and a while after.
    explaining: Arc<Mutex<()>>,
}

/// Serves for as long as the router runs.
pub async fn serve(listener: TcpListener, api: Api) {
    let server = Server { api, metrics: Paced::new(), views: Paced::new(), explaining: Arc::default() };
    let router = Router::new()
        .route("/metrics", get(get_metrics))
        .route("/live", get(get_live))
        .route("/why", get(get_why))
        .merge(page::routes())
        .layer(middleware::from_fn_with_state(server.clone(), refuse_foreign_names))
        .with_state(server);
    let mut connections = Connections::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => connections.add(stream, router.clone()),
            // Out of file descriptors, perhaps: others need time to end.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Connections that are served, the oldest first.
#[derive(Default)]
struct Connections {
    all: VecDeque<AbortHandle>,
    tasks: JoinSet<()>,
}

impl Connections {
    fn add(&mut self, stream: TcpStream, router: Router) {
        while self.tasks.try_join_next().is_some() {}
        self.all.retain(|connection| !connection.is_finished());
        if self.all.len() >= MAX_CONNECTIONS
            && let Some(oldest) = self.all.pop_front()
        {
            oldest.abort();
        }
        self.all.push_back(self.tasks.spawn(async move {
            if let Err(error) = converse(stream, router).await {
                debug!("an HTTP connection ended: {error}");
            }
        }));
    }
}

async fn converse(stream: TcpStream, router: Router) -> io::Result<()> {
    SockRef::from(&stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    connection.await.map_err(io::Error::other)
}

/// A page elsewhere may have its own name lead to this host and have a browser here ask it (DNS rebinding): only who asks for this host by an address, as
/// localhost or by its nickname is answered.
async fn refuse_foreign_names(State(server): State<Server>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    if host.is_some_and(|host| is_own_name(host, &server.api.options.name)) {
        if is_from_elsewhere(&request) {
            return (StatusCode::FORBIDDEN, "pages of other places may only link to this one\n").into_response();
        }
        let mut response = next.run(request).await;
        // No page elsewhere may include what is read here.
        let policy = HeaderName::from_static("cross-origin-resource-policy");
        response.headers_mut().insert(policy, HeaderValue::from_static("same-origin"));
        return response;
    }
    let why = "this host is not called that; ask for it by its address or nickname\n";
    (StatusCode::MISDIRECTED_REQUEST, why).into_response()
}

/// Whether the `Host` of a request (RFC 9110, section 7.2) means this host.
fn is_own_name(host: &str, nickname: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let host = authority.host();
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    address.parse::<IpAddr>().is_ok() || host.eq_ignore_ascii_case("localhost") || host.eq_ignore_ascii_case(nickname)
}

/// Whether a page of another place has a browser ask, other than by a link to the page here (Fetch Metadata Request Headers, section 2).
fn is_from_elsewhere(request: &Request) -> bool {
    let site = request.headers().get("sec-fetch-site").map(HeaderValue::as_bytes);
    let is_elsewhere = site.is_some_and(|site| site == b"cross-site" || site == b"same-site");
    let is_navigation = request.headers().get("sec-fetch-mode").is_some_and(|mode| mode == "navigate");
    is_elsewhere && !(is_navigation && request.uri().path() == "/")
}

async fn get_metrics(State(server): State<Server>) -> Response {
    let api = server.api;
    let read = async move { metrics::read(&api).await.map(Bytes::from).map_err(|error| error.to_string()) };
    match server.metrics.get(read).await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Ok(Err(error)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
        Err(_) => {
            (StatusCode::INTERNAL_SERVER_ERROR, "reading the metrics failed; see the router's log\n").into_response()
        }
    }
}

async fn get_live(State(server): State<Server>) -> Response {
    live::follow(server.api, server.views)
}

/// What is to be explained.
#[derive(Deserialize)]
struct Between {
    from: Option<String>,
    to: String,
}

/// The answer of `weft why`, with what it prints as `text`.
async fn get_why(State(server): State<Server>, Query(Between { from, to }): Query<Between>) -> Response {
    let turn = server.explaining.clone().lock_owned().await;
    let from = from.filter(|from| !from.is_empty());
    let (answer, read) = oneshot::channel();
    // A client that goes does not hasten the next one's turn.
    tokio::spawn(async move {
        let begun = Instant::now();
        // It may have gone.
        let _ = answer.send(why::read(&server.api, from.as_deref(), &to).await);
        tokio::time::sleep((begun.elapsed() * SHARE).max(BETWEEN_EXPLANATIONS)).await;
        drop(turn);
    });
    let Ok(read) = read.await else {
        return (StatusCode::INTERNAL_SERVER_ERROR, "explaining failed; see the router's log\n").into_response();
    };
    match read {
        Ok(mut report) => {
            report["text"] = why::print(&report).into();
            Json(report).into_response()
        }
        Err(error) => (StatusCode::NOT_FOUND, Json(json!({ "error": error.to_string() }))).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_host_are_answered() {
        for own in ["127.0.0.1:6784", "10.0.0.7", "[::1]:6784", "localhost", "LOCALHOST:1", "web1:6784", "Web1"] {
            assert!(is_own_name(own, "web1"), "{own}");
        }
        for foreign in ["evil.example:6784", "web1.evil.example", "127.0.0.1.evil.example", "", "a b", "[::1", "@"] {
            assert!(!is_own_name(foreign, "web1"), "{foreign}");
        }
    }

    #[test]
    fn a_port_in_use_stops_the_router_only_if_it_was_named() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        assert!(bind(Listen { address, is_required: false }).unwrap().is_none());
        let error = bind(Listen { address, is_required: true }).unwrap_err().to_string();
        assert!(error.contains("--http") && !error.contains('\n'), "{error}");
    }
}
