//! Reading what an instance writes, from where a person wants to begin, to its present end
//! or along with it as it grows.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use lca::{Error, Kind, Result};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    Begin, Output, blocking,
    watch::{Held, Life},
};

/// How often a follower looks for more output: at a person's pace.
const FOLLOW: Duration = Duration::from_millis(100);
/// How long a line that is being written may take to be finished before it is shown as
/// it is, and how often to look.
const UNFINISHED: Duration = Duration::from_millis(100);
const UNFINISHED_LOOK: Duration = Duration::from_millis(2);

/// An output that is being read.
struct Reading {
    held: Arc<Held>,
    position: u64,
    /// Where to stop: what came later is not asked for.
    until: u64,
    /// Whoever follows goes on until this says that it has ended.
    follow: Option<watch::Receiver<Life>>,
}

/// What `held` has written and, with `follow`, what it goes on to write until it ends.
///
/// # Errors
/// [`Kind::Internal`] if the file cannot be read.
pub(super) async fn read(held: Arc<Held>, from: Begin, follow: bool) -> Result<Output> {
    read_within(held, from, follow, UNFINISHED).await
}

/// The same, where the last line has so long to be finished.
pub(super) async fn read_within(
    held: Arc<Held>,
    from: Begin,
    follow: bool,
    unfinished: Duration,
) -> Result<Output> {
    let whole = whole_lines(&held, from, follow, unfinished);
    let (position, end) = whole.await.map_err(unreadable)?;
    let follow = follow.then(|| held.life());
    let until = if follow.is_some() { u64::MAX } else { end };
    let reading = Reading { held, position, until, follow };
    Ok(stream::unfold(Some(reading), read_next).boxed())
}

/// Where reading `from` begins and the present end. Programs write a line in
/// pieces: one that is being written has a moment to be finished, so that the last
/// line is a whole one. One that has no end, such as a prompt, is given as it is.
async fn whole_lines(
    held: &Arc<Held>,
    from: Begin,
    follow: bool,
    unfinished: Duration,
) -> io::Result<(u64, u64)> {
    let reader = held.clone();
    let (begin, end) = blocking(move || reader.output.span(from)).await?;
    let deadline = Instant::now() + unfinished;
    loop {
        let running = held.is_running();
        let reader = held.clone();
        if let Some(end) = blocking(move || reader.output.line_end(end)).await? {
            return Ok((begin, end));
        }
        if follow || !running || Instant::now() >= deadline {
            return Ok((begin, end));
        }
        sleep(UNFINISHED_LOOK).await;
    }
}

/// The next piece of an output, and where to go on.
async fn read_next(reading: Option<Reading>) -> Option<(Result<Bytes>, Option<Reading>)> {
    let Reading { held, position, until, follow } = reading?;
    if position >= until {
        return None;
    }
    loop {
        // Looked at before the read: what was written before the end is then read.
        let ended = follow.as_ref().is_none_or(|life| matches!(*life.borrow(), Life::Gone(_)));
        let reader = held.clone();
        match blocking(move || reader.output.read(position)).await {
            Ok((bytes, _)) if bytes.is_empty() && ended => return None,
            Ok((bytes, _)) if bytes.is_empty() => sleep_or_end(follow.clone()).await,
            Ok((mut bytes, next)) => {
                // Rotation may have moved us past what was asked for.
                let begin = next - bytes.len() as u64;
                bytes.truncate(usize::try_from(until.saturating_sub(begin)).unwrap_or(usize::MAX));
                if bytes.is_empty() {
                    return None;
                }
                let rest = Reading { held, position: next, until, follow };
                return Some((Ok(bytes.into()), Some(rest)));
            }
            Err(error) => return Some((Err(unreadable(error)), None)),
        }
    }
}

async fn sleep_or_end(follow: Option<watch::Receiver<Life>>) {
    let Some(mut life) = follow else { return };
    let gone = life.wait_for(|life| matches!(life, Life::Gone(_)));
    drop(timeout(FOLLOW, gone).await);
}

fn unreadable(error: io::Error) -> Error {
    Error::new(Kind::Internal, "the output of the instance cannot be read").because(error)
}
