//! The gRPC services of an allocator: parse, delegate, translate. No policy here.

use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use lca::{
    Error, InstancePrefix, Kind, RequestId, ServiceName,
    api::{
        Caller,
        proto::{
            self, AllocateRequest, AllocateResponse, DescribeRequest, DescribeResponse,
            InstanceEvent, ListInstancesRequest, ListInstancesResponse, LogChunk, LogsRequest,
            ReleaseRequest, ReleaseResponse, WatchInstancesRequest, allocator_server,
            instances_server,
        },
    },
};
use tonic::{Request, Response, Status};
use tracing::Instrument as _;

use crate::{
    Allocator,
    claims::holder::Asked,
    driver::{Begin, Output},
    feed::{self, Which},
    lifecycle::State,
    requests::{Mode, Wanted},
    supervisor::{Allocated, Supervisor},
    table::Entry,
};

/// Most instances in one answer (`ListInstancesResponse`).
const MAX_LISTED: usize = 1000;
/// Most artifacts in one answer (`DescribeResponse`).
const MAX_ARTIFACTS: usize = 1000;

#[async_trait]
impl allocator_server::Allocator for Allocator {
    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        let request_id: RequestId = request.request_id.parse().map_err(Error::from)?;
        let from = match caller {
            Caller::Peer(peer) => peer.short(),
            Caller::Local => "local".to_owned(),
        };
        let span = tracing::info_span!("allocate", request = %request_id, caller = from);
        let wanted = Wanted {
            service: request.service.parse().map_err(Error::from)?,
            hash: request.service_hash.parse().map_err(Error::from)?,
            mode: mode(request.mode)?,
        };
        let name = wanted.service.clone();
        let allocated =
            self.supervisor.allocate(caller, wanted, request_id).instrument(span.clone()).await;
        self.count(&name, &allocated);
        let allocated = allocated?;
        let (instance, joined) = (allocated.entry.id, allocated.joined);
        span.in_scope(|| tracing::debug!(%instance, joined, "allocated"));
        Ok(Response::new(AllocateResponse {
            instance: Some(self.supervisor.describe(&allocated.entry)),
            joined: allocated.joined,
            steps: allocated.steps,
        }))
    }

    async fn claim(
        &self,
        request: Request<proto::ClaimRequest>,
    ) -> Result<Response<proto::ClaimResponse>, Status> {
        let caller = Caller::of(&request);
        let asked = Asked::read(caller, request.get_ref())?;
        Ok(Response::new(self.supervisor.claim(asked).await?))
    }

    async fn intend(
        &self,
        request: Request<proto::IntendRequest>,
    ) -> Result<Response<proto::IntendResponse>, Status> {
        let caller = Caller::of(&request);
        let proto::IntendRequest { service_hash, peer } = request.into_inner();
        let service = service_hash.parse().map_err(Error::from)?;
        let at = peer.parse().map_err(Error::from)?;
        let mut books = self.supervisor.lock();
        let which = Which { service: None, hash: Some(service) };
        let begun = books.table.live().filter(|entry| {
            let state = entry.state();
            which.fits(entry) && (state.is_coming_up() || state == State::Ready)
        });
        let instances = begun.take(MAX_LISTED).map(|entry| entry.id.to_string()).collect();
        let first = books.intents.heard(service, caller, at, tokio::time::Instant::now());
        Ok(Response::new(proto::IntendResponse { instances, peer: first.to_string() }))
    }

    async fn release(
        &self,
        request: Request<ReleaseRequest>,
    ) -> Result<Response<ReleaseResponse>, Status> {
        let prefix = prefix(&request.into_inner().instance)?;
        let entry = self.supervisor.release(&prefix).await?;
        Ok(Response::new(ReleaseResponse { instance: Some(self.supervisor.describe(&entry)) }))
    }

    async fn describe(
        &self,
        _: Request<DescribeRequest>,
    ) -> Result<Response<DescribeResponse>, Status> {
        let cached = self.supervisor.catalog.cached();
        let means = self.supervisor.drivers.means();
        let books = self.supervisor.lock();
        Ok(Response::new(DescribeResponse {
            total: Some(self.supervisor.config.capacity.into()),
            used: Some(books.table.used().into()),
            drivers: self.supervisor.drivers.names(),
            cached_artifacts: cached.iter().take(MAX_ARTIFACTS).map(ToString::to_string).collect(),
            enforced: means.enforced,
            not_enforced: means.not_enforced,
            stopping: books.stopping || books.draining,
        }))
    }

    type LogsStream = BoxStream<'static, Result<LogChunk, Status>>;

    async fn logs(
        &self,
        request: Request<LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        let LogsRequest { instance, tail_lines, follow } = request.into_inner();
        let entry = self.supervisor.lock().table.find(&prefix(&instance)?)?;
        let begin = match tail_lines {
            0 => Begin::Oldest,
            lines => Begin::LastLines(lines),
        };
        let output = self.output(&entry, begin, follow).await?;
        let chunks = output.map_ok(|data| LogChunk { data }).map_err(Status::from);
        Ok(Response::new(chunks.boxed()))
    }
}

