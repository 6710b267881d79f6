//! Leaves the machine in peace: an allocator that is drained accepts nothing more, and stops
//! once what it runs has nothing open.
//!
//! ```text
//! draining ──► every instance refuses requests, which go elsewhere, and finishes what it has
//!          ──► none is left ──► the daemon stops, exit 0
//! ```
//!
//! Unlike a stop it has no deadline: whoever asked for it watches, and may stop the daemon
//! the usual way. There is no way back but a restart.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{StreamExt as _, stream, stream::BoxStream};
use lca::api::proto::{DrainProgress, DrainRequest, operation_server};
use tokio::time::sleep;
use tonic::{Request, Response, Status};

use crate::{Allocator, supervisor::Supervisor, table::Ask};

/// How often whoever watches is told what is left, and how soon the end is noticed.
const LOOK: Duration = Duration::from_millis(100);

impl Supervisor {
    /// Accepts nothing more and asks everything that runs to end when it is idle. To be
    /// called again without effect.
    pub(crate) fn drain(&self) {
        let live: Vec<_> = {
            let mut books = self.lock();
            if !books.draining {
                tracing::info!(instances = books.table.live().count(), "draining");
            }
            books.draining = true;
            books.table.live().cloned().collect()
        };
        live.iter().for_each(|entry| entry.ask(Ask::Drain));
        self.feed.poke();
        self.drain.send_replace(true);
    }

    /// What is left of a drain.
    fn left(&self) -> DrainProgress {
        let books = self.lock();
        let loads = books.table.live().filter_map(|entry| entry.load());
        let requests = loads.map(|load| load.in_flight).sum();
        let instances = u32::try_from(books.table.live().count()).unwrap_or(u32::MAX);
        DrainProgress { instances, requests, done: books.draining && instances == 0 }
    }
}

impl Allocator {
    /// Resolves once this allocator has been drained: its daemon stops then. Cancel safe.
    pub async fn drained(&self) {
        let mut begun = self.supervisor.drain.subscribe();
        // Cannot fail: the supervisor is ours.
        drop(begun.wait_for(|begun| *begun).await);
        while !self.supervisor.left().done {
            sleep(LOOK).await;
        }
    }

    /// Serves `lca.v1.Operation`, for the local API alone.
    pub fn operation_server(&self) -> operation_server::OperationServer<Self> {
        operation_server::OperationServer::new(self.clone())
    }
}

#[async_trait]
impl operation_server::Operation for Allocator {
    type DrainStream = BoxStream<'static, Result<DrainProgress, Status>>;

    async fn drain(&self, _: Request<DrainRequest>) -> Result<Response<Self::DrainStream>, Status> {
        self.supervisor.drain();
        let supervisor = Arc::clone(&self.supervisor);
        // What is there at once, then each change, and the end.
        let told = stream::unfold((supervisor, None), async |(supervisor, told)| {
            if told.as_ref().is_some_and(|told: &DrainProgress| told.done) {
                return None;
            }
            loop {
                let left = supervisor.left();
                if told.as_ref() != Some(&left) {
                    return Some((Ok(left), (supervisor, Some(left))));
                }
                sleep(LOOK).await;
            }
        });
        Ok(Response::new(told.boxed()))
    }
}
