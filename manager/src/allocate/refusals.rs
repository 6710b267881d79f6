//! Why nobody would: what each allocator said, as one answer.

use std::time::Duration;

use lca::{Error, Kind, PeerId, Requirements};

use super::{Order, RETRY_AFTER};
use crate::policy::Offer;

/// Allocators named in one refusal, and characters kept of what each said: enough to
/// see why, and still a header block.
const MAX_REASONS: usize = 8;
const MAX_REASON: usize = 160;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    said: Vec<(PeerId, Error)>,
    nearest_too_far: Option<(Duration, PeerId)>,
    /// What would be the same everywhere, or the one that did not answer at all.
    last_word: Option<Error>,
}

impl Refusals {
    pub(super) fn add(&mut self, peer: PeerId, error: Error) {
        self.said.push((peer, error));
    }

    /// An error that says more than all refusals together. The first that is no time-out
    /// counts: the program says more about itself than somebody's silence.
    pub(super) fn last_word(&mut self, error: Error) {
        let silence = |error: &Error| error.kind() == Kind::Timeout;
        if self.last_word.as_ref().is_none_or(|before| silence(before) && !silence(&error)) {
            self.last_word = Some(error);
        }
    }

    pub(super) fn too_far(&mut self, offers: &[Offer], limits: &Requirements) {
        let far = offers.iter().filter(|offer| !limits.within_hard(offer.rtt));
        let far = far.map(|offer| (offer.rtt, offer.peer)).min();
        self.nearest_too_far = self.nearest_too_far.into_iter().chain(far).min();
    }

    pub(super) fn into_error(self, order: &Order) -> Error {
        let Self { said, nearest_too_far, last_word } = self;
        if let Some(error) = last_word {
            return error;
        }
        let full = said.iter().any(|(_, error)| error.kind() == Kind::NoCapacity);
        let retry_after = said.iter().filter_map(|(_, error)| error.retry_delay()).min();
        let (kind, what) = if full {
            (Kind::NoCapacity, "no allocator has room for")
        } else if said.is_empty() {
            (Kind::Unavailable, "no allocator is near enough for")
        } else {
            (Kind::Unavailable, "no allocator can start")
        };
        let mut reasons: Vec<_> = said
            .iter()
            .take(MAX_REASONS)
            .map(|(peer, error)| {
                let reason: String = error.public().chars().take(MAX_REASON).collect();
                format!("{}: {reason}", peer.short())
            })
            .collect();
        if said.len() > MAX_REASONS {
            reasons.push(format!("and {} more", said.len() - MAX_REASONS));
        }
        if let (Some((rtt, peer)), Some(hard)) = (nearest_too_far, order.limits.hard) {
            reasons.push(format!(
                "{}: {rtt:.1?} away, the nearest beyond the hard limit of {hard:?}",
                peer.short()
            ));
        }
        Error::new(kind, format!("{what} {}: {}", order.name, reasons.join("; ")))
            .retry_after(retry_after.unwrap_or(RETRY_AFTER))
    }
}
