//! The `Manager` service of the local API: parse, delegate, translate.
//!
//! A person who asks is told the truth, not a hint: what is known is confirmed with
//! the peer before it is answered.

use std::{sync::Arc, time::Duration};

use lca::{
    Error, InstanceId, Kind, RequestId, Result, ServiceName,
    api::proto::{
        self, allocate_progress::Progress as Said, allocate_request::Mode,
        manager_server::Manager as Rpc,
    },
    endpoint::Endpoint,
    headers::Refusal,
};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::{
    Manager, Outcome, Target, Wish, explain,
    flight::Landed,
    manager::{Wait, Way},
    relay,
};

pub(crate) mod for_peers;
pub(crate) mod peers;

/// Times a hint may turn out to be wrong before the caller is told to ask again.
const CONFIRMATIONS: usize = 3;
/// Longest a peer may take to confirm.
const CONFIRM: Duration = Duration::from_secs(2);
/// Progress messages a slow reader may be behind.
const PROGRESS: usize = 32;
/// When instances that change all the time may have settled: a probe's interval.
const SETTLED: Duration = Duration::from_secs(1);

/// The `Manager` service as programs of this machine see it.
#[derive(Clone, Debug)]
pub(crate) struct ForLocal(pub(crate) Manager);

#[tonic::async_trait]
impl Rpc for ForLocal {
    type AllocateStream = ReceiverStream<Result<proto::AllocateProgress, Status>>;

    async fn resolve(
        &self,
        request: Request<proto::ResolveRequest>,
    ) -> Result<Response<proto::ResolveResponse>, Status> {
        let deadline = Instant::now() + relay::remaining(request.metadata());
        let request = request.into_inner();
        let mut wish = Wish::new(name(&request.service)?, deadline);
        wish.allocate = request.allocate;
        let (instance, ..) = self.confirmed(wish, &Listener::deaf()).await?;
        Ok(Response::new(proto::ResolveResponse { instance: Some(instance) }))
    }

