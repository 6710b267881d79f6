//! What the engine's failures mean to our callers: one place where they are translated.

use std::{error::Error as StdError, io};

use bollard::errors::Error as Bollard;
use lca::{Error, Kind};

/// Most characters of what the engine said that are passed on: a sentence or two.
const MAX_SAID: usize = 400;

/// What became of an attempt to `what`, as in "cannot create a container: ...". The engine's
/// own words are part of the sentence: they name images, containers and limits, never a
/// secret.
///
/// [`Kind::NotFound`], [`Kind::Conflict`], [`Kind::InvalidArgument`] and
/// [`Kind::PermissionDenied`] as the engine says; [`Kind::Unavailable`] if it cannot be
/// reached or breaks off; [`Kind::Internal`] for what it calls an error of its own.
pub fn failed(what: &str, error: Bollard) -> Error {
    let (kind, said) = match &error {
        Bollard::DockerResponseServerError { status_code, message } => {
            (of_status(*status_code), plain(message))
        }
        Bollard::DockerStreamError { error } => (Kind::Internal, plain(error)),
        Bollard::RequestTimeoutError => (Kind::Unavailable, "it does not answer".to_owned()),
        other => match io_kind(other) {
            Some(io::ErrorKind::PermissionDenied) => {
                return Error::new(
                    Kind::Unavailable,
                    format!("cannot {what}: this user may not use the Docker Engine"),
                )
                .because(error)
                .hint("put the user into the group `docker`, which is as good as making it root");
            }
            Some(io::ErrorKind::NotFound) => {
                (Kind::Unavailable, "there is no such socket".to_owned())
            }
            Some(io::ErrorKind::ConnectionRefused) => {
                (Kind::Unavailable, "nobody listens there".to_owned())
            }
            Some(_) => (Kind::Unavailable, "the Docker Engine broke off".to_owned()),
            None => (
                Kind::Internal,
                format!("the Docker Engine answered oddly: {}", plain(&other.to_string())),
            ),
        },
    };
    Error::new(kind, format!("cannot {what}: {said}")).because(error)
}

const fn of_status(status: u16) -> Kind {
    match status {
        400 => Kind::InvalidArgument,
        401 | 403 => Kind::PermissionDenied,
        404 => Kind::NotFound,
        409 => Kind::Conflict,
        503 => Kind::Unavailable,
        _ => Kind::Internal,
    }
}

/// The system's reason under a failure of the connection. Without one of the system's, a
/// connection that broke off counts as such.
fn io_kind(error: &Bollard) -> Option<io::ErrorKind> {
    if let Bollard::IOError { err } = error {
        return Some(err.kind()); // transparent: it is not its own source
    }
    let broke =
        matches!(error, Bollard::HyperLegacyError { .. } | Bollard::HyperResponseError { .. });
    if matches!(error, Bollard::SocketNotFoundError(_)) {
        return Some(io::ErrorKind::NotFound);
    }
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(cause) = next {
        if let Some(error) = cause.downcast_ref::<io::Error>() {
            return Some(error.kind());
        }
        next = cause.source();
    }
    broke.then_some(io::ErrorKind::BrokenPipe)
}

/// What somebody else said, as one line fit for a terminal, and not too long.
pub(crate) fn plain(said: &str) -> String {
    let words = said.split_whitespace().collect::<Vec<_>>().join(" ");
    let clean = words.chars().filter(|c| !c.is_control());
    let mut text: String = clean.clone().take(MAX_SAID).collect();
    if clean.count() > MAX_SAID {
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engines_words_are_kept_to_a_line() {
        assert_eq!(plain("no such\n image:\t\u{1b}[31mx"), "no such image: [31mx");
        let long = plain(&"é".repeat(1000));
        assert_eq!(long.chars().count(), MAX_SAID + 3);
    }

    #[test]
    fn each_failure_has_the_kind_a_caller_branches_on() {
        let said = |status_code| Bollard::DockerResponseServerError {
            status_code,
            message: "the reason".into(),
        };
        for (status, kind) in [
            (404, Kind::NotFound),
            (409, Kind::Conflict),
            (403, Kind::PermissionDenied),
            (500, Kind::Internal),
            (503, Kind::Unavailable),
        ] {
            let error = failed("start it", said(status));
            assert_eq!((error.kind(), error.public()), (kind, "cannot start it: the reason"));
        }
        let refused = Bollard::IOError { err: io::ErrorKind::ConnectionRefused.into() };
        assert_eq!(failed("start it", refused).kind(), Kind::Unavailable);
        let denied = Bollard::IOError { err: io::ErrorKind::PermissionDenied.into() };
        assert!(failed("start it", denied).hint_text().unwrap().contains("group"));
    }
}
