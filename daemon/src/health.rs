//! Whether a daemon serves, for load balancers, service managers and `lcactl health`:
//! from the moment its node knows where it stands in the network until it is asked to
//! stop. The same answer locally and over the mesh.

use lca::{endpoint::Role, shutdown::Spawner};
use lca_node::{Joined, Node};
use tokio_util::sync::CancellationToken;
use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};

/// The health of one daemon.
#[derive(Debug)]
pub(crate) struct Health {
    reporter: HealthReporter,
    leaving: CancellationToken,
}

impl Health {
    /// Not serving until `node` has joined, or knows that it is alone.
    pub(crate) async fn start(role: Role, node: Node, spawner: &Spawner) -> Self {
        let reporter = HealthReporter::new();
        // A new one says that it serves.
        reporter.set_service_status("", ServingStatus::NotServing).await;
        let leaving = spawner.stop_token();
        let health = Self { reporter: reporter.clone(), leaving: leaving.clone() };
        spawner.spawn_short(async move {
            if let Some(joined) = leaving.run_until_cancelled(node.joined()).await {
                match joined {
                    Joined::Joined => tracing::info!(%role, peer = %node.peer(), "joined"),
                    Joined::Alone => tracing::info!(%role, peer = %node.peer(), "alone"),
                }
                reporter.set_service_status("", ServingStatus::Serving).await;
                if joined == Joined::Alone {
                    let later = async {
                        let mut status = node.status();
                        status.wait_for(|now| now.joined == Some(Joined::Joined)).await.is_ok()
                    };
                    if leaving.run_until_cancelled(later).await == Some(true) {
                        tracing::info!(%role, peer = %node.peer(), "joined, not alone any more");
                    }
                }
            }
            leaving.cancelled().await;
            reporter.set_service_status("", ServingStatus::NotServing).await;
        });
        health
    }

    /// The gRPC service, for any number of listeners.
    pub(crate) fn server(&self) -> HealthServer<HealthService> {
        HealthServer::new(HealthService::from_health_reporter(self.reporter.clone()))
    }

    /// The daemon was asked to stop.
    pub(crate) fn leave(&self) {
        self.leaving.cancel();
    }
}
