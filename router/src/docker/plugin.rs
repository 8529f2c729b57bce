//! The plugin socket: the engine's calls, each answered within five seconds in any state of the mesh.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path as UrlPath, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tracing::{debug, warn};

use super::Docker;
use super::protocol::{
    Address, CreateEndpoint, CreateNetwork, Join, OfEndpoint, OfNetwork, Pool, Program, ReleaseAddress, ReleasePool,
    RequestAddress, RequestPool,
};
use crate::cli::options::Cidr;
use crate::daemon::socket::bind_private;
use crate::error::{Doing, Failure, Result};

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
pub async fn serve(listener: UnixListener, docker: Arc<Docker>) {
    let router = Router::new().route("/{method}", post(call)).layer(DefaultBodyLimit::max(MAX_BODY)).with_state(docker);
    if let Err(error) = axum::serve(listener, router).await {
        warn!(%error, "the plugin socket is lost; restart the router");
    }
}

async fn call(State(docker): State<Arc<Docker>>, UrlPath(method): UrlPath<String>, body: Bytes) -> Response {
    let name = method.clone();
    // What was begun is finished: an engine that gives up takes it back by later calls.
    let work = tokio::spawn(async move { answer(&docker, &method, &body).await });
    let result = match tokio::time::timeout(PATIENCE, work).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(Failure::new("the call failed inside of weft; see its log")),
        Err(_) => Err(Failure::new(format!("not done within {PATIENCE:?}; see: weft status"))),
    };
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
            (StatusCode::INTERNAL_SERVER_ERROR, content_type, json!({ "Err": error.to_string() }).to_string())
                .into_response()
        }
    }
}

/// A call's parameters. When a connection breaks, engines repeat calls without them.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    let what = || "a call that makes no sense".to_owned();
    if body.is_empty() {
        return Err(Failure::new("a call without its parameters (the plugin was restarted meanwhile?); try again"));
    }
    // Lists would do for structures otherwise.
    let fields: serde_json::Map<String, Value> = serde_json::from_slice(body).doing(what)?;
    serde_json::from_value(Value::Object(fields)).doing(what)
}

/// What a call is answered; none: there is no such call.
pub(super) async fn answer(docker: &Docker, method: &str, body: &[u8]) -> Result<Option<Value>> {
    let (pools, driver) = (&docker.pools, &docker.driver);
    let value = match method {
        "Plugin.Activate" => json!({ "Implements": ["NetworkDriver", "IpamDriver"] }),
        "NetworkDriver.GetCapabilities" => json!({ "Scope": "local", "ConnectivityScope": "local" }),
        "IpamDriver.GetCapabilities" => json!({ "RequiresMACAddress": false, "RequiresRequestReplay": false }),
        "IpamDriver.GetDefaultAddressSpaces" => {
            json!({ "LocalDefaultAddressSpace": NAME, "GlobalDefaultAddressSpace": NAME })
        }
        "IpamDriver.RequestPool" => {
            let request: RequestPool = parse(body)?;
            let (pool_id, prefix) = pools.request(&request).await?;
            to_json(&Pool { pool_id, pool: Cidr(prefix).to_string(), data: Default::default() })?
        }
        "IpamDriver.ReleasePool" => {
            let request: ReleasePool = parse(body)?;
            pools.release(&request.pool_id).await?;
            json!({})
        }
        "IpamDriver.RequestAddress" => {
            let request: RequestAddress = parse(body)?;
            let prefix = pools.request_address(&request).await?;
            to_json(&Address { address: Cidr(prefix).to_string(), data: Default::default() })?
        }
        "IpamDriver.ReleaseAddress" => {
            let request: ReleaseAddress = parse(body)?;
            pools.release_address(&request.pool_id, request.address).await?;
            json!({})
        }
        "NetworkDriver.CreateNetwork" => {
            let request: CreateNetwork = parse(body)?;
            driver.create_network(&request)?;
            docker.look_again.notify_one();
            json!({})
        }
        "NetworkDriver.DeleteNetwork" => {
            let request: OfNetwork = parse(body)?;
            driver.delete_network(&request.network_id).await?;
            json!({})
        }
        "NetworkDriver.CreateEndpoint" => {
            let request: CreateEndpoint = parse(body)?;
            let mac = driver.create_endpoint(&request)?;
            json!({ "Interface": mac.map_or(json!({}), |mac| json!({ "MacAddress": mac })) })
        }
        "NetworkDriver.DeleteEndpoint" => {
            let request: OfEndpoint = parse(body)?;
            driver.delete_endpoint(&request.endpoint_id).await?;
            json!({})
        }
        "NetworkDriver.Join" => {
            let request: Join = parse(body)?;
            to_json(&driver.join(&request).await?)?
        }
        "NetworkDriver.Leave" => {
            let request: OfEndpoint = parse(body)?;
            driver.leave(&request.endpoint_id).await?;
            json!({})
        }
        "NetworkDriver.EndpointOperInfo" => {
            let _: OfEndpoint = parse(body)?;
            json!({ "Value": {} })
        }
        "NetworkDriver.ProgramExternalConnectivity" => {
            let request: Program = parse(body)?;
            driver.program(&request).await?;
            json!({})
        }
        "NetworkDriver.RevokeExternalConnectivity" => {
            let request: OfEndpoint = parse(body)?;
            driver.revoke(&request.endpoint_id).await?;
            json!({})
        }
        "NetworkDriver.DiscoverNew" | "NetworkDriver.DiscoverDelete" => json!({}),
        "NetworkDriver.AllocateNetwork" => json!({ "Options": {} }),
        "NetworkDriver.FreeNetwork" | "NetworkDriver.GwAllocCheck" => json!({}),
        _ => return Ok(None),
    };
    Ok(Some(value))
}

fn to_json(value: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(value).doing(|| "cannot put the answer into words".into())
}
