//! The end of all containers where nobody can wait: called while a daemon is dropped, when
//! its runtime may be gone.

use std::{sync::Arc, thread, time::Duration};

use futures::future::join_all;
use lca::Kind;
use lca_engine::{
    Engine,
    bollard::query_parameters::{InspectContainerOptions, RemoveContainerOptionsBuilder},
};
use tokio::time::{sleep, timeout};

use super::{Inner, found::Found, held::Held};
use crate::driver::Exit;

/// Longest it may take: an engine kills a container within tens of milliseconds, and the
/// whole of a stop has seconds.
const WITHIN: Duration = Duration::from_secs(3);
/// How often it is looked whether one has ended.
const LOOK: Duration = Duration::from_millis(5);

/// Kills what runs, removes what is being started, and starts nothing any more. Blocks.
pub(super) fn all(inner: &Arc<Inner>) {
    let left: Vec<_> = {
        let mut books = inner.lock();
        books.killed = true;
        books.held.values().filter(|held| held.exit().is_none()).cloned().collect()
    };
    if left.is_empty() || inner.link.engine().is_err() {
        return;
    }
    tracing::warn!(containers = left.len(), "killing what runs");
    let inner = inner.clone();
    // A runtime cannot be entered from within another, nor one that is going be used.
    let killing = thread::Builder::new().name("kill containers".into()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // By a connection of this runtime: nobody may be left to move those of another.
        let all = async {
            let engine = Engine::connect(&inner.address).await?;
            join_all(left.iter().map(|held| end(&inner, &engine, held))).await;
            Ok::<_, lca::Error>(())
        };
        let in_time = runtime.block_on(async { matches!(timeout(WITHIN, all).await, Ok(Ok(()))) });
        if !in_time {
            tracing::error!(
                "the Docker Engine has not killed all in {WITHIN:?}; the next start does"
            );
        }
        Ok::<_, std::io::Error>(())
    });
    if let Ok(killing) = killing {
        let _ended_in_time = killing.join();
    }
}

async fn end(inner: &Inner, engine: &Engine, held: &Held) {
    held.unwant();
    let name = held.container();
    if held.is_starting() {
        // Whoever waits for it is told that nothing is started any more.
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        let removed = engine.docker().remove_container(&name, Some(options));
        let _not_there_yet = engine.call("remove a container", removed).await;
        return;
    }
    inner.signal(engine, held, "SIGKILL").await;
    loop {
        let said = engine.docker().inspect_container(&name, None::<InspectContainerOptions>);
        match engine.call("look at a container", said).await {
            Ok(said) => {
                if let Some(exit) = Found::new(&said, &held.allowance).exit {
                    return held.end(exit);
                }
            }
            Err(error) if error.kind() == Kind::NotFound => return held.end(Exit::Removed),
            // An engine that does not say may still run it: asked again, as long as there is time.
            Err(_) => {}
        }
        sleep(LOOK).await;
    }
}
