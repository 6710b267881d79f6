//! Where the engine is: what `DOCKER_HOST` says, as far as it is a way we go.

use std::{fmt, path::PathBuf, str::FromStr};

use lca::{Error, Kind, Result};

/// The variable by which Docker's own programs find the engine.
pub const DOCKER_HOST: &str = "DOCKER_HOST";
/// Where an engine listens that nobody has told otherwise.
const DEFAULT: &str = "/var/run/docker.sock";

/// Where an engine listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A unix socket on this machine.
    Unix(PathBuf),
    /// `HOST:PORT`, in plaintext.
    Tcp(String),
}

impl Address {
    /// What `DOCKER_HOST` says, or the usual socket where it is unset or empty.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] naming the variable if it says what we cannot reach.
    pub fn of_the_environment() -> Result<Self> {
        Self::choose(std::env::var(DOCKER_HOST).ok().as_deref())
    }

    /// The same from the text of the variable.
    ///
    /// # Errors
    /// As [`of_the_environment`](Self::of_the_environment).
    pub fn choose(said: Option<&str>) -> Result<Self> {
        match said {
            None | Some("") => Ok(Self::Unix(DEFAULT.into())),
            Some(text) => text.parse().map_err(|reason: String| {
                Error::new(Kind::InvalidArgument, format!("{DOCKER_HOST} is {text:?}: {reason}"))
                    .hint("unset it for the engine of this machine")
            }),
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix://") {
            return match path.starts_with('/') {
                true => Ok(Self::Unix(path.into())),
                false => Err("the path of the socket must begin with /".into()),
            };
        }
        let host = text.strip_prefix("tcp://").or_else(|| text.strip_prefix("http://"));
        let Some(host) = host else {
            return Err("only unix:///PATH and tcp://HOST:PORT are known here".into());
        };
        let host = host.trim_end_matches('/');
        let port = host.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        let plain = host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b));
        match port {
            Some(1..) if plain => Ok(Self::Tcp(host.to_owned())),
            _ => Err("it must name a host and a port, as in tcp://127.0.0.1:2375".into()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(host) => write!(f, "tcp://{host}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_read_as_docker_reads_it() {
        for (said, address) in [
            (None, "unix:///var/run/docker.sock"),
            (Some(""), "unix:///var/run/docker.sock"),
            (Some("unix:///run/user/1000/docker.sock"), "unix:///run/user/1000/docker.sock"),
            (Some("tcp://127.0.0.1:2375"), "tcp://127.0.0.1:2375"),
            (Some("http://[::1]:2375/"), "tcp://[::1]:2375"),
        ] {
            assert_eq!(Address::choose(said).unwrap().to_string(), address);
        }
        for said in ["ssh://host", "unix://docker.sock", "tcp://host", "tcp://a b:1", "tcp://h:0"] {
            let error = Address::choose(Some(said)).expect_err(said);
            assert!(error.public().contains("DOCKER_HOST"), "{error}");
        }
    }
}
