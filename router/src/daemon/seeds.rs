//! The peers that the user named: their addresses are looked up at the start and again and again.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tracing::warn;
use weft_mesh::node::{Command, Target};

use crate::cli::addresses::parse_peer;
use crate::daemon::api::Api;
use crate::error::Result;

/// Looks up the peers named at the start.
pub async fn find_peers(api: Api) {
    match resolve_targets(&api.options.peers).await {
        Ok(targets) if !targets.is_empty() => drop(api.node.tell(Command::ConnectUnlessForgotten(targets)).await),
        Ok(_) => {}
        Err(error) => warn!("{error}"),
    }
}

/// Looks up again what the user wants to be connected with now; names that cannot be looked up keep their addresses.
pub async fn look_up_targets(api: &Api) -> Result<()> {
    let targets = api.node.targets().await?;
    let names: Vec<String> = targets.into_iter().filter(|name| !is_literal(name)).collect();
    let found = resolve_targets(&names).await?.into_iter().filter(|target| !target.addresses.is_empty());
    let found: Vec<Target> = found.collect();
    if !found.is_empty() {
        api.node.tell(Command::ConnectUnlessForgotten(found)).await?;
    }
    Ok(())
}

fn is_literal(peer: &str) -> bool {
    parse_peer(peer).is_ok_and(|(host, _)| host.parse::<IpAddr>().is_ok())
}

/// Looks up the addresses of peers. A name that cannot be looked up now is tried again later.
pub async fn resolve_targets(names: &[String]) -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    for name in names {
        let (host, port) = parse_peer(name)?;
        let addresses = match host.parse::<IpAddr>() {
            Ok(ip) => vec![SocketAddr::new(ip, port)],
            Err(_) => match tokio::time::timeout(Duration::from_secs(3), tokio::net::lookup_host((host, port))).await {
                Ok(Ok(addresses)) => addresses.take(8).collect(),
                _ => {
                    warn!(peer = name, "cannot look up this peer now; trying again");
                    Vec::new()
                }
            },
        };
        targets.push(Target { name: name.clone(), addresses });
    }
    Ok(targets)
}
