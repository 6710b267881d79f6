//! Keeps what we think of our containers true: connects to the engine for as long as the
//! allocator lives, is told by its events what ends, and asks for a list whenever events may
//! have been missed.
//!
//! ```text
//!            no answer: again after 0.25 s .. 5 s
//!          ┌──────────────┐
//!          ▼              │
//!      connecting ────────┘
//!          │ answers
//!          ▼
//!      reconciling ── fails ──► connecting      what has ended meanwhile ends, what nobody
//!          │                                    holds is removed, what is to end is killed
//!          ▼
//!      following ── breaks, or hangs ──► connecting
//! ```

use std::{
    collections::HashMap,
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::{StreamExt as _, future::join_all};
use lca::{Error, InstanceId, Kind, Result};
use lca_engine::{
    Engine,
    bollard::{
        models::{ContainerSummary, ContainerSummaryStateEnum as State, EventMessage},
        query_parameters::{
            EventsOptionsBuilder, InspectContainerOptions, ListContainersOptionsBuilder,
        },
    },
    failed,
};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};

use super::{Inner, found::Found, held::Held, labels};
use crate::driver::Exit;

/// Between two attempts to reach an engine: soon for one that is being restarted, rarely for
/// one that is not there.
const AGAIN: Duration = Duration::from_millis(250);
const AGAIN_AT_MOST: Duration = Duration::from_secs(5);
/// How often the engine is asked for a list although its events say nothing: by this an
/// engine that hangs is noticed, and an event that was lost made good.
const LOOK: Duration = Duration::from_secs(5);
/// How long it may take over that list.
const LOOK_WITHIN: Duration = Duration::from_secs(5);
/// Events are asked for from so long before the list, by a clock that counts in seconds.
const OVERLAP: Duration = Duration::from_secs(2);

/// Watches until it is dropped.
pub(super) async fn watch(inner: Arc<Inner>) {
    let mut pause = AGAIN;
    loop {
        let engine = Engine::connect(&inner.address).await;
        let error = match engine {
            Ok(engine) => {
                let since = Instant::now();
                let error = follow(&inner, &engine).await;
                if since.elapsed() > AGAIN_AT_MOST {
                    pause = AGAIN;
                }
                error
            }
            Err(error) => error,
        };
        let reason = error.chain();
        if inner.link.is_gone(error) {
            tracing::warn!(reason, "the Docker Engine has gone");
        } else {
            // Most machines have none, and nothing is wrong with that.
            tracing::debug!(reason, "there is no Docker Engine");
        }
        sleep(pause).await;
        pause = (pause * 2).min(AGAIN_AT_MOST);
    }
}

/// Goes along with one engine until it breaks off, and says why.
async fn follow(inner: &Inner, engine: &Engine) -> Error {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() - OVERLAP;
    if let Err(error) = reconcile(inner, engine).await {
        return error;
    }
    let about = engine.about();
    tracing::info!(version = about.version, api = about.api, "the Docker Engine answers");
    inner.doubt_bridge().await;
    inner.link.is_there(engine.clone());
    let filters: HashMap<_, _> = [
        ("type".to_owned(), vec!["container".to_owned()]),
        ("event".to_owned(), vec!["die".to_owned(), "destroy".to_owned()]),
        labels::filter(&labels::of_node(inner.node)),
    ]
    .into();
    let options =
        EventsOptionsBuilder::new().since(&since.as_secs().to_string()).filters(&filters).build();
    let mut events = pin!(engine.docker().events(Some(options)));
    let mut look = interval_at(Instant::now() + LOOK, LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let met = tokio::select! {
            event = events.next() => match event {
                Some(Ok(event)) => heard(inner, engine, &event).await,
                Some(Err(error)) => Err(failed("follow the events of the Docker Engine", error)),
                None => Err(Error::new(Kind::Unavailable, "the Docker Engine has hung up")),
            },
            _ = look.tick() => reconcile(inner, engine).await,
            () = inner.look_again.notified() => reconcile(inner, engine).await,
        };
        if let Err(error) = met {
            return error;
        }
    }
}

/// A container of ours has ended, or was removed.
async fn heard(inner: &Inner, engine: &Engine, event: &EventMessage) -> Result<()> {
    let labels = event.actor.as_ref().and_then(|actor| actor.attributes.as_ref());
    let Some(held) = labels::instance(labels).and_then(|id| inner.held_or_starting(id)) else {
        return Ok(());
    };
    match event.action.as_deref() {
        Some("die") => ended(engine, &held).await,
        Some("destroy") => {
            held.end(Exit::Removed);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Finds out how one ended that was said to have.
async fn ended(engine: &Engine, held: &Held) -> Result<()> {
    let name = held.container();
    let said = engine.docker().inspect_container(&name, None::<InspectContainerOptions>);
    match engine.call_within("look at a container", LOOK_WITHIN, said).await {
        Ok(said) => {
            if let Some(exit) = Found::new(&said, &held.allowance).exit {
                held.end(exit);
            }
            Ok(())
        }
        Err(error) if error.kind() == Kind::NotFound => {
            held.end(Exit::Removed);
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Compares what is held with what there is.
pub(super) async fn reconcile(inner: &Inner, engine: &Engine) -> Result<()> {
    // Before the list: what is started after this look is not missing from it.
    let running: Vec<_> = {
        let books = inner.lock();
        books.held.values().filter(|held| held.is_running()).cloned().collect()
    };
    let there = list(engine, &labels::of_node(inner.node)).await?;
    for held in running {
        match there.get(&held.id).and_then(|summary| summary.state) {
            None => held.end(Exit::Removed),
            Some(State::RUNNING | State::PAUSED | State::RESTARTING | State::CREATED) => {
                if held.is_unwanted() {
                    // It was to end while the engine was away.
                    inner.signal(engine, &held, "SIGKILL").await;
                }
            }
            Some(_) => ended(engine, &held).await?,
        }
    }
    let nobodys: Vec<_> = {
        let books = inner.lock();
        let swept = books.swept;
        there.keys().filter(|id| swept && !books.held.contains_key(id)).copied().collect()
    };
    join_all(nobodys.into_iter().map(|id| inner.remove_nobodys(engine, id))).await;
    Ok(())
}

/// The containers that have a label, by instance.
pub(super) async fn list(
    engine: &Engine,
    label: &str,
) -> Result<HashMap<InstanceId, ContainerSummary>> {
    let filters: HashMap<_, _> = [labels::filter(label)].into();
    let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
    let listed = engine.docker().list_containers(Some(options));
    let listed = engine.call_within("list its containers", LOOK_WITHIN, listed).await?;
    let named =
        listed.into_iter().filter_map(|one| Some((labels::instance(one.labels.as_ref())?, one)));
    Ok(named.collect())
}
