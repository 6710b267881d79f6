//! Which side of the soft limit an instance counts as being on. A distance wavers; what
//! follows from it (a search, an allocation, a move) must not.
//!
//! ```text
//!               above soft                    above soft, 2 s after it began
//!          ┌─────────────────► Straying ──────────────────────────────────► Far
//!   Near ──┤                      │                                          │
//!      ▲   └──────────────────────┘                                          │
//!      │   below 0.9 soft, or within soft for 2 s                            │
//!      └─────────────────────────────────────────────────────────────────────┘
//!                          below 0.9 soft, or within soft for 10 s
//! ```
//!
//! Invariant: between two times an instance is left for being too far, its distance has
//! been below 0.9 of the limit, or within the limit for 10 s without a break.

use std::time::Duration;

use tokio::time::Instant;

/// How long it may be above soft before anything is done: two probes, so that a burst on
/// the link is not taken for a journey. Given by the design.
pub(crate) const DWELL: Duration = Duration::from_secs(2);
/// The share of the limit it has to come back below: medians of three waver less than
/// a tenth on a steady link (the test links with 20 % of jitter included).
const BACK: f64 = 0.9;
/// How long within soft counts as being back after having left: five times as long as
/// leaving takes.
const SETTLED: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It is within soft.
    Near,
    /// It has been above soft, and that may pass.
    Straying {
        /// The first time.
        since: Instant,
        /// It is within soft now, since then.
        within: Option<Instant>,
    },
    /// It is too far.
    Far {
        /// It is within soft now, since then.
        within: Option<Instant>,
    },
}

impl Standing {
    /// What an instance at `rtt` that nobody has looked at before is.
    pub(crate) fn first(rtt: Duration, soft: Duration, now: Instant) -> Self {
        if rtt <= soft { Self::Near } else { Self::Straying { since: now, within: None } }
    }

    /// What it is after it was seen at `rtt`.
    #[must_use]
    pub(crate) fn seen(self, rtt: Duration, soft: Duration, now: Instant) -> Self {
        let still = |within: Option<Instant>| (rtt <= soft).then(|| within.unwrap_or(now));
        let lasts = |within: Option<Instant>, long| {
            within.is_some_and(|since| now.duration_since(since) >= long)
        };
        if rtt <= soft.mul_f64(BACK) {
            return Self::Near;
        }
        match self {
            Self::Near => Self::first(rtt, soft, now),
            Self::Straying { since, within } => match still(within) {
                None if now.duration_since(since) >= DWELL => Self::Far { within: None },
                within if lasts(within, DWELL) => Self::Near,
                within => Self::Straying { since, within },
            },
            Self::Far { within } => match still(within) {
                within if lasts(within, SETTLED) => Self::Near,
                within => Self::Far { within },
            },
        }
    }

    /// Whether it may be moved to.
    pub(crate) fn is_near(self) -> bool {
        matches!(self, Self::Near)
    }

    /// Whether one that is used has to be left.
    pub(crate) fn is_far(self) -> bool {
        matches!(self, Self::Far { .. })
    }
}
