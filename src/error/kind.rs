//! What kinds of failure there are, and the one table from each to its gRPC code, its HTTP
//! status and its word. Nobody else in the project names a status code for a failure of
//! ours.

use http::StatusCode;
use tonic::Code;

/// What a caller can do about a failure. Add a kind only when some caller would
/// branch on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request can never succeed as it is.
    InvalidArgument,
    /// The request is for an authority that is not ours (DNS rebinding).
    Misdirected,
    /// The method or protocol is not served here.
    NotAllowed,
    /// The target of a request is longer than is read.
    TargetTooLong,
    /// The body of a request is longer than its service takes.
    TooLarge,
    /// The client expects of us what we do not know.
    Unexpected,
    /// There is nothing of that name.
    NotFound,
    /// It exists already with another content, or was changed by somebody else.
    Conflict,
    /// The caller did not say who it is. Only gRPC over TCP answers so: the mesh and the
    /// unix socket know who calls.
    Unauthenticated,
    /// The caller may not do this.
    PermissionDenied,
    /// Something must be done first.
    FailedPrecondition,
    /// This machine has not got what it takes; another may have it.
    NotHere,
    /// A program could not be started or did not get ready.
    StartFailed,
    /// No room, a limit is reached.
    NoCapacity,
    /// The request went through this very node before.
    Loop,
    /// It took longer than allowed.
    Timeout,
    /// The client was too slow with its request.
    TooSlow,
    /// Nobody who could do it can be reached now; nothing was done.
    Unavailable,
    /// The application broke off or answered what is not HTTP; it may have acted.
    BadGateway,
    /// A defect of ours.
    Internal,
}

impl Kind {
    /// All of them, for tables and tests.
    pub const ALL: [Self; 20] = [
        Self::InvalidArgument,
        Self::Misdirected,
        Self::NotAllowed,
        Self::TargetTooLong,
        Self::TooLarge,
        Self::Unexpected,
        Self::NotFound,
        Self::Conflict,
        Self::Unauthenticated,
        Self::PermissionDenied,
        Self::FailedPrecondition,
        Self::NotHere,
        Self::StartFailed,
        Self::NoCapacity,
        Self::Loop,
        Self::Timeout,
        Self::TooSlow,
        Self::Unavailable,
        Self::BadGateway,
        Self::Internal,
    ];

    /// The one table. A new kind does not compile until its row is written.
    const fn row(self) -> (Code, StatusCode, &'static str) {
        match self {
            Self::InvalidArgument => {
                (Code::InvalidArgument, StatusCode::BAD_REQUEST, "invalid-argument")
            }
            Self::Misdirected => {
                (Code::InvalidArgument, StatusCode::MISDIRECTED_REQUEST, "misdirected")
            }
            Self::NotAllowed => {
                (Code::Unimplemented, StatusCode::METHOD_NOT_ALLOWED, "not-allowed")
            }
            Self::TargetTooLong => {
                (Code::InvalidArgument, StatusCode::URI_TOO_LONG, "target-too-long")
            }
            Self::TooLarge => (Code::OutOfRange, StatusCode::PAYLOAD_TOO_LARGE, "too-large"),
            Self::Unexpected => {
                (Code::InvalidArgument, StatusCode::EXPECTATION_FAILED, "unexpected")
            }
            Self::NotFound => (Code::NotFound, StatusCode::NOT_FOUND, "not-found"),
            Self::Conflict => (Code::AlreadyExists, StatusCode::CONFLICT, "conflict"),
            Self::Unauthenticated => {
                (Code::Unauthenticated, StatusCode::UNAUTHORIZED, "unauthenticated")
            }
            Self::PermissionDenied => {
                (Code::PermissionDenied, StatusCode::FORBIDDEN, "permission-denied")
            }
            Self::FailedPrecondition => {
                (Code::FailedPrecondition, StatusCode::CONFLICT, "failed-precondition")
            }
            Self::NotHere => {
                (Code::FailedPrecondition, StatusCode::SERVICE_UNAVAILABLE, "not-here")
            }
            Self::StartFailed => {
                (Code::FailedPrecondition, StatusCode::SERVICE_UNAVAILABLE, "start-failed")
            }
            Self::NoCapacity => {
                (Code::ResourceExhausted, StatusCode::SERVICE_UNAVAILABLE, "no-capacity")
            }
            Self::Loop => (Code::FailedPrecondition, StatusCode::LOOP_DETECTED, "loop"),
            Self::Timeout => (Code::DeadlineExceeded, StatusCode::GATEWAY_TIMEOUT, "timeout"),
            Self::TooSlow => (Code::DeadlineExceeded, StatusCode::REQUEST_TIMEOUT, "too-slow"),
            Self::Unavailable => {
                (Code::Unavailable, StatusCode::SERVICE_UNAVAILABLE, "unavailable")
            }
            Self::BadGateway => (Code::Unavailable, StatusCode::BAD_GATEWAY, "bad-gateway"),
            Self::Internal => (Code::Internal, StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        }
    }

    /// The stable word for it: `ErrorInfo.reason`, the end of the problem type, the
    /// label in metrics.
    pub const fn slug(self) -> &'static str {
        self.row().2
    }

    /// The HTTP status it is answered with.
    pub(super) const fn http_status(self) -> StatusCode {
        self.row().1
    }

    /// The gRPC code it is answered with.
    pub(super) const fn grpc_code(self) -> Code {
        self.row().0
    }

    pub(super) fn from_slug(slug: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.slug() == slug)
    }

    /// The kind of a status that does not come from us.
    pub(super) fn from_code(code: Code) -> Self {
        match code {
            // Given up before its end, by tonic's own timer on our side among others:
            // whether it acted is not known, as after a time-out.
            Code::DeadlineExceeded | Code::Cancelled => Self::Timeout,
            Code::Unavailable => Self::Unavailable,
            // Whoever answered does not know either. A connection that failed below gRPC
            // is told apart before.
            Code::Unknown | Code::Internal | Code::DataLoss | Code::Ok => Self::Internal,
            Code::OutOfRange => Self::NoCapacity,
            Code::Aborted => Self::Conflict,
            code => Self::ALL
                .into_iter()
                .find(|kind| kind.grpc_code() == code)
                .unwrap_or(Self::Internal),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slugs_are_unique() {
        let mut slugs: Vec<_> = Kind::ALL.iter().map(|kind| kind.slug()).collect();
        slugs.sort_unstable();
        slugs.dedup();
        assert_eq!(slugs.len(), Kind::ALL.len());
    }
}
