//! The control API: HTTP and JSON over a unix socket that only its owner may use.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use weft_mesh::node::{Command, WithoutHost};

use crate::attach::attachments::AttachRequest;
use crate::daemon::api::Api;
use crate::daemon::seeds::resolve_targets;
use crate::daemon::socket::bind_private;
use crate::daemon::status;
use crate::daemon::why::{self, Question};
use crate::dns::{self};
use crate::error::{Doing, Failure, Result};
use crate::observe::metrics;

/// The largest request that is read.
const MAX_BODY: usize = 64 * 1024;

/// What happened this long before and after a time is told with the path that there was.
const AROUND: Duration = Duration::from_secs(600);
/// How long a request for what happens next is kept waiting.
const NEWS_WITHIN: Duration = Duration::from_secs(20);

/// Asks for what happened.
#[derive(Serialize, Deserialize)]
pub struct EventsRequest {
    /// Only entries of this time or later, in milliseconds since 1970.
    pub since: u64,
    /// Only entries with this number or a higher one.
    pub from: u64,
    /// Whether to wait for an entry if there is none.
    pub wait: bool,
}

/// What happened.
#[derive(Serialize, Deserialize)]
pub struct EventsAnswer {
    /// The entries, in their order.
    pub events: Vec<Value>,
    /// The number of the next one.
    pub next: u64,
    /// When the router started, in milliseconds since 1970: after another start, numbers begin anew.
    pub run: u64,
}

/// Peers, for `connect` and `forget`.
#[derive(Serialize, Deserialize)]
pub struct Peers {
    /// As the user wrote them.
    pub names: Vec<String>,
}

/// A name, and what it stands for.
#[derive(Serialize, Deserialize)]
pub struct Entry {
    /// The name.
    pub name: String,
    /// Addresses that the name stands for.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
}

/// Binds the control socket. A socket that a dead router left is replaced.
pub fn bind(path: &Path) -> Result<UnixListener> {
    let taken = || Failure::new(format!("a router runs already (on {}); stop it with: weft stop", path.display()));
    bind_private(path, &|| format!("cannot use the control socket {}", path.display()), "--socket", taken)
}

/// Serves the API for as long as the router runs.
pub async fn serve(listener: UnixListener, api: Api) {
    let router = Router::new()
        .route("/status", get(get_status))
        .route("/connect", post(connect))
        .route("/forget", post(forget))
        .route("/attach", post(attach))
        .route("/detach", post(detach))
        .route("/reclaim", post(reclaim))
        .route("/dns/add", post(add_name))
        .route("/dns/remove", post(remove_name))
        .route("/dns/lookup", post(look_up_name))
        .route("/secret/reload", post(reload))
        .route("/docker/leave", post(leave_docker))
        .route("/why", post(explain))
        .route("/what-if", post(what_if))
        .route("/metrics", get(get_metrics))
        .route("/events", post(get_events))
        .route("/stop", post(stop))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(api);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "the control socket is lost; restart the router");
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = match self {
            Failure::Usage(_) => StatusCode::BAD_REQUEST,
            Failure::CouldNot(_) => StatusCode::CONFLICT,
        };
        (status, Json(json!({ "error": self.to_string() }))).into_response()
    }
}

async fn get_status(State(api): State<Api>) -> Result<Json<Value>> {
    status::read(&api).await.map(Json)
}

async fn connect(State(api): State<Api>, Json(Peers { names }): Json<Peers>) -> Result<Json<Value>> {
    let targets = resolve_targets(&names).await?;
    api.node.tell(Command::Connect(targets)).await?;
    Ok(Json(Value::Null))
}

async fn forget(State(api): State<Api>, Json(Peers { names }): Json<Peers>) -> Result<Json<Value>> {
    api.node.tell(Command::Forget(names)).await?;
    Ok(Json(Value::Null))
}

async fn attach(State(api): State<Api>, Json(request): Json<AttachRequest>) -> Result<Json<Vec<String>>> {
    // What was begun is finished, even if the client has gone.
    finish(async move { api.attachments.attach(request).await }).await.map(Json)
}

async fn detach(State(api): State<Api>, Json(request): Json<AttachRequest>) -> Result<Json<Value>> {
    finish(async move { api.attachments.detach(request).await }).await?;
    Ok(Json(Value::Null))
}

async fn finish<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    tokio::spawn(work).await.unwrap_or_else(|_| Err(Failure::new("the router failed at this; see its log")))
}

