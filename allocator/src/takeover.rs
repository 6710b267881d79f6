//! Finds again what an earlier run left: instances that run on, instances that ended
//! meanwhile, and calls that were answered.
//!
//! ```text
//! remembered as   its process        becomes
//! live            runs               Starting: asked for readiness, then Ready as before
//! live            has ended          Failed: ended while nobody watched
//! live            never recorded     Failed; swept, if it was started after all
//! ending          runs               asked to end, as it was
//! stopped, failed                    what it was, with its output
//! nothing         names our node     swept
//! nothing         names another      left alone, and named in the log
//! ```
//!
//! Before this is over nothing is started, so nothing can be started twice.

use std::sync::Arc;

use futures::{FutureExt as _, future::join_all};
use tokio::time::Instant;

use crate::{
    driver::{Driver, Exit, Started, last_lines},
    instance,
    ledger::{Left, Phase, Record, since_wall, wall_ms},
    lifecycle::State,
    supervisor::Supervisor,
    table::{Ask, Entry},
};

/// Takes over what `left` says. Instances that run are being taken up when it returns.
pub(crate) async fn take_over(supervisor: &Arc<Supervisor>, left: Left) {
    let Left { mut records, calls } = left;
    // Ended ones in the order of their ends: the oldest are forgotten first.
    records.sort_by_key(|record| (record.ended_ms, record.admitted_ms));
    let found = join_all(records.into_iter().map(|record| find(supervisor, record))).await;
    supervisor.drivers.sweep(supervisor.discovery.own().peer).await;
    let mut taken = Vec::new();
    let mut ended = 0;
    for found in found {
        match found {
            Found::Running(entry, driver, record) => taken.push((entry, driver, record)),
            Found::Ended(entry) => {
                ended += 1;
                remember_ended(supervisor, entry).await;
            }
        }
    }
    {
        let mut books = supervisor.lock();
        taken.iter().for_each(|(entry, ..)| books.table.insert(entry.clone()));
        for call in calls {
            let at = since_wall(call.at_ms);
            books.requests.record(call.caller, &call.id, call.wanted, call.instance, at);
        }
    }
    if !taken.is_empty() || ended > 0 {
        tracing::info!(running = taken.len(), ended, "took over what an earlier run left");
    }
    for (entry, driver, record) in taken {
        instance::resume(supervisor.clone(), entry, driver, *record);
    }
}

/// What became of a remembered instance.
enum Found {
    Running(Arc<Entry>, Arc<dyn Driver>, Box<Record>),
    Ended(Arc<Entry>),
}

async fn find(supervisor: &Supervisor, record: Record) -> Found {
    let admitted = since_wall(record.admitted_ms);
    let id = record.instance;
    let entry = Arc::new(Entry::restored(id, record.spec.clone(), admitted));
    entry.view.send_modify(|view| view.pid = record.started.pid);
    let adopted = match supervisor.drivers.of(&record.spec.runs) {
        Ok(driver) => {
            let runs = driver.adopt(id, record.started, record.spec.allowance).await;
            runs.map(|runs| (driver.clone(), runs))
        }
        Err(error) => Err(error),
    };
    let (driver, runs) = match adopted {
        Ok((driver, runs)) => (Some(driver), runs),
        Err(error) => {
            tracing::debug!(instance = %id, error = error.chain(), "nothing to take over");
            (None, false)
        }
    };
    let ended = |state: State, reason: String, output: Vec<String>| {
        entry.view.send_modify(|view| {
            view.state = state;
            view.reason = reason;
            view.output = output;
        });
        Found::Ended(entry.clone())
    };
    match (record.phase, driver) {
        // What a stopped one may have left running is swept: it is not held as running.
        (Phase::Stopped, _) => ended(State::Stopped, record.reason, record.output),
        (Phase::Failed, _) => ended(State::Failed, record.reason, record.output),
        (Phase::Live | Phase::Ending, Some(driver)) if runs => {
            if record.phase == Phase::Ending {
                entry.ask(Ask::Release);
            }
            Found::Running(entry, driver, Box::new(record))
        }
        (Phase::Live | Phase::Ending, driver) => {
            let how = match &driver {
                Some(driver) => driver.wait(id).now_or_never().and_then(Result::ok),
                None => None,
            };
            let reason = match (record.started == Started::default(), how) {
                (true, _) => "the allocator was killed while it was being started".to_owned(),
                (false, None | Some(Exit::Unwatched)) => "ended while nobody watched".to_owned(),
                // A driver may know what nobody saw.
                (false, Some(exit)) => format!("{exit}, while nobody watched"),
            };
            let state = match record.phase {
                Phase::Ending => State::Stopped,
                _ => State::Failed,
            };
            let output = match driver {
                Some(driver) => last_lines(&*driver, id, instance::LAST_LINES).await,
                None => Vec::new(),
            };
            tracing::warn!(service = %entry.spec.name, instance = %id, reason, "instance failed");
            let record = Record {
                phase: if state == State::Stopped { Phase::Stopped } else { Phase::Failed },
                reason: reason.clone(),
                output: output.clone(),
                ended_ms: wall_ms(Instant::now()),
                ..record
            };
            supervisor.ledger.page().write(record).done().await;
            ended(state, reason, output)
        }
    }
}

async fn remember_ended(supervisor: &Supervisor, entry: Arc<Entry>) {
    let id = entry.id;
    let forgotten = {
        let mut books = supervisor.lock();
        books.table.insert(entry);
        books.table.end(id)
    };
    if let Some(forgotten) = forgotten {
        supervisor.forget(forgotten).await;
    }
}
