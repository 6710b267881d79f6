//! The ports the kernel chose, kept for the next start: a node that returns where it
//! was is found again at once, by those who have it as bootstrap in particular.
//!
//! A port that was asked for wins and is not kept. One that somebody else has taken
//! meanwhile is given up, and said so.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
};

use lca::listen;
use serde_json::{Value, json};

use crate::Settings;

/// What was kept of the last start.
#[derive(Debug)]
pub(crate) struct Ports {
    file: PathBuf,
    libp2p: Option<u16>,
    mesh: Option<u16>,
}

impl Ports {
    /// Reads what the last start left in the data folder. What cannot be read counts as
    /// never there, and is said in the log: others may know this node by its old ports.
    pub(crate) fn read(data_dir: &Path) -> Self {
        let file = data_dir.join("ports.json");
        let read = match fs::read_to_string(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Value::Null),
            read => read.and_then(|text| Ok(serde_json::from_str(&text)?)),
        };
        let kept = read.unwrap_or_else(|error| {
            tracing::warn!(file = %file.display(), %error, "the ports of the last start are lost");
            Value::Null
        });
        let port = |name: &str| kept[name].as_u64().and_then(|port| u16::try_from(port).ok());
        let (libp2p, mesh) = (port("libp2p"), port("mesh"));
        Self { file, libp2p, mesh }
    }

    /// Where to listen for libp2p and for the mesh.
    pub(crate) fn wanted(&self, settings: &Settings) -> (SocketAddr, SocketAddr) {
        (
            again("libp2p", settings.listen, self.libp2p),
            again("mesh", settings.mesh_listen, self.mesh),
        )
    }

    /// Keeps what the kernel has chosen. A failure is logged: the next start listens
    /// elsewhere, which is no reason not to run.
    pub(crate) fn keep(&self, settings: &Settings, libp2p: Option<u16>, mesh: u16) {
        let libp2p = if settings.listen.port() == 0 { libp2p } else { self.libp2p };
        let mesh = if settings.mesh_listen.port() == 0 { Some(mesh) } else { self.mesh };
        if (libp2p, mesh) == (self.libp2p, self.mesh) {
            return;
        }
        let text = format!("{}\n", json!({ "libp2p": libp2p, "mesh": mesh }));
        let aside = self.file.with_extension("new");
        let kept = fs::write(&aside, text).and_then(|()| fs::rename(&aside, &self.file));
        if let Err(error) = kept {
            tracing::warn!(file = %self.file.display(), %error, "cannot keep the ports");
        }
    }
}

/// The address with the port of the last start, if none was asked for and it is free.
fn again(what: &str, asked: SocketAddr, kept: Option<u16>) -> SocketAddr {
    let Some(port) = kept.filter(|port| asked.port() == 0 && *port != 0) else { return asked };
    let wanted = SocketAddr::new(asked.ip(), port);
    match TcpListener::bind(wanted) {
        Ok(_free) => wanted,
        Err(error) => {
            let by = listen::holder(port);
            tracing::warn!(
                what, port, %error, ?by, "the port of the last start is taken, another is chosen"
            );
            asked
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(dir: &Path) -> Settings {
        Settings::loopback(dir.to_owned(), dir.to_owned())
    }

    /// A port that was free a moment ago.
    fn free() -> u16 {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    #[test]
    fn what_the_kernel_chose_is_wanted_again_and_what_was_asked_for_wins() {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = settings(dir.path());
        let (libp2p, mesh) = (free(), free());
        Ports::read(dir.path()).keep(&settings, Some(libp2p), mesh);
        let kept = Ports::read(dir.path());
        let wanted = kept.wanted(&settings);
        assert_eq!((wanted.0.port(), wanted.1.port()), (libp2p, mesh));
        settings.listen.set_port(1);
        assert_eq!(kept.wanted(&settings).0.port(), 1);
        kept.keep(&settings, Some(1), mesh);
        assert_eq!(Ports::read(dir.path()).libp2p, Some(libp2p), "a port asked for is not kept");
    }

    #[test]
    fn a_port_that_is_taken_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path());
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = other.local_addr().unwrap().port();
        Ports::read(dir.path()).keep(&settings, Some(taken), taken);
        let wanted = Ports::read(dir.path()).wanted(&settings);
        assert_eq!((wanted.0.port(), wanted.1.port()), (0, 0));
    }

    #[test]
    fn a_damaged_file_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "{", "[]", r#"{"libp2p":-1,"mesh":70000}"#, r#"{"libp2p":"1","mesh":0}"#] {
            fs::write(dir.path().join("ports.json"), text).unwrap();
            let wanted = Ports::read(dir.path()).wanted(&settings(dir.path()));
            assert_eq!((wanted.0.port(), wanted.1.port()), (0, 0), "{text}");
        }
    }
}
