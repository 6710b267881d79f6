//! Connections to instances, and which of them a request goes on.

use std::{
    collections::HashMap,
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared as Flight},
};
use http::{Request, Response};
use lca::{Error, Kind};
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, timeout, timeout_at},
};

use super::{
    AGAIN, MAX_CONNECTIONS,
    connection::{Connection, Place, begin, drive},
    exchange::{self, Attempt},
};
use crate::h1::{Body, Bounded, Cause, Config, Dial, Failed};

/// Connections by key. Cheap to clone; the last clone closes what is unused, an answer being
/// read keeps its own connection.
pub struct Pool<D: Dial> {
    shared: Arc<Shared<D>>,
}

struct Shared<D: Dial> {
    dial: D,
    config: Config,
    slots: Mutex<HashMap<D::Key, Slot>>,
}

#[derive(Default)]
struct Slot {
    open: Vec<Arc<Connection>>,
    /// One attempt, for everybody who asks meanwhile.
    dialling: Option<Dialling>,
    /// Told when there may be a place again.
    freed: Arc<Notify>,
}

type Dialling = Flight<BoxFuture<'static, std::result::Result<(), NotOpened>>>;

/// Why there is no connection.
#[derive(Clone)]
struct NotOpened {
    error: Error,
    /// Somebody accepted, and speaks something else.
    stranger: bool,
}

/// Where a request can go.
enum Way {
    Here(Place),
    /// After this, somewhere perhaps.
    Dial(Dialling),
    Full(Arc<Notify>),
}

impl<D: Dial> Clone for Pool<D> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<D: Dial> fmt::Debug for Pool<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("dial", &self.shared.dial).finish_non_exhaustive()
    }
}

impl<D: Dial> Pool<D> {
    /// A pool with no connection yet.
    pub fn new(dial: D, config: Config) -> Self {
        Self { shared: Arc::new(Shared { dial, config, slots: Mutex::default() }) }
    }

    /// Sends a request in origin form, and resolves with the head of the answer. Whoever drops
    /// the future, or the answer's body before its end, resets the stream: that is how the
    /// instance learns that nobody waits any more.
    ///
    /// # Errors
    /// See [`Failed`]. What comes back lacks of its body what was taken already.
    pub async fn send(
        &self,
        to: &D::To,
        mut request: Request<Body>,
    ) -> std::result::Result<Response<Body>, Failed> {
        let mut tries = 0;
        loop {
            let place = match self.shared.place(to).await {
                Ok(place) => place,
                Err(Lack::Busy(error)) => return Err(Failed::Busy(Box::new(request), error)),
                Err(Lack::NotOpened(NotOpened { error, stranger: false })) => {
                    return Err(Failed::NotSent(Box::new(request), error));
                }
                Err(Lack::NotOpened(NotOpened { error, stranger: true })) => {
                    return Err(Failed::Sent(Cause::Garbled, error));
                }
            };
            tries += 1;
            match exchange::send(place, request, &self.shared.config).await {
                Ok(answer) => return Ok(answer),
                Err(Attempt::Returned { request: back, whole: true, .. }) if tries < AGAIN => {
                    request = *back;
                }
                Err(Attempt::Returned { request, error, .. }) => {
                    return Err(Failed::NotSent(request, error));
                }
                Err(Attempt::Refused(request, error)) => return Err(Failed::Busy(request, error)),
                Err(Attempt::Failed(cause, error)) => return Err(Failed::Sent(cause, error)),
            }
        }
    }
}

/// Why a request has no place.
enum Lack {
    NotOpened(NotOpened),
    Busy(Error),
}

impl<D: Dial> Shared<D> {
    fn lock(&self) -> MutexGuard<'_, HashMap<D::Key, Slot>> {
        // Nothing panics while holding it.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, within the time that a connection may take.
    async fn place(self: &Arc<Self>, to: &D::To) -> std::result::Result<Place, Lack> {
        let (key, limit) = (self.dial.key(to), self.config.connect);
        let deadline = Instant::now() + limit;
        let late = |_| {
            Lack::Busy(Error::new(
                Kind::Timeout,
                format!("no place on a connection within {limit:?}"),
            ))
        };
        loop {
            match self.way(&key, to) {
                Way::Here(place) => return Ok(place),
                Way::Dial(dialling) => {
                    let dialled = timeout_at(deadline, dialling).await.map_err(late)?;
                    dialled.map_err(Lack::NotOpened)?;
                }
                Way::Full(freed) => {
                    // Looked at once more after the call, so that no word is missed.
                    let freed = freed.notified();
                    tokio::pin!(freed);
                    freed.as_mut().enable();
                    if let Way::Here(place) = self.way(&key, to) {
                        return Ok(place);
                    }
                    timeout_at(deadline, freed).await.map_err(late)?;
                }
            }
        }
    }

