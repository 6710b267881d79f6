//! What the machine is out of. A program that could not be started for it is not to
//! blame: another allocator may have what it takes, and so may this one in a moment.

use std::{io, time::Duration};

use lca::{Error, Kind, ServiceName};
use rustix::io::Errno;

use super::spawn::Failed;

/// Until it may be tried again here: instances end, and caches are written, in seconds.
const AGAIN: Duration = Duration::from_secs(1);

/// Why `service` could not be executed: [`Kind::NoCapacity`] with what the machine is
/// short of, else [`Kind::StartFailed`].
pub(super) fn blame(service: &ServiceName, failed: Failed) -> Error {
    let error = match failed {
        Failed::Program(error) => error,
        Failed::Confining(what, error) => {
            let reason = format!("{service} cannot be confined on this machine: {what}");
            return Error::new(Kind::NoCapacity, reason).because(error).retry_after(AGAIN);
        }
    };
    if let Some(short) = short_of(&error) {
        let reason = format!("{service} cannot be started on this machine: {short}");
        return Error::new(Kind::NoCapacity, reason).because(error).retry_after(AGAIN);
    }
    let reason = format!("{service} cannot be executed: {}", sentence(&error));
    Error::new(Kind::StartFailed, reason).because(error)
}

fn short_of(error: &io::Error) -> Option<&'static str> {
    Some(match Errno::from_raw_os_error(error.raw_os_error()?) {
        Errno::MFILE => "the allocator has no file descriptor left",
        Errno::NFILE => "no file descriptor is left",
        Errno::NOMEM => "no memory is left",
        Errno::AGAIN => "no process is left",
        Errno::NOSPC => "the disk is full",
        Errno::DQUOT => "the disk quota is used up",
        Errno::ROFS => "the disk can only be read",
        Errno::IO => "the disk fails",
        _ => return None,
    })
}

/// Why a program cannot be executed, for people who do not know errno.
fn sentence(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOEXEC) => {
            "it is neither a program for this machine nor a script that names its interpreter"
                .into()
        }
        Some(Errno::NOENT) => "it, or the interpreter it names, does not exist".into(),
        Some(Errno::ACCESS) => "permission denied".into(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_is_blamed_only_for_what_is_its_own() {
        let kind = |errno: Errno| {
            let error = blame(&"hello".parse().unwrap(), Failed::Program(errno.into()));
            assert!(error.public().starts_with("hello cannot be "), "{error}");
            error.kind()
        };
        let machine = [
            Errno::MFILE,
            Errno::NFILE,
            Errno::NOMEM,
            Errno::AGAIN,
            Errno::NOSPC,
            Errno::DQUOT,
            Errno::ROFS,
            Errno::IO,
        ];
        machine.into_iter().for_each(|errno| assert_eq!(kind(errno), Kind::NoCapacity, "{errno}"));
        let confining = Failed::Confining("its group is gone", Errno::NOENT.into());
        let error = blame(&"hello".parse().unwrap(), confining);
        assert_eq!(error.kind(), Kind::NoCapacity);
        assert!(error.public().ends_with("confined on this machine: its group is gone"), "{error}");
        for errno in [Errno::NOEXEC, Errno::NOENT, Errno::ACCESS, Errno::TOOBIG] {
            assert_eq!(kind(errno), Kind::StartFailed, "{errno}");
        }
    }
}
