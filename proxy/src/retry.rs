//! Whether a request that failed may be sent once more. One table, so that "at most
//! once" can be read off it.

use http::Method;
use lca::headers::{Failure, Refusal};
use lca_node::h1::Cause;

/// What went wrong with an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Ingress refused it: the application saw nothing.
    Refused(Refusal),
    /// The peer could not be reached: nobody saw anything.
    NotSent,
    /// It stood in our own line for a connection: nobody saw anything, and nothing is
    /// known against anybody.
    Busy,
    /// It was sent, and nothing came back.
    Silent,
    /// It was sent, and what came back was no answer.
    Garbled,
    /// It was sent, and no answer came in time.
    Late,
}

impl Trouble {
    /// Whether this attempt may be followed by another, elsewhere. `whole` says
    /// whether the body could be sent again from its beginning.
    pub(crate) fn allows_another(self, method: &Method, whole: bool) -> bool {
        whole
            && match self {
                Self::Refused(_) | Self::NotSent | Self::Busy => true,
                Self::Silent => is_idempotent(method),
                // A byte of an answer came, or the client has waited long enough.
                Self::Garbled | Self::Late => false,
            }
    }

    /// Whether another attempt after this one is paid for out of the budget: it could go on
    /// failing so for ever. An instance that is gone is not asked twice by anybody.
    pub(crate) const fn costs(self) -> bool {
        match self {
            Self::Refused(Refusal::Overloaded) | Self::Busy | Self::Silent => true,
            Self::Refused(Refusal::Draining | Refusal::Unknown) | Self::NotSent => false,
            // Never followed by another.
            Self::Garbled | Self::Late => true,
        }
    }

    /// The word it is counted under.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.as_str(),
            Self::NotSent => "not-sent",
            Self::Busy => "busy",
            Self::Silent => "silent",
            Self::Garbled => "garbled",
            Self::Late => "late",
        }
    }

    /// What a failed exchange with ingress means; none if it was the request's own
    /// body that failed.
    pub(crate) fn of(cause: Cause) -> Option<Self> {
        match cause {
            Cause::Silent => Some(Self::Silent),
            Cause::Garbled => Some(Self::Garbled),
            Cause::Late => Some(Self::Late),
            Cause::Body => None,
        }
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Silent => Self::Silent,
            Failure::Garbled => Self::Garbled,
            Failure::Late => Self::Late,
        }
    }
}

/// Whether a method may be repeated: RFC 9110, section 9.2.2.
pub(crate) fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Trouble; 8] = [
        Trouble::Refused(Refusal::Draining),
        Trouble::Refused(Refusal::Unknown),
        Trouble::Refused(Refusal::Overloaded),
        Trouble::NotSent,
        Trouble::Busy,
        Trouble::Silent,
        Trouble::Garbled,
        Trouble::Late,
    ];

    #[test]
    fn what_an_application_may_have_seen_is_sent_again_only_if_idempotent_and_unanswered() {
        for trouble in ALL {
            let unseen = matches!(trouble, Trouble::Refused(_) | Trouble::NotSent | Trouble::Busy);
            for method in [Method::POST, Method::PATCH, Method::from_bytes(b"MKCOL").unwrap()] {
                assert_eq!(trouble.allows_another(&method, true), unseen, "{method} {trouble:?}");
            }
            for method in [Method::GET, Method::HEAD, Method::PUT, Method::DELETE] {
                let again = unseen || trouble == Trouble::Silent;
                assert_eq!(trouble.allows_another(&method, true), again, "{method} {trouble:?}");
            }
        }
    }

    #[test]
    fn nothing_is_sent_again_without_its_whole_body() {
        for trouble in ALL {
            assert!(!trouble.allows_another(&Method::GET, false), "{trouble:?}");
        }
    }
}