    /// The busiest connection that nothing waits on, so that those not needed become idle;
    /// else a new one; else, where there cannot be more, any that takes it.
    fn way(self: &Arc<Self>, key: &D::Key, to: &D::To) -> Way {
        let mut slots = self.lock();
        let slot = slots.entry(key.clone()).or_default();
        slot.open.retain(|one| one.room().is_some());
        let free = |one: &&Arc<Connection>| one.room().is_some_and(|room| room > 0);
        let clear = slot.open.iter().filter(free).filter(|one| one.blocked() == 0);
        let best = clear.max_by_key(|one| one.load());
        // One that takes nothing though it has nothing says what another would say.
        let shut = slot.open.iter().any(|one| one.room() == Some(0) && one.load() == 0);
        let more = slot.open.len() < MAX_CONNECTIONS && !shut;
        let any = || slot.open.iter().filter(free).min_by_key(|one| one.blocked());
        let chosen = best.or_else(|| if more { None } else { any() });
        if let Some(chosen) = chosen {
            return Way::Here(chosen.place());
        }
        if !more {
            return Way::Full(slot.freed.clone());
        }
        if slot.dialling.is_none() {
            slot.dialling = Some(self.clone().open(key.clone(), to.clone()));
        }
        match &slot.dialling {
            Some(dialling) => Way::Dial(dialling.clone()),
            None => Way::Full(slot.freed.clone()), // never: it was put there
        }
    }

    /// Opens a connection, in a task: it goes on when those who asked have gone away.
    fn open(self: Arc<Self>, key: D::Key, to: D::To) -> Dialling {
        let (told, answer) = oneshot::channel();
        tokio::spawn(async move {
            let limit = self.config.connect;
            let opened = timeout(limit, self.connect(&key, &to)).await.unwrap_or_else(|_| {
                let error = Error::new(Kind::Timeout, format!("no connection within {limit:?}"));
                Err(NotOpened { error, stranger: false })
            });
            let mut slots = self.lock();
            if let Some(slot) = slots.get_mut(&key) {
                slot.dialling = None;
                slot.open.extend(opened.as_ref().ok().cloned());
            }
            // Instances come and go: nothing is kept of those that are gone.
            slots.retain(|_, slot| slot.dialling.is_some() || !slot.open.is_empty());
            drop(slots);
            let _nobody_waits = told.send(opened.map(drop));
        });
        let stopping = |_| {
            let error = Error::new(Kind::Unavailable, "not connecting: stopping");
            Err(NotOpened { error, stranger: false })
        };
        answer.map(move |told| told.unwrap_or_else(stopping)).boxed().shared()
    }

    async fn connect(
        self: &Arc<Self>,
        key: &D::Key,
        to: &D::To,
    ) -> std::result::Result<Arc<Connection>, NotOpened> {
        let unreachable = |error| NotOpened { error, stranger: false };
        let stream = self.dial.dial(to).await.map_err(unreachable)?;
        let stream = Bounded::new(stream, self.config.stall);
        let (sender, connection, ping) = begin(stream).await.map_err(NotOpened::strange)?;
        let freed = {
            let mut slots = self.lock();
            slots.entry(key.clone()).or_default().freed.clone()
        };
        let opened = Arc::new(Connection::new(sender, freed));
        let (tell, told) = oneshot::channel();
        let (pool, key, driven) = (Arc::downgrade(self), key.clone(), Arc::downgrade(&opened));
        let idle = driven.clone();
        let end_if_idle = move || pool.upgrade().is_none_or(|pool| pool.end_if_idle(&key, &idle));
        let keep = self.config.keep;
        tokio::spawn(drive(connection, ping, tell, driven, keep, end_if_idle));
        match told.await {
            Ok(()) => Ok(opened),
            Err(_) => Err(NotOpened::strange("it closed the connection")),
        }
    }

    /// Lets a connection end that nothing is on, and says whether there was one to end.
    fn end_if_idle(&self, key: &D::Key, connection: &Weak<Connection>) -> bool {
        let mut slots = self.lock();
        let Some(connection) = connection.upgrade() else { return true };
        let idle = connection.is_idle();
        if idle {
            connection.leave();
            if let Some(slot) = slots.get_mut(key) {
                slot.open.retain(|one| !Arc::ptr_eq(one, &connection));
                if slot.open.is_empty() && slot.dialling.is_none() {
                    slots.remove(key);
                }
            }
        }
        idle
    }
}

impl NotOpened {
    fn strange(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        let error = Error::new(Kind::BadGateway, "the instance does not speak HTTP/2");
        Self { error: error.because(io::Error::other(cause)), stranger: true }
    }
}
