//! The bridge of one allocator's containers: a network of its own, made when the first of
//! them needs it and removed when the allocator stops and none is left.
//!
//! Its containers do not reach each other on it: what they call goes through a front, which
//! knows who calls. It is looked for again after a start that failed, since somebody may have
//! removed it (`docker network prune`).

use std::{collections::HashMap, net::IpAddr};

use lca::{Digest, Error, Kind, PeerId, Result, listen::Subnet};
use lca_engine::{
    Engine,
    bollard::{
        models::{NetworkCreateRequest, NetworkInspect},
        query_parameters::InspectNetworkOptions,
    },
};

use super::labels;
use crate::driver::Bridge;

/// What the network of `node`'s containers is called.
pub(super) fn name(node: PeerId) -> String {
    format!("lca-{}", &Digest::of(node.to_string().as_bytes()).hex()[..12])
}

/// The bridge of `node`, made if it is missing.
///
/// # Errors
/// If the engine cannot make it, such as where it has no range of addresses left.
pub(super) async fn ensure(engine: &Engine, node: PeerId) -> Result<Bridge> {
    let what = "look for the network of its containers";
    match engine.call(what, inspect(engine, node)).await {
        Err(error) if error.kind() == Kind::NotFound => {}
        found => return bridge(&found?),
    }
    let request = NetworkCreateRequest {
        name: name(node),
        driver: Some("bridge".into()),
        labels: Some(HashMap::from([(labels::NODE.to_owned(), node.to_string())])),
        options: Some(HashMap::from([(
            "com.docker.network.bridge.enable_icc".to_owned(),
            "false".to_owned(),
        )])),
        ..Default::default()
    };
    let made = engine.docker().create_network(request);
    match engine.call("make a network for its containers", made).await {
        // By another call at the same moment.
        Err(error) if error.kind() == Kind::Conflict => {}
        made => drop(made?),
    }
    bridge(&engine.call(what, inspect(engine, node)).await?)
}

/// Removes the bridge of `node` if nothing is on it.
pub(super) async fn remove_unused(engine: &Engine, node: PeerId) {
    let network = name(node);
    let removed = engine.docker().remove_network(&network);
    match engine.call("remove the network of its containers", removed).await {
        Ok(()) => tracing::debug!(network, "removed"),
        // There is none, or something is on it.
        Err(error) => tracing::debug!(network, error = error.chain(), "the network stays"),
    }
}

async fn inspect(
    engine: &Engine,
    node: PeerId,
) -> Result<NetworkInspect, lca_engine::bollard::errors::Error> {
    engine.docker().inspect_network(&name(node), None::<InspectNetworkOptions>).await
}

/// Where the machine is on a network, and what else may be.
fn bridge(said: &NetworkInspect) -> Result<Bridge> {
    let ranges = said.ipam.as_ref().and_then(|ipam| ipam.config.as_deref()).unwrap_or_default();
    let found = ranges.iter().find_map(|range| {
        let (base, bits) = range.subnet.as_deref()?.split_once('/')?;
        let gateway: IpAddr = range.gateway.as_deref()?.split('/').next()?.parse().ok()?;
        let range = Subnet::new(base.parse().ok()?, bits.parse().ok()?);
        Some(Bridge { gateway, range })
    });
    let odd = || Error::new(Kind::Internal, "the network of its containers has no gateway");
    found.ok_or_else(odd)
}

#[cfg(test)]
mod tests {
    use lca_engine::bollard::models::{Ipam, IpamConfig};

    use super::*;

    #[test]
    fn the_gateway_is_read_however_it_is_written() {
        for gateway in ["172.20.0.1", "172.20.0.1/16"] {
            let config = IpamConfig {
                subnet: Some("172.20.0.0/16".into()),
                gateway: Some(gateway.into()),
                ..Default::default()
            };
            let said = NetworkInspect {
                ipam: Some(Ipam { config: Some(vec![config]), ..Default::default() }),
                ..Default::default()
            };
            let bridge = bridge(&said).unwrap();
            assert_eq!(bridge.gateway.to_string(), "172.20.0.1");
            assert_eq!(bridge.range.to_string(), "172.20.0.0/16");
        }
        assert!(bridge(&NetworkInspect::default()).is_err());
    }
}
