//! How the demo is told to behave. Parsed by hand: an argument parser would be most of
//! its start-up time.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

/// Where the demo listens where `SERVICE_PORT` says nothing.
const DEFAULT_PORT: u16 = 8080;

/// What the demo does besides serving.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `--bind IP`: where to listen; 127.0.0.1 by default.
    pub bind: IpAddr,
    /// `--port PORT`, else the environment's `SERVICE_PORT`, else 8080.
    pub port: u16,
    /// `--start-delay MS`: wait so long before listening.
    pub start_delay: Duration,
    /// `--exit CODE`: do not listen, exit with this code after the delay.
    pub exit: Option<u8>,
    /// `--never-ready`: run without ever listening.
    pub never_ready: bool,
    /// `--ignore-term`: go on at SIGTERM.
    pub ignore_term: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bind: Ipv4Addr::LOCALHOST.into(),
            port: DEFAULT_PORT,
            start_delay: Duration::ZERO,
            exit: None,
            never_ready: false,
            ignore_term: false,
        }
    }
}

impl Options {
    /// Reads the arguments after the program's name, and `SERVICE_PORT` of the environment.
    ///
    /// # Errors
    /// If one is unknown or has no such value.
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> io::Result<Self> {
        let port = std::env::var("SERVICE_PORT").ok();
        Self::read(port.as_deref(), arguments)
    }

    /// [`parse`](Self::parse) with the environment given.
    fn read(port: Option<&str>, arguments: impl IntoIterator<Item = String>) -> io::Result<Self> {
        let mut options = Self::default();
        if let Some(port) = port {
            options.port = value("SERVICE_PORT", Some(port.to_owned()))?;
        }
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--bind" => options.bind = value(&argument, arguments.next())?,
                "--port" => options.port = value(&argument, arguments.next())?,
                "--start-delay" => {
                    options.start_delay =
                        Duration::from_millis(value(&argument, arguments.next())?);
                }
                "--exit" => options.exit = Some(value(&argument, arguments.next())?),
                "--never-ready" => options.never_ready = true,
                "--ignore-term" => options.ignore_term = true,
                _ => return Err(invalid(format!("there is no option {argument:?}"))),
            }
        }
        Ok(options)
    }

    /// Where it will listen.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.bind, self.port)
    }
}

fn value<T: std::str::FromStr>(name: &str, text: Option<String>) -> io::Result<T> {
    let text = text.ok_or_else(|| invalid(format!("{name} needs a value")))?;
    text.parse().map_err(|_| invalid(format!("{name} cannot be {text:?}")))
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(port: Option<&str>, line: &str) -> io::Result<Options> {
        Options::read(port, line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn arguments_overrule_the_environment() {
        assert_eq!(read(None, "").unwrap().address(), "127.0.0.1:8080".parse().unwrap());
        assert_eq!(read(Some("7"), "").unwrap().port, 7);
        let told = read(Some("7"), "--port 9 --bind ::1 --start-delay 100 --exit 3 --ignore-term");
        let told = told.unwrap();
        assert_eq!(told.address(), "[::1]:9".parse().unwrap());
        assert_eq!(told.start_delay, Duration::from_millis(100));
        assert_eq!((told.exit, told.ignore_term, told.never_ready), (Some(3), true, false));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (port, line, named) in [
            (Some("x"), "", "SERVICE_PORT"),
            (None, "--port", "--port"),
            (None, "--exit 999", "999"),
            (None, "--what", "--what"),
        ] {
            assert!(read(port, line).unwrap_err().to_string().contains(named));
        }
    }
}
