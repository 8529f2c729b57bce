//! The plugin socket: the engine's calls, each answered within five seconds in any state of the mesh.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path as UrlPath, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tracing::{debug, warn};

use super::Docker;
use super::call::Call;
use super::protocol::{Address, Pool};
use crate::daemon::socket::bind_private;
use crate::error::{Doing, Failure, Result};
use crate::observe::happening::Happening;
use crate::observe::observers::Observers;
use crate::observe::tallies::UNKNOWN_CALL;

/// The largest call that is read: a container that publishes every port of TCP and UDP takes some 16 MB.
const MAX_BODY: usize = 32 << 20;
/// When a call that is not done is answered.
const PATIENCE: Duration = Duration::from_millis(4700);
/// What the plugin, its address space and its driver are called.
pub const NAME: &str = "weft";

/// Binds the plugin socket. A socket that a dead router left is replaced.
pub fn bind(dir: &Path) -> Result<(UnixListener, PathBuf)> {
    let path = dir.join("weft.sock");
    let what =
        || format!("cannot use the plugin socket {} (choose another --plugin-dir, or --no-docker)", path.display());
    let taken = || Failure::new(format!("{}: another router has it", what()));
    Ok((bind_private(&path, &what, "--plugin-dir", taken)?, path.clone()))
}

/// Serves the engine for as long as the router runs.
pub async fn serve(listener: UnixListener, docker: Arc<Docker>, observers: Observers) {
    let router = Router::new().route("/{method}", post(call)).layer(DefaultBodyLimit::max(MAX_BODY));
    let router = router.with_state((docker, observers));
    if let Err(error) = axum::serve(listener, router).await {
        warn!(%error, "the plugin socket is lost; restart the router");
    }
}

async fn call(
    State((docker, observers)): State<(Arc<Docker>, Observers)>,
    UrlPath(method): UrlPath<String>,
    body: Bytes,
) -> Response {
    let (name, since) = (method.clone(), Instant::now());
    // What was begun is finished: an engine that gives up takes it back by later calls.
    let work = tokio::spawn(async move {
        match Call::parse(&method, &body)? {
            Some(call) => Ok(Some(answer(&docker, call).await?)),
            None => Ok(None),
        }
    });
    let result = match tokio::time::timeout(PATIENCE, work).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(Failure::new("the call failed inside of weft; see its log")),
        Err(_) => Err(Failure::new(format!("not done within {PATIENCE:?}; see: weft status"))),
    };
    // Names of unknown calls are anything.
    let call = if matches!(result, Ok(None)) { UNKNOWN_CALL } else { &name };
    observers.tallies.plugin_call(call, matches!(result, Ok(Some(_))), since.elapsed());
    let content_type = [(header::CONTENT_TYPE, "application/vnd.docker.plugins.v1.2+json")];
    match result {
        Ok(Some(value)) => (content_type, value.to_string()).into_response(),
        Ok(None) => {
            debug!(method = name, "the engine made a call that weft does not know");
            (StatusCode::NOT_FOUND, content_type, json!({ "Err": format!("weft has no {name}") }).to_string())
                .into_response()
        }
        Err(error) => {
            // Engines do not always pass on why.
            warn!(method = name, "refused a call of the engine: {error}");
            observers.recorder.note(&Happening::call_refused(&name, &error.to_string()));
            (StatusCode::INTERNAL_SERVER_ERROR, content_type, json!({ "Err": error.to_string() }).to_string())
                .into_response()
        }
    }
}

/// Carries out a call; returns what the engine is answered.
async fn answer(docker: &Docker, call: Call) -> Result<Value> {
    let (pools, driver) = (&docker.pools, &docker.driver);
    match call {
        Call::Activate => return Ok(json!({ "Implements": ["NetworkDriver", "IpamDriver"] })),
        Call::NetworkCapabilities => return Ok(json!({ "Scope": "local", "ConnectivityScope": "local" })),
        Call::IpamCapabilities => {
            return Ok(json!({ "RequiresMACAddress": false, "RequiresRequestReplay": false }));
        }
        Call::AddressSpaces => {
            return Ok(json!({ "LocalDefaultAddressSpace": NAME, "GlobalDefaultAddressSpace": NAME }));
        }
        Call::RequestPool(request) => {
            let (pool_id, prefix) = pools.request(&request).await?;
            return to_json(&Pool { pool_id, pool: prefix.to_string(), data: Default::default() });
        }
        Call::ReleasePool(request) => pools.release(&request.pool_id).await?,
        Call::RequestAddress(request) => {
            let prefix = pools.request_address(&request).await?;
            return to_json(&Address { address: prefix.to_string(), data: Default::default() });
        }
        Call::ReleaseAddress(request) => pools.release_address(&request.pool_id, request.address).await?,
        Call::CreateNetwork(request) => {
            driver.create_network(&request)?;
            docker.look_again.notify_one();
        }
        Call::DeleteNetwork(request) => driver.delete_network(&request.network_id).await?,
        Call::CreateEndpoint(request) => {
            let mac = driver.create_endpoint(&request)?;
            return Ok(json!({ "Interface": mac.map_or(json!({}), |mac| json!({ "MacAddress": mac })) }));
        }
        Call::DeleteEndpoint(request) => driver.delete_endpoint(&request.endpoint_id).await?,
        Call::Join(request) => return to_json(&driver.join(&request).await?),
        Call::Leave(request) => driver.leave(&request.endpoint_id).await?,
        Call::EndpointInfo(_) => return Ok(json!({ "Value": {} })),
        Call::ProgramConnectivity(request) => driver.program(&request).await?,
        Call::RevokeConnectivity(request) => driver.revoke(&request.endpoint_id).await?,
        Call::AllocateNetwork => return Ok(json!({ "Options": {} })),
        Call::Ignored => {}
    }
    Ok(json!({}))
}

fn to_json(value: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(value).doing(|| "cannot put the answer into words".into())
}