    async fn allocate(
        &self,
        request: Request<proto::AllocateServiceRequest>,
    ) -> Result<Response<Self::AllocateStream>, Status> {
        let deadline = Instant::now() + relay::remaining(request.metadata());
        let request = request.into_inner();
        let mode = Mode::try_from(request.mode)
            .map_err(|_| Error::new(Kind::InvalidArgument, "mode is neither ENSURE nor NEW"))?;
        let request_id = match request.request_id.as_str() {
            "" => RequestId::random(),
            given => given.parse().map_err(Error::from)?,
        };
        let wish = Wish::new(name(&request.service)?, deadline);
        let (sender, receiver) = mpsc::channel(PROGRESS);
        let this = self.clone();
        let listener = Listener(Some(sender));
        self.0.inner.spawner.spawn_short(async move {
            let work = async {
                let done = match mode {
                    Mode::New => this.another(wish, request_id, &listener).await,
                    Mode::Ensure | Mode::Unspecified => this.ensured(wish, &listener).await,
                };
                listener.done(done).await;
            };
            // A caller that goes away gives up its wait; the flight goes on.
            tokio::select! {
                () = work => {}
                () = listener.gone() => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn explain(
        &self,
        request: Request<proto::ExplainRequest>,
    ) -> Result<Response<proto::ExplainResponse>, Status> {
        let name = name(&request.into_inner().service)?;
        Ok(Response::new(explain::explain(&self.0.inner, &name).await?))
    }

    async fn list_peers(
        &self,
        _request: Request<proto::ListPeersRequest>,
    ) -> Result<Response<proto::ListPeersResponse>, Status> {
        let peers = peers::asked(&self.0.inner).await;
        Ok(Response::new(proto::ListPeersResponse { peers }))
    }
}

impl ForLocal {
    async fn ensured(&self, wish: Wish, listener: &Listener) -> Result<proto::AllocateResponse> {
        let (instance, joined, steps) = self.confirmed(wish, listener).await?;
        Ok(proto::AllocateResponse { instance: Some(instance), joined, steps })
    }

    async fn another(
        &self,
        wish: Wish,
        request_id: RequestId,
        listener: &Listener,
    ) -> Result<proto::AllocateResponse> {
        let mut wait = self.0.another(&wish, request_id).await?;
        let landed = listener.follow(&mut wait, &wish).await?;
        let (instance, joined) = self.described(&landed).unwrap_or_default();
        Ok(proto::AllocateResponse { instance: Some(instance), joined, steps: wait.steps() })
    }

    /// An instance that is there, whether it was there before, and what it took.
    async fn confirmed(
        &self,
        mut wish: Wish,
        listener: &Listener,
    ) -> Result<(proto::Instance, bool, Vec<proto::Step>)> {
        for _ in 0..CONFIRMATIONS {
            let (target, steps) = match self.0.way(&wish).await? {
                Way::Known(target) => (target, Vec::new()),
                Way::Flight(mut wait) => {
                    let landed = match listener.follow(&mut wait, &wish).await {
                        Err(error) if self.0.is_outdated(&wish, wait.hash, &error).await => {
                            continue;
                        }
                        landed => landed?,
                    };
                    if let Some((instance, joined)) = self.described(&landed) {
                        return Ok((instance, joined, wait.steps()));
                    }
                    let Landed { instance, endpoint, .. } = landed;
                    let (service, hash) = (wish.service.clone(), wait.hash);
                    let (steps, counted) = (Vec::new(), wait.counted.clone());
                    let ticket = self.0.inner.moving.begin(instance).into();
                    let target =
                        Target { service, hash, instance, endpoint, steps, counted, ticket };
                    (target, wait.steps())
                }
            };
            match self.confirm(&target).await {
                Ok(Some(instance)) => return Ok((instance, true, steps)),
                Ok(None) => self.0.report(&target, Outcome::Refused(Refusal::Unknown)),
                Err(error) => self.0.report(&target, unconfirmed(&error)),
            }
            wish.tried.push(target.instance);
        }
        Err(Error::new(
            Kind::Unavailable,
            format!("the instances of {} change faster than they can be named", wish.service),
        )
        .retry_after(SETTLED))
    }

    /// Asks the peer of `target` whether it is there.
    async fn confirm(&self, target: &Target) -> Result<Option<proto::Instance>> {
        let which = proto::ListInstancesRequest {
            service_hash: target.hash.to_string(),
            ..Default::default()
        };
        let reach = &self.0.inner.reach;
        let instances = reach.instances(&target.endpoint, which, CONFIRM).await?;
        let ready = |instance: &proto::Instance| {
            instance.id.parse::<InstanceId>() == Ok(target.instance)
                && instance.state() == proto::InstanceState::Ready
        };
        let found = instances.into_iter().find(ready);
        Ok(found.map(|instance| self.completed(instance, &target.endpoint)))
    }

    /// What an allocator said when it had been asked.
    fn described(&self, landed: &Landed) -> Option<(proto::Instance, bool)> {
        let answer = landed.allocated.as_ref()?;
        let instance = answer.instance.clone()?;
        Some((self.completed(instance, &landed.endpoint), answer.joined))
    }

    /// Adds what only this node knows.
    fn completed(&self, mut instance: proto::Instance, at: &Arc<Endpoint>) -> proto::Instance {
        instance.rtt_us = self.0.inner.reach.rtt_us(at.peer);
        instance.rtt_deviation_us = self.0.inner.reach.deviation_us(at.peer);
        instance.mesh_addresses = at.mesh.iter().map(ToString::to_string).collect();
        instance
    }
}

/// What follows for everybody from a peer that has not confirmed an instance. Only one that
/// cannot be connected to takes its instances along: one that is late, or cannot say, may
/// serve requests all the same.
fn unconfirmed(error: &Error) -> Outcome {
    match error.kind() {
        Kind::Unavailable => Outcome::Unreachable,
        _ => Outcome::Busy,
    }
}

/// Whoever listens to the progress of an allocation, if anybody.
struct Listener(Option<mpsc::Sender<Result<proto::AllocateProgress, Status>>>);

impl Listener {
    const fn deaf() -> Self {
        Self(None)
    }

    /// Tells each step of the flight as it is over, and then returns its end.
    async fn follow(&self, wait: &mut Wait, wish: &Wish) -> Result<Landed> {
        let Some(sender) = &self.0 else { return wait.end(wish).await };
        let (mut told, mut drawn) = (0, None);
        let mut progress = wait.progress.clone();
        let telling = async {
            loop {
                let (ended, fetching) = {
                    let now = progress.borrow_and_update();
                    (now.end.is_some(), now.fetching)
                };
                for step in wait.steps().into_iter().skip(told) {
                    told += 1;
                    let said = proto::AllocateProgress { progress: Some(Said::Step(step)) };
                    if sender.send(Ok(said)).await.is_err() {
                        return;
                    }
                }
                if fetching != drawn {
                    drawn = fetching;
                    let said = fetching.map(Said::Fetching);
                    let said = proto::AllocateProgress { progress: said };
                    if said.progress.is_some() && sender.send(Ok(said)).await.is_err() {
                        return;
                    }
                }
                if ended || progress.changed().await.is_err() {
                    return;
                }
            }
        };
        let _or_the_client_is_out_of_time = tokio::time::timeout_at(wish.deadline, telling).await;
        wait.end(wish).await
    }

    async fn done(&self, done: Result<proto::AllocateResponse>) {
        let Some(sender) = &self.0 else { return };
        let said = done.map(|done| proto::AllocateProgress { progress: Some(Said::Done(done)) });
        let _the_caller_may_be_gone = sender.send(said.map_err(Status::from)).await;
    }

    /// Resolves when nobody listens any more.
    async fn gone(&self) {
        match &self.0 {
            Some(sender) => sender.closed().await,
            None => std::future::pending().await,
        }
    }
}

fn name(text: &str) -> Result<ServiceName> {
    Ok(text.parse()?)
}
