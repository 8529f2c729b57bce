//! Published ports of endpoints: from the engine's call to rules in force.

use std::collections::BTreeMap;

use tracing::warn;
use weft_mesh::records::EndpointId;
use weft_mesh::wire::SegmentId;

use super::driver::Driver;
use super::network::{Endpoint, attachment_id};
use super::ports::{Publishing, end_flows_to, written};
use super::protocol::{PORTMAP, PortBinding, Program};
use crate::attach::prefix::Prefix;
use crate::dataplane::taps::bridge_name;
use crate::error::{Doing, Failure, Result};

impl Driver {
    /// `ProgramExternalConnectivity`: the endpoint's container is reached at the ports it publishes once this returns.
    pub async fn program(&self, request: &Program) -> Result<()> {
        let id = &request.endpoint_id;
        let Some(endpoint) = self.endpoints.find(id) else { return Ok(()) };
        let bindings = match request.options.get(PORTMAP) {
            Some(ports) => serde_json::from_value::<Option<Vec<PortBinding>>>(ports.clone())
                .doing(|| "cannot read the published ports".into())?
                .unwrap_or_default(),
            None => Vec::new(),
        };
        let is_open = self.networks.find(&endpoint.network).is_some_and(|network| !network.internal);
        if bindings.is_empty() || !is_open {
            return Ok(());
        }
        let found = self.publish(id, &endpoint, &bindings)?;
        let note = |endpoint: &mut Endpoint| (endpoint.ports, endpoint.is_published) = (found.clone(), true);
        if let Err(error) = self.endpoints.update(id, note) {
            self.ports.unpublish(id);
            return Err(error);
        }
        if let Err(error) = self.firewall.settle().await {
            // Ports from an earlier call stay.
            if !endpoint.is_published {
                self.ports.unpublish(id);
                self.endpoints.update(id, |endpoint| endpoint.is_published = false)?;
                self.firewall.wanted.notify_one();
            }
            return Err(error);
        }
        end_flows_to(self.ports.all());
        Ok(())
    }

    /// `RevokeExternalConnectivity`: another endpoint of the container may publish its ports from now on.
    pub async fn revoke(&self, id: &str) -> Result<()> {
        if self.endpoints.find(id).is_some_and(|endpoint| endpoint.is_published) {
            self.endpoints.update(id, |endpoint| endpoint.is_published = false)?;
        }
        let ended = self.ports.unpublish(id);
        if !ended.is_empty() {
            // Rules that cannot be changed are a problem in `status`; the engine goes on with ending the container.
            let _ = self.firewall.settle().await;
            end_flows_to(ended);
        }
        Ok(())
    }

    fn publish(&self, id: &str, endpoint: &Endpoint, bindings: &[PortBinding]) -> Result<Vec<PortBinding>> {
        let network = self.known_network(&endpoint.network)?;
        let segment = network.segment().map(SegmentId::of).ok_or_else(|| Failure::new("a network without a name"))?;
        let sandbox = self.sandboxes.of(id);
        let publishing = Publishing {
            id,
            sandbox: sandbox.as_deref().unwrap_or(id),
            ips: endpoint.ips.iter().map(|Prefix(ip, _)| *ip).collect(),
            bridge: bridge_name(segment),
            host: network.host_binding(),
        };
        self.ports.publish(&publishing, bindings)
    }

    /// Publishes again what was published when the router last ran.
    pub fn publish_all(&self) {
        // A container that ended meanwhile holds no port.
        let publishes = |(id, endpoint): &(String, Endpoint)| endpoint.is_published && self.sandboxes.of(id).is_some();
        for (id, endpoint) in self.endpoints.all().into_iter().filter(publishes) {
            if let Err(error) = self.publish(&id, &endpoint, &endpoint.ports) {
                warn!("a port of a running container is no longer published: {error}");
            }
        }
    }

    /// The published ports of the endpoints that publish any, as `docker ps` writes them.
    pub fn published(&self) -> BTreeMap<EndpointId, Vec<String>> {
        let publishing = self.endpoints.all().into_iter().filter(|(_, endpoint)| endpoint.is_published);
        publishing.filter_map(|(id, endpoint)| Some((attachment_id(&id).ok()?, written(&endpoint.ports)))).collect()
    }
}
