//! The line of requests without a connection, and the few connections that are being
//! opened for all of them.
//!
//! Invariant: whoever stands in line is given what is opened or given back first, in the
//! order of coming, or is told why there is nothing; nothing that was given is lost with
//! whoever leaves the line.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use lca::{Error, Kind, Result};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout, timeout_at},
};

use super::{
    io::Bounded,
    lease::Connection,
    pool::{Dial, Shared, Waiting},
};

/// Headers of an answer, and the room for them: what an honest application needs, and
/// what our own servers accept too.
const MAX_HEADERS: usize = 100;
const MAX_BUFFER: usize = 64 << 10;
/// Connections to one key that are being opened at the same time. Whoever comes meanwhile
/// takes what is opened or given back first: a thousand requests at once need no thousand
/// handshakes, which would keep a peer from its work. A peer 100 ms away, with a handshake
/// of 300 ms, still serves the first hundred of a burst within a second.
pub(super) const MAX_DIALS: usize = 16;
/// How many times [`Config::connect`] a request stands in line at most while the line moves:
/// thirty seconds to a peer. Where everybody is served, only slowly, to send
/// a request away helps nobody.
const LONGEST_LINE: u32 = 10;

/// Why there is no connection for a request.
pub(super) enum Lack {
    /// None could be opened.
    Unreachable(Error),
    /// Others were first.
    Busy(Error),
}

impl<D: Dial> Shared<D> {
    /// The first connection that is opened for us or given back by another request: as long
    /// as others are given some, and then for [`Config::connect`].
    pub(super) async fn wait(
        self: &Arc<Self>,
        key: &D::Key,
        to: &D::To,
    ) -> std::result::Result<Connection, Lack> {
        let limit = self.config.connect;
        let since = Instant::now();
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let (give, given) = oneshot::channel();
        let dial = {
            let mut state = self.lock();
            let slot = state.slots.entry(key.clone()).or_default();
            slot.waiting.push_back(Waiting { id, give: Some(give) });
            let dial = slot.dialling < MAX_DIALS;
            slot.dialling += usize::from(dial);
            dial
        };
        if dial {
            tokio::spawn(self.clone().dial(key.clone(), to.clone(), id));
        }
        let mut wait = Wait { pool: self, key, id, given };
        let (mut until, last) = (since + limit, since + limit * LONGEST_LINE);
        let given = loop {
            if let Ok(given) = timeout_at(until, &mut wait.given).await {
                break Some(given);
            }
            match self.moved(key).map(|moved| (moved + limit).min(last)) {
                Some(later) if later > until => until = later,
                _ => break None,
            }
        };
        match given {
            Some(Ok(Ok(connection))) => Ok(connection),
            // Others are served meanwhile: this one came too late, and that is all.
            Some(Ok(Err(error))) if error.kind() == Kind::Timeout && self.serves(key) => {
                Err(Lack::Busy(error))
            }
            Some(Ok(Err(error))) => Err(Lack::Unreachable(error)),
            _ if !dial || self.serves(key) => Err(Lack::Busy(not_within(limit))),
            _ => Err(Lack::Unreachable(not_within(limit))),
        }
    }

    /// When the line moved last.
    fn moved(&self, key: &D::Key) -> Option<Instant> {
        self.lock().slots.get(key).and_then(|slot| slot.moved)
    }

    /// Whether there are connections that are used, or could be.
    fn serves(&self, key: &D::Key) -> bool {
        let state = self.lock();
        state.slots.get(key).is_some_and(|slot| slot.in_flight > 0 || !slot.idle.is_empty())
    }

    /// Opens connections until nobody lacks one, or one cannot be opened. That is told to
    /// `whose` it was, and to everyone if no other is being opened; where it only took too
    /// long and others are served, to nobody.
    async fn dial(self: Arc<Self>, key: D::Key, to: D::To, whose: u64) {
        loop {
            match self.connect(&key, &to).await {
                Ok(connection) => self.put_back(key.clone(), connection),
                Err(error) => return self.not_opened(&key, whose, &error),
            }
            let mut state = self.lock();
            let Some(slot) = state.slots.get_mut(&key) else { return };
            // Until here this one counted as being opened.
            if slot.waiting.len() < slot.dialling {
                slot.dialling -= 1;
                return state.tidy(&key);
            }
        }
    }

    fn not_opened(&self, key: &D::Key, whose: u64, error: &Error) {
        let mut state = self.lock();
        let Some(slot) = state.slots.get_mut(key) else { return };
        slot.dialling -= 1;
        let lately = slot.moved.is_some_and(|moved| moved.elapsed() < self.config.connect);
        if error.kind() == Kind::Timeout && lately {
            return;
        }
        let none_left = slot.dialling == 0;
        slot.waiting.retain_mut(|waiting| {
            let told = none_left || waiting.id == whose;
            if told && let Some(give) = waiting.give.take() {
                let _gone_meanwhile = give.send(Err(error.clone()));
            }
            !told
        });
        state.tidy(key);
    }

    async fn connect(self: &Arc<Self>, key: &D::Key, to: &D::To) -> Result<Connection> {
        let limit = self.config.connect;
        let dialled = timeout(limit, self.dial.dial(to)).await;
        let stream = dialled.unwrap_or_else(|_| Err(not_within(limit)))?;
        let stream = Bounded::new(stream, self.config.stall);
        let tally = stream.tally();
        let (mut sender, connection) = http1::Builder::new()
            .max_headers(MAX_HEADERS)
            .max_header_size(MAX_BUFFER)
            .max_buf_size(MAX_BUFFER)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(failed_at_once)?;
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let (pool, key) = (Arc::downgrade(self), key.clone());
        // Ends when its last sender is dropped, the other end closes, or it is aborted.
        let task = tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection over");
            }
            if let Some(pool) = pool.upgrade() {
                pool.forget(&key, id);
            }
        });
        // Its task has to run once before it can be told from a dead one.
        sender.ready().await.map_err(failed_at_once)?;
        Ok(Connection { id, sender, tally, task: task.abort_handle(), fresh: true })
    }
}

/// A place among those who wait. Dropping it leaves, and passes on what has been given.
struct Wait<'a, D: Dial> {
    pool: &'a Arc<Shared<D>>,
    key: &'a D::Key,
    id: u64,
    given: oneshot::Receiver<Result<Connection>>,
}

impl<D: Dial> Drop for Wait<'_, D> {
    fn drop(&mut self) {
        if self.given.is_terminated() {
            return; // it was given something
        }
        self.given.close();
        if let Ok(Ok(connection)) = self.given.try_recv() {
            return self.pool.put_back(self.key.clone(), connection);
        }
        let mut state = self.pool.lock();
        if let Some(slot) = state.slots.get_mut(self.key) {
            slot.waiting.retain(|waiting| waiting.id != self.id);
            state.tidy(self.key);
        }
    }
}

fn failed_at_once(error: hyper::Error) -> Error {
    Error::new(Kind::Unavailable, "the connection failed at once").because(error)
}

fn not_within(limit: Duration) -> Error {
    Error::new(Kind::Timeout, format!("no connection within {limit:?}"))
}
