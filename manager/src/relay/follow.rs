//! Following one allocator: its `WatchInstances`, begun again whenever it breaks off.
//!
//! Invariant: a peer that dies, hangs or talks nonsense is [`Said::Lost`] within seconds,
//! and nobody but its own follower waits for it.

use std::{sync::Arc, time::Duration};

use lca::{
    Error, Kind, Result,
    api::proto::{self, instance_event::Event, instances_client::InstancesClient},
    endpoint::Endpoint,
};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use crate::reach::Reach;

/// Longest an allocator may take to be reached, and then between two of the events that
/// tell what it has: the same as for listing them.
const ASK: Duration = Duration::from_secs(1);
/// Until one that is lost is tried again: soon enough for people, and no flood.
const AGAIN: Duration = Duration::from_secs(2);
/// Until one that broke off is tried again: a daemon that restarts is lost, a connection
/// that was replaced is not.
const RESUME: Duration = Duration::from_millis(50);

/// What a follower has to say of its allocator.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all are events")]
pub(crate) enum Said {
    /// It begins to tell what it has; up to `synced`, what it does not tell is not there.
    Begun,
    /// Something else.
    Event(Event),
    /// It does not answer. It is tried again.
    Lost,
}

/// One allocator that is followed.
pub(crate) struct Follower {
    pub(crate) reach: Reach,
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) which: proto::WatchInstancesRequest,
    /// Tells whoever merges, under this number.
    pub(crate) number: u64,
    pub(crate) sender: mpsc::Sender<(u64, Said)>,
}

impl Follower {
    /// Follows until it is dropped, or nobody listens.
    pub(crate) async fn follow(self) {
        loop {
            let mut synced = false;
            let end = self.once(&mut synced).await;
            let peer = self.endpoint.peer.short();
            tracing::debug!(%peer, error = end.as_ref().err().map(Error::chain), "a watch is over");
            let silent = end.is_err_and(|error| error.kind() == Kind::Timeout);
            if synced && !silent {
                sleep(RESUME).await;
            } else {
                if !self.say(Said::Lost).await {
                    return;
                }
                sleep(AGAIN).await;
            }
        }
    }

    /// One watch, to its end.
    async fn once(&self, synced: &mut bool) -> Result<()> {
        // Measured as well: that it is silent is seen by its distance not being known.
        let reached = self.reach.channel(&self.endpoint, ASK);
        let measured = self.reach.measure(&self.endpoint, ASK);
        let (channel, _rtt) = tokio::try_join!(reached, measured)?;
        let mut client = InstancesClient::new(channel);
        let answer = timeout(ASK, client.watch_instances(self.which.clone())).await;
        let mut events = answer.map_err(|_| silent(&self.endpoint))??.into_inner();
        self.say(Said::Begun).await;
        loop {
            let next = async {
                match *synced {
                    true => Ok(events.message().await),
                    false => timeout(ASK, events.message()).await,
                }
            };
            let message = tokio::select! {
                message = next => message.map_err(|_| silent(&self.endpoint))??,
                () = self.reach.dies(&self.endpoint) => return Err(silent(&self.endpoint)),
            };
            let Some(message) = message else { return Ok(()) };
            // A newer allocator may tell what we do not know.
            let Some(event) = message.event else { continue };
            *synced |= matches!(event, Event::Synced(_));
            if !self.say(Said::Event(event)).await {
                return Ok(());
            }
        }
    }

    /// False if nobody listens any more.
    async fn say(&self, said: Said) -> bool {
        self.sender.send((self.number, said)).await.is_ok()
    }
}

fn silent(endpoint: &Endpoint) -> Error {
    Error::new(Kind::Timeout, format!("peer {} does not answer", endpoint.peer.short()))
}
