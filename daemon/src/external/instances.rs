//! `Instances` of a proxy in server mode: the one it represents.

use std::{pin::Pin, time::Duration};

use futures::{Stream, StreamExt as _, stream};
use lca::{
    Error, Kind, ParseError, ServiceHash, ServiceName,
    api::proto::{self, instance_event::Event, instances_server::Instances},
};
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::timeout,
};
use tonic::{Request, Response, Status};

use super::Representative;

/// Watchers at the same time: each manager is one.
pub(super) const WATCHERS: usize = 256;
/// How often load is looked at: the four times a second that the API speaks of.
const LOOK: Duration = Duration::from_millis(250);

type Events = Pin<Box<dyn Stream<Item = Result<proto::InstanceEvent, Status>> + Send>>;

#[tonic::async_trait]
impl Instances for Representative {
    type WatchInstancesStream = Events;

    async fn list_instances(
        &self,
        request: Request<proto::ListInstancesRequest>,
    ) -> Result<Response<proto::ListInstancesResponse>, Status> {
        let request = request.into_inner();
        let wanted = Wanted::parse(&request.service, &request.service_hash)?;
        let instances = self.wanted(&wanted).into_iter().collect();
        Ok(Response::new(proto::ListInstancesResponse { instances, unreachable_peers: Vec::new() }))
    }

    async fn watch_instances(
        &self,
        request: Request<proto::WatchInstancesRequest>,
    ) -> Result<Response<Events>, Status> {
        let request = request.into_inner();
        let wanted = Wanted::parse(&request.service, &request.service_hash)?;
        let place = self.shared.watchers.clone().try_acquire_owned().map_err(|_| {
            Error::new(Kind::NoCapacity, "too many watch this proxy already")
                .retry_after(Duration::from_secs(1))
        })?;
        // Before the first look: a change in between is told twice rather than never.
        let changes = self.shared.changes.subscribe();
        let told = self.wanted(&wanted);
        let first: Vec<_> =
            told.iter().cloned().map(Event::Put).chain([Event::Synced(true)]).collect();
        let watching = Watching { this: self.clone(), wanted, changes, told, _place: place };
        let later = stream::unfold(watching, |mut watching| async move {
            let events = watching.next().await;
            Some((stream::iter(events), watching))
        });
        let events = stream::iter(first).chain(later.flatten());
        let events = events.map(|event| Ok(proto::InstanceEvent { event: Some(event) }));
        Ok(Response::new(Box::pin(events.take_until(self.shared.spawner.stopping()))))
    }
}

/// One watcher. It holds nothing but what it told last, so one that does not read costs
/// nothing and misses only what is not true any more.
struct Watching {
    this: Representative,
    wanted: Wanted,
    changes: watch::Receiver<()>,
    told: Option<proto::Instance>,
    _place: OwnedSemaphorePermit,
}

impl Watching {
    /// What there is to tell, as soon as there is something.
    async fn next(&mut self) -> Vec<Event> {
        loop {
            // Cannot fail for want of a sender: `this` holds it.
            let _changed_or_time_to_look = timeout(LOOK, self.changes.changed()).await;
            let now = self.this.wanted(&self.wanted);
            if same(now.as_ref(), self.told.as_ref()) {
                continue;
            }
            let before = std::mem::replace(&mut self.told, now.clone());
            let gone = before
                .map(|before| before.id)
                .filter(|id| now.as_ref().is_none_or(|now| now.id != *id))
                .map(Event::Gone);
            return gone.into_iter().chain(now.map(Event::Put)).collect();
        }
    }
}

/// Whether both say the same but for the time.
fn same(a: Option<&proto::Instance>, b: Option<&proto::Instance>) -> bool {
    let ageless = |one: &proto::Instance| proto::Instance { age_ms: 0, ..one.clone() };
    a.map(ageless) == b.map(ageless)
}

/// What a caller asks for.
#[derive(Debug)]
struct Wanted {
    service: Option<ServiceName>,
    hash: Option<ServiceHash>,
}

impl Wanted {
    fn parse(service: &str, hash: &str) -> Result<Self, Error> {
        Ok(Self { service: optional(service)?, hash: optional(hash)? })
    }
}

fn optional<T: std::str::FromStr<Err = ParseError>>(text: &str) -> Result<Option<T>, Error> {
    Ok(if text.is_empty() { None } else { Some(text.parse()?) })
}

impl Representative {
    /// What is represented, if it is what a caller asks for.
    fn wanted(&self, wanted: &Wanted) -> Option<proto::Instance> {
        let Wanted { service, hash } = wanted;
        let own = self.shared.discovery.own();
        let instance = self.held().describe(&self.shared.what.service, &own);
        let is_wanted = service.as_ref().is_none_or(|name| name.as_str() == instance.service)
            && hash.is_none_or(|hash| hash.to_string() == instance.service_hash);
        is_wanted.then_some(instance)
    }
}