#[async_trait]
impl instances_server::Instances for Allocator {
    type WatchInstancesStream = BoxStream<'static, Result<InstanceEvent, Status>>;

    async fn watch_instances(
        &self,
        request: Request<WatchInstancesRequest>,
    ) -> Result<Response<Self::WatchInstancesStream>, Status> {
        let WatchInstancesRequest { service, service_hash } = request.into_inner();
        let which = which(&service, &service_hash)?;
        let events = feed::watch(&self.supervisor, which)?;
        Ok(Response::new(events.map_err(Status::from).boxed()))
    }

    async fn list_instances(
        &self,
        request: Request<ListInstancesRequest>,
    ) -> Result<Response<ListInstancesResponse>, Status> {
        let request = request.into_inner();
        let which = which(&request.service, &request.service_hash)?;
        let mut entries: Vec<_> = {
            let books = self.supervisor.lock();
            let ended = books.table.ended().filter(|_| request.include_ended);
            let all = books.table.live().chain(ended);
            all.filter(|entry| which.fits(entry)).cloned().collect()
        };
        // Newest first: what is cut off is the oldest.
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.admitted));
        entries.truncate(MAX_LISTED);
        let instances = entries.iter().map(|entry| self.supervisor.describe(entry)).collect();
        Ok(Response::new(ListInstancesResponse { instances, unreachable_peers: Vec::new() }))
    }
}

impl Allocator {
    fn count(&self, name: &ServiceName, allocated: &Result<Allocated, Error>) {
        let metrics = &self.supervisor.config.metrics;
        let (service, outcome) = match allocated {
            Ok(allocated) if allocated.joined => (metrics.service(name), "joined"),
            Ok(_) => (metrics.service(name), "started"),
            Err(error) => (metrics.seen_service(name), error.kind().slug()),
        };
        metrics.allocator.allocations.with_label_values(&[service.label(), outcome]).inc();
    }
}

impl Supervisor {
    /// The name of what runs it, or has run it.
    fn driver_of(&self, entry: &Entry) -> String {
        let runs = &entry.spec.runs;
        let gone = |_| runs.driver().unwrap_or_default();
        self.drivers.of(runs).map_or_else(gone, |driver| driver.name()).to_owned()
    }

    /// An instance as others see it.
    pub(crate) fn describe(&self, entry: &Entry) -> proto::Instance {
        let own = self.discovery.own();
        let view = entry.view.borrow();
        let (by, request_id) = match &entry.call {
            Some((Caller::Peer(peer), id)) => (peer.to_string(), id.to_string()),
            Some((Caller::Local, id)) => (String::new(), id.to_string()),
            None => Default::default(),
        };
        proto::Instance {
            id: entry.id.to_string(),
            service: entry.spec.name.to_string(),
            service_hash: entry.hash.to_string(),
            revision: entry.spec.revision,
            peer: own.peer.to_string(),
            mesh_addresses: own.mesh.iter().map(ToString::to_string).collect(),
            state: proto::InstanceState::from(view.state).into(),
            reason: view.reason.clone(),
            last_output: view.output.clone(),
            driver: self.driver_of(entry),
            age_ms: entry.age_ms(),
            load: entry.load().map(Into::into),
            rtt_us: None,
            rtt_deviation_us: None,
            pid: view.pid,
            requested_by: by,
            request_id,
            usage: entry
                .used()
                .filter(|_| !view.state.is_ended())
                .map(|used| used.told(&entry.spec.allowance)),
            restarts: entry.past.failed,
            last_exit: entry.past.last.clone(),
            fetching: view.fetching.filter(|_| view.state == State::Fetching),
        }
    }
}

impl Allocator {
    /// The output of an instance; nothing, if it never ran.
    async fn output(&self, entry: &Entry, begin: Begin, follow: bool) -> Result<Output, Error> {
        if follow {
            // Somebody may follow an instance whose artifact is still on its way.
            let mut view = entry.view.subscribe();
            // Cannot fail: the entry holds the sender.
            drop(view.wait_for(|view| view.pid != 0 || !view.state.is_coming_up()).await);
        }
        let logs = async {
            self.supervisor.drivers.of(&entry.spec.runs)?.logs(entry.id, begin, follow).await
        };
        match logs.await {
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::NotHere) => {
                Ok(futures::stream::empty().boxed())
            }
            output => output,
        }
    }
}

fn prefix(text: &str) -> Result<InstancePrefix, Error> {
    Ok(text.parse()?)
}

fn which(service: &str, service_hash: &str) -> Result<Which, Error> {
    Ok(Which { service: optional(service)?, hash: optional(service_hash)? })
}

fn optional<T: std::str::FromStr<Err = lca::ParseError>>(text: &str) -> Result<Option<T>, Error> {
    Ok(if text.is_empty() { None } else { Some(text.parse()?) })
}

fn mode(value: i32) -> Result<Mode, Error> {
    use proto::allocate_request::Mode as Wire;
    match Wire::try_from(value) {
        Ok(Wire::Unspecified | Wire::Ensure) => Ok(Mode::Ensure),
        Ok(Wire::New) => Ok(Mode::New),
        Err(_) => Err(Error::new(Kind::InvalidArgument, "mode is not known here")),
    }
}
