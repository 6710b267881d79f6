//! The questions a manager asks other peers, each with a deadline of its own that
//! includes connecting, so that a dead peer costs that long and never longer.

use std::{sync::Arc, time::Duration};

use lca::{
    Error, InstanceId, Kind, PeerId, Result, ServiceHash,
    api::{
        self,
        proto::{self, allocator_client::AllocatorClient, instances_client::InstancesClient},
    },
    discovery::Discovery,
    endpoint::Endpoint,
    headers::Load,
    mesh::Mesh,
};
use tokio::time::{MissedTickBehavior, interval};
use tonic::transport::Channel;

/// How often to look whether a peer that is at work still lives: it is known to be gone
/// three seconds after the last word of it, so this is four in all, instead of minutes.
const PULSE: Duration = Duration::from_secs(1);

/// The way to other peers. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Reach {
    pub(crate) discovery: Arc<dyn Discovery>,
    pub(crate) mesh: Arc<dyn Mesh>,
}

impl Reach {
    /// A channel to `to`.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] if it cannot be reached; [`Kind::Timeout`] if that takes
    /// longer than `within`.
    pub(crate) async fn channel(&self, to: &Endpoint, within: Duration) -> Result<Channel> {
        match tokio::time::timeout(within, self.mesh.grpc(to)).await {
            Ok(channel) => channel,
            Err(_) => Err(silent(to, within)),
        }
    }

    /// How far away `to` is, after a probe if nobody knows yet.
    ///
    /// # Errors
    /// As [`Self::channel`].
    pub(crate) async fn measure(&self, to: &Endpoint, within: Duration) -> Result<Duration> {
        if let Some(rtt) = self.mesh.rtt(to.peer) {
            return Ok(rtt);
        }
        match tokio::time::timeout(within, self.mesh.measure(to)).await {
            Ok(rtt) => rtt,
            Err(_) => Err(silent(to, within)),
        }
    }

    /// How far `peer` is as requests find it, which may be farther than `rtt`, what probes
    /// say. To look for something nearer by; never to refuse by.
    pub(crate) fn effective(&self, peer: PeerId, rtt: Duration) -> Duration {
        let felt = self.mesh.distance(peer).and_then(|distance| distance.felt);
        felt.map_or(rtt, |felt| felt.max(rtt))
    }

    /// The instances `to` runs.
    ///
    /// # Errors
    /// As [`Self::channel`], or what it answered.
    pub(crate) async fn instances(
        &self,
        to: &Endpoint,
        which: proto::ListInstancesRequest,
        within: Duration,
    ) -> Result<Vec<proto::Instance>> {
        let asked = async {
            let mut client = InstancesClient::new(self.mesh.grpc(to).await?);
            let request = api::within(within, which);
            Ok::<_, Error>(client.list_instances(request).await?.into_inner().instances)
        };
        let answered = tokio::time::timeout(within, asked).await;
        let mut instances = answered.unwrap_or_else(|_| Err(silent(to, within)))?;
        // A peer speaks for itself alone.
        let peer = to.peer.to_string();
        instances.retain(|instance| instance.peer == peer);
        Ok(instances)
    }

    /// Tells `to` that `service` is about to be started by `at`, and asks what it knows of
    /// that.
    ///
    /// # Errors
    /// As [`Self::channel`], or what it answered.
    pub(crate) async fn intend(
        &self,
        to: &Endpoint,
        service: ServiceHash,
        at: PeerId,
        within: Duration,
    ) -> Result<proto::IntendResponse> {
        let said = proto::IntendRequest { service_hash: service.to_string(), peer: at.to_string() };
        let asked = async {
            let mut client = AllocatorClient::new(self.mesh.grpc(to).await?);
            Ok::<_, Error>(client.intend(api::within(within, said)).await?.into_inner())
        };
        tokio::time::timeout(within, asked).await.unwrap_or_else(|_| Err(silent(to, within)))
    }

    /// What the allocator `to` offers.
    ///
    /// # Errors
    /// As [`Self::channel`], or what it answered.
    pub(crate) async fn describe(
        &self,
        to: &Endpoint,
        within: Duration,
    ) -> Result<proto::DescribeResponse> {
        let asked = async {
            let mut client = AllocatorClient::new(self.mesh.grpc(to).await?);
            let request = api::within(within, proto::DescribeRequest {});
            Ok::<_, Error>(client.describe(request).await?.into_inner())
        };
        tokio::time::timeout(within, asked).await.unwrap_or_else(|_| Err(silent(to, within)))
    }

    /// Resolves when nothing comes from a peer any more: not when it is slow. Cancel safe.
    pub(crate) async fn dies(&self, endpoint: &Endpoint) {
        if self.mesh.is_gone(endpoint.peer) {
            // It was, a moment ago: whoever works with it now has reached it.
            let _known_afterwards = self.mesh.measure(endpoint).await;
        }
        let mut pulse = interval(PULSE);
        pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            pulse.tick().await;
            self.mesh.watch(endpoint);
            if self.mesh.is_gone(endpoint.peer) {
                return;
            }
        }
    }

    /// The round trip to `peer` as the API shows it.
    pub(crate) fn rtt_us(&self, peer: PeerId) -> Option<u64> {
        self.mesh.rtt(peer).map(|rtt| rtt.as_micros() as u64)
    }

    /// How far round trips to `peer` stray, as the API shows it.
    pub(crate) fn deviation_us(&self, peer: PeerId) -> Option<u64> {
        self.mesh.distance(peer).map(|distance| distance.deviation.as_micros() as u64)
    }
}

fn silent(to: &Endpoint, within: Duration) -> Error {
    let peer = to.peer.short();
    Error::new(Kind::Timeout, format!("peer {peer} did not answer within {within:?}"))
}

/// An instance as a peer describes it, if it takes requests for `service`.
pub(crate) fn ready(
    instance: &proto::Instance,
    service: ServiceHash,
) -> Option<(InstanceId, Load)> {
    let hash: ServiceHash = instance.service_hash.parse().ok()?;
    let id = instance.id.parse().ok()?;
    (hash == service && instance.state() == proto::InstanceState::Ready)
        .then(|| (id, instance.load.map(Load::from).unwrap_or_default()))
}
