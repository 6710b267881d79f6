//! The `Node` service of the local API: how this daemon stands, and whether those it
//! depends on answer. `lcactl doctor` walks through what it says.

use std::{net::SocketAddr, path::PathBuf};

use lca::{
    api::proto::{
        self, DiagnoseRequest, DiagnoseResponse,
        diagnose_response::Standing,
        node_server::{Node as Rpc, NodeServer},
    },
    endpoint::Role,
};
use lca_manager::Manager;
use lca_node::{BootstrapState, Joined, Node};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

/// Answers [`Rpc::diagnose`].
#[derive(Clone, Debug)]
pub(crate) struct Diagnosis {
    pub(crate) node: Node,
    pub(crate) manager: Manager,
    pub(crate) role: Role,
    pub(crate) since: Instant,
    pub(crate) data_dir: PathBuf,
    pub(crate) front: Option<SocketAddr>,
}

impl Diagnosis {
    pub(crate) fn server(self) -> NodeServer<Self> {
        NodeServer::new(self)
    }
}

#[tonic::async_trait]
impl Rpc for Diagnosis {
    async fn diagnose(
        &self,
        _: Request<DiagnoseRequest>,
    ) -> Result<Response<DiagnoseResponse>, Status> {
        let checked = self.manager.check().await;
        let status = self.node.status().borrow().clone();
        let requirements = self.manager.requirements();
        let ms = |limit: Option<std::time::Duration>| {
            limit.map_or(0, |limit| u32::try_from(limit.as_millis()).unwrap_or(u32::MAX))
        };
        Ok(Response::new(DiagnoseResponse {
            peer: self.node.peer().to_string(),
            roles: vec![self.role.to_string()],
            version: crate::VERSION.to_owned(),
            uptime_ms: u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            data_dir: self.data_dir.display().to_string(),
            front: self.front.map(|front| front.to_string()).unwrap_or_default(),
            requirements: Some(proto::Requirements {
                soft_rtt_ms: ms(requirements.soft),
                hard_rtt_ms: ms(requirements.hard),
            }),
            standing: match status.joined {
                None => Standing::Unspecified,
                Some(Joined::Joined) => Standing::Joined,
                Some(Joined::Alone) => Standing::Alone,
            }
            .into(),
            bootstraps: status.bootstrap_states.into_iter().map(bootstrap).collect(),
            connected_peers: u32::try_from(status.peers).unwrap_or(u32::MAX),
            known_peers: u32::try_from(checked.known_peers).unwrap_or(u32::MAX),
            registries: checked.registries,
            allocators: checked.allocators,
        }))
    }
}

fn bootstrap(state: BootstrapState) -> proto::BootstrapState {
    let BootstrapState { at, connected, last_error } = state;
    proto::BootstrapState {
        address: at.to_string(),
        connected,
        last_error: last_error.unwrap_or_default(),
    }
}
