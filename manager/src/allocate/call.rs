//! Asking one allocator: the call, how long it may take by its own promise, and what its no
//! means for the others.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt as _, future::BoxFuture, stream::FuturesUnordered};
use lca::{
    Error, InstanceId, Kind, PeerId, Result,
    api::{
        self,
        proto::{self, allocator_client::AllocatorClient},
    },
    endpoint::Endpoint,
    headers::Load,
};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::{Order, RETRY_AFTER, fetched};
use crate::{
    flight::{Landed, Teller},
    reach::{Reach, ready},
};

/// Longest a connection to an allocator may take: the mesh's own deadline.
const CONNECT: Duration = Duration::from_secs(3);
/// What an allocation may take besides fetching and starting: connecting twice and
/// asking a registry.
const MARGIN: Duration = Duration::from_secs(10);
/// What the allocator is told beyond our own patience, so that ours is over first and
/// no other end of the call can be taken for it.
const BEYOND: Duration = Duration::from_secs(1);
/// What an allocator may take besides what it promises, and a round trip: connecting, looking up
/// the spec, saying that a start has failed at its deadline, on a machine that is busy.
const SLACK: Duration = Duration::from_secs(3);
/// When an allocator that is at it is asked whether it has the artifact: most have answered
/// by then, so a start that takes no time costs no second question. An artifact that is
/// fetched within this is covered by [`SLACK`].
const DESCRIBE: Duration = Duration::from_secs(1);

/// What comes of asking.
pub(super) enum Event {
    /// It has not answered within its promise, which was this.
    Late(PeerId, Duration),
    /// It has answered, or is not waited for any more.
    Ended(Arc<Endpoint>, Result<Landed, Refused>),
}

/// What comes of those that were asked.
pub(super) type Calls = FuturesUnordered<BoxFuture<'static, Event>>;

/// Asks one: both things that may come of it are among the `calls` from now on.
/// `teller` hears how far a fetch is.
pub(super) fn begin(
    reach: &Reach,
    order: &Arc<Order>,
    endpoint: Arc<Endpoint>,
    teller: Teller,
    calls: &Calls,
) {
    let (reach, order) = (reach.clone(), order.clone());
    if order.hedges {
        let (reach, order, endpoint) = (reach.clone(), order.clone(), endpoint.clone());
        calls.push(
            async move {
                let promise = promise(&reach, &order, &endpoint).await;
                Event::Late(endpoint.peer, promise)
            }
            .boxed(),
        );
    }
    calls.push(
        async move {
            let answer = tokio::select! {
                answer = ask(&reach, &order, &endpoint) => answer,
                never = fetched::follow(&reach, &order, &endpoint, &teller) => match never {},
            };
            Event::Ended(endpoint, answer)
        }
        .boxed(),
    );
}

/// Waits until the promise of an allocator that is asked now is over, and says how long
/// it was: the start time-out, a round trip and [`SLACK`]; and what a fetch may take, if it
/// says that it has not got the artifact. One that says nothing at all has no time for
/// a fetch.
async fn promise(reach: &Reach, order: &Order, endpoint: &Endpoint) -> Duration {
    let begun = Instant::now();
    let round_trip = reach.mesh.rtt(endpoint.peer).unwrap_or_default();
    let promise = order.start_timeout + round_trip + SLACK;
    sleep(DESCRIBE).await;
    let described = reach.describe(endpoint, promise.saturating_sub(DESCRIBE));
    let described = timeout_at(begun + promise, described).await;
    let fetches = match (described, order.runs.digest().map(|digest| digest.to_string())) {
        (Ok(Ok(said)), Some(digest)) => !said.cached_artifacts.contains(&digest),
        _ => false,
    };
    let promise = if fetches { promise + api::MAX_FETCH } else { promise };
    sleep_until(begun + promise).await;
    promise
}

/// One allocator's no.
pub(super) struct Refused {
    pub(super) error: Error,
    pub(super) no: No,
}

/// What a no means for the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum No {
    /// They would say the same.
    Everywhere,
    /// It is not waited for any more, and may start one yet.
    GivenUp,
    /// It has no room; others may.
    Full,
    /// It cannot be reached, and has not been asked.
    Gone,
    /// It has fallen silent after it was asked: it may have started one, or do it yet.
    Silent,
    /// It cannot or does not want to.
    Other,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        let no = match error.kind() {
            Kind::NoCapacity => No::Full,
            // Not [`Kind::NotHere`]: that is one machine's own lack.
            Kind::StartFailed
            | Kind::FailedPrecondition
            | Kind::InvalidArgument
            | Kind::Conflict => No::Everywhere,
            _ => No::Other,
        };
        Self { error, no }
    }
}

async fn ask(reach: &Reach, order: &Order, endpoint: &Arc<Endpoint>) -> Result<Landed, Refused> {
    let gone = |error| Refused { error, no: No::Gone };
    let channel = reach.channel(endpoint, CONNECT).await.map_err(gone)?;
    let request = proto::AllocateRequest {
        service: order.name.to_string(),
        service_hash: order.service.to_string(),
        mode: order.mode.into(),
        request_id: order.request_id.to_string(),
    };
    let patience = (order.start_timeout + api::MAX_FETCH + MARGIN).min(api::MAX_CALL - BEYOND);
    let call = async |channel| {
        let mut client = AllocatorClient::new(channel);
        api::call("the allocator", patience + BEYOND, request.clone(), |request| {
            client.allocate(request)
        })
        .await
    };
    let asked = async {
        match call(channel).await {
            // The connection may have broken while it was at work: with the same id it
            // answers with what it has begun.
            Err(error) if error.kind() == Kind::Unavailable => {
                call(reach.channel(endpoint, CONNECT).await?).await
            }
            answer => answer,
        }
    };
    let answer = tokio::select! {
        answer = asked => answer?,
        () = sleep(patience) => {
            return Err(Refused { error: late(endpoint, patience), no: No::GivenUp });
        }
        () = reach.dies(endpoint) => {
            let error = Error::new(Kind::Unavailable, "stopped answering while it started it");
            return Err(Refused { error, no: No::Silent });
        }
    };
    let odd = || Error::new(Kind::Internal, "answered with something that was not asked for");
    let (instance, _) = started(&answer, order, endpoint).ok_or_else(odd)?;
    Ok(Landed { instance, endpoint: endpoint.clone(), allocated: Some(Arc::new(answer)) })
}

fn late(endpoint: &Endpoint, patience: Duration) -> Error {
    let peer = endpoint.peer.short();
    Error::new(Kind::Timeout, format!("allocator {peer} did not answer within {patience:?}"))
        .hint("it may start it yet: the next request asks it again")
        .retry_after(RETRY_AFTER)
}

fn started(
    answer: &proto::AllocateResponse,
    order: &Order,
    endpoint: &Endpoint,
) -> Option<(InstanceId, Load)> {
    let instance = answer.instance.as_ref()?;
    (instance.peer == endpoint.peer.to_string()).then_some(())?;
    ready(instance, order.service)
}
