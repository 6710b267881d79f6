//! What comes second is released: where two allocators were asked, because the first did not
//! answer within its promise or fell silent, one instance is one too many as soon as both
//! are ready.
//!
//! This outlives the flight, whose requests are served by what came first: the other call
//! is heard out, and what it has started is found by the id of the request and released,
//! more than once if it has to be. What others use by then is left to them and idles out.
//! Bounded in time; where the other allocator stays unreachable, its instance idles out.

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use lca::{
    Error, Kind, Result,
    api::{
        self,
        proto::{self, InstanceState, allocator_client::AllocatorClient},
    },
    endpoint::Endpoint,
    metrics::Metrics,
    shutdown::Spawner,
};
use tokio::time::{Instant, sleep};

use super::{
    Order,
    call::{Calls, Event, No, Refused},
};
use crate::reach::Reach;

/// How long it is looked for, after whoever started it has answered or was given up: one
/// that was cut off for a while is back by then, or its instance has idled out.
const LONGEST: Duration = Duration::from_secs(120);
/// Until it is looked at again where that failed, and what it grows to, doubling.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Longest one look may take, connecting included.
const LOOK: Duration = Duration::from_secs(3);
/// Longest a release may take: it is answered when the instance has ended, which a program
/// that does not listen to SIGTERM delays.
const RELEASE: Duration = Duration::from_secs(60);

/// A start that more than one allocator was at.
pub(super) struct Surplus {
    pub(super) reach: Reach,
    pub(super) metrics: Metrics,
    pub(super) order: Arc<Order>,
    /// Those that may be at it yet, and whether an end of their call is awaited.
    pub(super) at_it: Vec<(Arc<Endpoint>, bool)>,
    /// Whether another's instance is used. If not, the first that is found is kept.
    pub(super) has_one: bool,
}

impl Surplus {
    /// Lets go of what comes yet, behind whoever has asked. `calls` are those that are awaited.
    pub(super) fn let_go(self, calls: Calls, spawner: &Spawner) {
        if self.at_it.is_empty() {
            return;
        }
        let stopping = spawner.stopping();
        spawner.spawn_short(async move {
            tokio::select! {
                () = self.until_gone(calls) => {}
                () = stopping => {}
            }
        });
    }

    async fn until_gone(mut self, mut calls: Calls) {
        while self.at_it.iter().any(|(_, awaited)| *awaited)
            && let Some(event) = calls.next().await
        {
            let Event::Ended(endpoint, answer) = event else { continue };
            // Who has answered no has started none; who was given up may have.
            let is_no =
                |refused: &Refused| !matches!(refused.no, No::GivenUp | No::Gone | No::Silent);
            if answer.as_ref().is_err_and(is_no) {
                self.at_it.retain(|(one, _)| one.peer != endpoint.peer);
                self.count("none");
            }
            let ended = self.at_it.iter_mut().filter(|(one, _)| one.peer == endpoint.peer);
            ended.for_each(|(_, awaited)| *awaited = false);
        }
        drop(calls);
        let deadline = Instant::now() + LONGEST;
        let mut pause = PAUSE;
        loop {
            for (endpoint, _) in std::mem::take(&mut self.at_it) {
                if let Err(error) = self.look(&endpoint).await {
                    tracing::debug!(
                        service = %self.order.name, peer = %endpoint.peer.short(),
                        error = error.chain(), "what came second is not released yet"
                    );
                    self.at_it.push((endpoint, false));
                }
            }
            if self.at_it.is_empty() {
                return;
            }
            if Instant::now() >= deadline {
                return self.at_it.iter().for_each(|_| self.count("lost"));
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Looks whether an allocator has started one, and releases it if there is another
    /// and nobody uses it.
    ///
    /// # Errors
    /// If it cannot be told, or has not been done.
    async fn look(&mut self, at: &Endpoint) -> Result<()> {
        let Self { reach, order, .. } = self;
        let which = proto::ListInstancesRequest {
            service_hash: order.service.to_string(),
            ..Default::default()
        };
        let instances = reach.instances(at, which, LOOK).await?;
        let own = reach.discovery.local().to_string();
        let is_ours = |one: &&proto::Instance| {
            // A program of the allocator's own machine has no name there.
            let by_us = one.requested_by == own || one.requested_by.is_empty();
            by_us && one.request_id == order.request_id.to_string() && !is_over(one.state())
        };
        let Some(one) = instances.iter().find(is_ours) else {
            // What it has of this service was started by others, and joined.
            if instances.iter().any(|one| one.state() == InstanceState::Ready) {
                self.count("used");
                return Ok(());
            }
            return Err(Error::new(Kind::NotFound, "it has none so far"));
        };
        if !self.has_one {
            self.has_one = true;
            self.count("kept");
            return Ok(());
        }
        if one.load.as_ref().is_some_and(|load| load.in_flight > 0) {
            self.count("used");
            return Ok(());
        }
        let request = proto::ReleaseRequest { instance: one.id.clone() };
        let mut client = AllocatorClient::new(reach.channel(at, LOOK).await?);
        api::call("the allocator", RELEASE, request, |request| client.release(request)).await?;
        tracing::info!(
            service = %order.name, peer = %at.peer.short(), instance = one.id,
            "the instance that came second is released"
        );
        self.count("released");
        Ok(())
    }

    fn count(&self, outcome: &'static str) {
        self.metrics.manager.surplus.with_label_values(&[outcome]).inc();
    }
}

fn is_over(state: InstanceState) -> bool {
    use InstanceState::{Draining, Failed, Stopped};
    matches!(state, Draining | Stopped | Failed)
}
