//! Tells a service manager how the daemon is, in systemd's protocol: datagrams to the
//! socket in `NOTIFY_SOCKET`, in the file system or abstract (`@`). Nobody listening is
//! the usual case and no failure.

use std::{
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};

/// A service manager, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Notify {
    to: Option<(UnixDatagram, SocketAddr)>,
    /// How often it wants to hear that the daemon is alive; half of what it allows.
    pub(crate) watchdog: Option<Duration>,
}

impl Notify {
    /// The one that started this process.
    pub(crate) fn from_environment() -> Self {
        let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        let meant = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|micros| meant && *micros > 1);
        let watchdog = watchdog.map(|micros| Duration::from_micros(micros / 2));
        let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return Self::default() };
        match open(&socket) {
            Ok(to) => Self { to: Some(to), watchdog },
            Err(error) => {
                tracing::warn!(?socket, %error, "cannot tell the service manager anything");
                Self::default()
            }
        }
    }

    /// Ready, with a line for people.
    pub(crate) fn ready(&self, status: &str) {
        self.say(&format!("READY=1\nSTATUS={status}"));
    }

    /// Reads its configuration again; [`ready`](Self::ready) says when that is over.
    pub(crate) fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
        self.say(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
    }

    /// Takes no more work.
    pub(crate) fn stopping(&self) {
        self.say("STOPPING=1\nSTATUS=stopping");
    }

    /// Alive, at every [`watchdog`](Self::watchdog).
    pub(crate) fn alive(&self) {
        self.say("WATCHDOG=1");
    }

    fn say(&self, state: &str) {
        let Some((socket, to)) = &self.to else { return };
        if let Err(error) = socket.send_to_addr(state.as_bytes(), to) {
            tracing::warn!(%error, "the service manager cannot be told");
        }
    }
}

fn open(socket: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let to = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let from = UnixDatagram::unbound()?;
    from.set_nonblocking(true)?; // one that does not listen must not hold us up
    Ok((from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_in_files_and_abstract_ones_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let abstract_name = format!("lca-test-{}", std::process::id());
        let at = SocketAddr::from_abstract_name(&abstract_name).unwrap();
        for (manager, name) in [
            (UnixDatagram::bind(&path).unwrap(), path.into_os_string()),
            (UnixDatagram::bind_addr(&at).unwrap(), format!("@{abstract_name}").into()),
        ] {
            let notify = Notify { to: Some(open(&name).unwrap()), watchdog: None };
            notify.ready("waiting for requests");
            let mut said = [0; 100];
            let length = manager.recv(&mut said).unwrap();
            assert_eq!(&said[..length], b"READY=1\nSTATUS=waiting for requests");
            notify.reloading();
            let length = manager.recv(&mut said).unwrap();
            let said = std::str::from_utf8(&said[..length]).unwrap();
            let micros = said.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
            assert!(micros.parse::<u64>().unwrap() > 0);
        }
    }

    #[test]
    fn nobody_to_tell_is_no_failure() {
        Notify::default().stopping();
    }
}