async fn reclaim(State(api): State<Api>, Json(name): Json<String>) -> Result<Json<Value>> {
    api.node.tell(Command::Reclaim(name)).await?;
    Ok(Json(Value::Null))
}

async fn explain(State(api): State<Api>, Json(Question { from, to, at }): Json<Question>) -> Result<Json<Value>> {
    match at {
        Some(at) => earlier_path(&api, dns::relative(&to, &api.options.dns_domain).to_owned(), at).await.map(Json),
        None => why::read(&api, from.as_deref(), &to).await.map(Json),
    }
}

/// Tells the path to a host, or to a container's host, at an earlier time. A host that is forgotten by now is known to the recorder alone.
async fn earlier_path(api: &Api, to: String, at: u64) -> Result<Value> {
    let place = api.node.explain(None, to.clone()).await.ok().map(|explanation| explanation.to);
    let peers = api.node.measures().await?.peers;
    let is_meant = |id: &str| place.as_ref().is_some_and(|place| id.starts_with(&place.peer_id));
    let (name, peer_id) = match peers.into_iter().find(|peer| is_meant(&peer.peer_id)) {
        Some(peer) => (peer.name, Some(peer.peer_id)),
        None => (place.map_or(to, |place| place.host), None),
    };
    let recorder = api.observers.recorder.clone();
    let told = tokio::task::spawn_blocking(move || recorder.path_at(&name, peer_id.as_deref(), at, AROUND)).await;
    told.doing(|| "cannot read what happened".into())
}

async fn get_events(State(api): State<Api>, Json(request): Json<EventsRequest>) -> Result<Json<EventsAnswer>> {
    let EventsRequest { since, from, wait } = request;
    let recorder = api.observers.recorder.clone();
    if wait {
        let mut news = recorder.news();
        // Nothing new is an answer, too.
        let _ = tokio::time::timeout(NEWS_WITHIN, news.wait_for(|next| *next > from)).await;
    }
    let run = recorder.run();
    let read = tokio::task::spawn_blocking(move || recorder.entries(since, from)).await;
    let (events, next) = read.doing(|| "cannot read what happened".into())?;
    Ok(Json(EventsAnswer { events, next, run }))
}

async fn get_metrics(State(api): State<Api>) -> Result<Json<String>> {
    metrics::read(&api).await.map(Json)
}

async fn what_if(State(api): State<Api>, Json(host): Json<String>) -> Result<Json<WithoutHost>> {
    let what_if = api.node.what_if(host).await?;
    let outcome = tokio::task::spawn_blocking(move || what_if.outcome()).await;
    outcome.map(Json).doing(|| "cannot compute the paths".into())
}

async fn add_name(State(api): State<Api>, Json(Entry { name, ips }): Json<Entry>) -> Result<Json<Value>> {
    let name = dns::relative(&name, &api.options.dns_domain).to_owned();
    api.node.tell(Command::AddName(name, ips)).await?;
    Ok(Json(Value::Null))
}

async fn remove_name(State(api): State<Api>, Json(Entry { name, ips }): Json<Entry>) -> Result<Json<Value>> {
    let name = dns::relative(&name, &api.options.dns_domain).to_owned();
    api.node.tell(Command::RemoveName(name, ips)).await?;
    Ok(Json(Value::Null))
}

async fn look_up_name(State(api): State<Api>, Json(Entry { name, .. }): Json<Entry>) -> Result<Json<Vec<IpAddr>>> {
    let found = dns::lookup(&api.names.load(), &name, &api.options.dns_domain);
    match (found.is_empty(), name.starts_with('_')) {
        (false, _) => Ok(Json(found)),
        (true, true) => Err(Failure::new(format!(
            "lookup prints addresses; ask for the services {name} in a container, or with dig"
        ))),
        (true, false) => {
            Err(Failure::new(format!("no reachable endpoint has the name {name}; see: weft status endpoints")))
        }
    }
}

async fn reload(State(api): State<Api>) -> Result<Json<Value>> {
    let keyring = api.options.secrets.read()?;
    api.node.tell(Command::SetKeyring(keyring)).await?;
    Ok(Json(Value::Null))
}

/// Removes weft's networks on this host; answers with those that have containers.
async fn leave_docker(State(api): State<Api>) -> Result<Json<Vec<String>>> {
    match &api.docker {
        Some(docker) => docker.remove_networks().await.map(Json),
        None => Ok(Json(Vec::new())),
    }
}

/// Answers with the process id, so that the caller can wait for the end.
async fn stop(State(api): State<Api>) -> Json<u32> {
    api.stop.notify_one();
    Json(std::process::id())
}
