//! How our programs end, the same for `lcactl` and the daemons: scripts and service
//! managers branch on it, so a number never changes its meaning.

use std::process::ExitCode;

use crate::Kind;

/// How a program ends. What each means is said in its `--help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Success = 0,
    /// A defect of ours, or a full disk.
    Other = 1,
    /// The command line or a file is wrong.
    Usage = 2,
    /// There is nothing of that name.
    NotFound = 3,
    /// Nobody answered, or not everything is serving.
    Unavailable = 4,
    /// It was understood and refused.
    Refused = 5,
    /// Ctrl-C; 128 and the number of the signal, as shells have it.
    Interrupted = 130,
}

impl Exit {
    /// The one table from what went wrong to the exit code.
    pub const fn of(kind: Kind) -> Self {
        match kind {
            Kind::Internal | Kind::BadGateway | Kind::Loop => Self::Other,
            Kind::InvalidArgument
            | Kind::Misdirected
            | Kind::NotAllowed
            | Kind::TargetTooLong
            | Kind::TooLarge
            | Kind::Unexpected => Self::Usage,
            Kind::NotFound => Self::NotFound,
            Kind::Unavailable | Kind::Timeout | Kind::TooSlow => Self::Unavailable,
            Kind::Conflict
            | Kind::FailedPrecondition
            | Kind::NotHere
            | Kind::NoCapacity
            | Kind::StartFailed
            | Kind::PermissionDenied
            | Kind::Unauthenticated => Self::Refused,
        }
    }

    /// The number a shell sees.
    pub const fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
