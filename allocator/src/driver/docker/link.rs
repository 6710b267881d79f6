//! The engine, which comes and goes: what everybody asks who needs it.

use std::time::Duration;

use lca::{Error, Kind, Result};
use lca_engine::Engine;
use tokio::{sync::watch, time::timeout};

/// How the engine was found when it was last looked for.
#[derive(Clone, Debug)]
enum Standing {
    /// It has not been looked for yet.
    Unknown,
    There(Engine),
    Gone(Error),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Link(watch::Sender<Standing>);

impl Link {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(Standing::Unknown))
    }

    /// It answers, and what it says of our containers is known.
    pub(super) fn is_there(&self, engine: Engine) {
        self.0.send_replace(Standing::There(engine));
    }

    /// It does not answer, for this reason. True if it did before.
    pub(super) fn is_gone(&self, reason: Error) -> bool {
        matches!(self.0.send_replace(Standing::Gone(reason)), Standing::There(_))
    }

    /// The engine.
    ///
    /// # Errors
    /// [`Kind::NotHere`] with the reason if it does not answer.
    pub(super) fn engine(&self) -> Result<Engine> {
        match &*self.0.borrow() {
            Standing::There(engine) => Ok(engine.clone()),
            Standing::Unknown => Err(Error::new(Kind::NotHere, "the Docker Engine is looked for")),
            Standing::Gone(reason) => Err(not_here(reason)),
        }
    }

    /// Waits until it has been looked for, `patience` at most.
    pub(super) async fn settled(&self, patience: Duration) {
        let mut standing = self.0.subscribe();
        let known = standing.wait_for(|standing| !matches!(standing, Standing::Unknown));
        drop(timeout(patience, known).await);
    }

    /// Resolves with the reason once it does not answer.
    pub(super) async fn lost(&self) -> Error {
        let mut standing = self.0.subscribe();
        let lost = standing.wait_for(|standing| matches!(standing, Standing::Gone(_))).await;
        match lost.as_deref() {
            Ok(Standing::Gone(reason)) => reason.clone(),
            // Cannot be: the sender is ours.
            _ => Error::new(Kind::Unavailable, "the Docker Engine is not watched any more"),
        }
    }
}

fn not_here(reason: &Error) -> Error {
    let hint = reason.hint_text().map(str::to_owned);
    let error = Error::new(Kind::NotHere, reason.public());
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}
