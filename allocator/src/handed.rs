//! The socket of an instance's port, listening already, for a program that takes it as its
//! own (sd_listen_fds(3)): what connects before the program accepts waits in the kernel.
//!
//! Such a port accepts from the beginning, so that says nothing about the program. Where no
//! path can be asked it is ready once it has accepted a connection of ours, which is when
//! none waits at the socket any more. We keep a copy until then and no longer: with it open,
//! connections would wait for a program that has died.

use std::{
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::{net::TcpStream, time::sleep};

/// Between two looks whether it has accepted; a request that comes meanwhile waits at the
/// socket, so nobody waits for the look.
const LOOK: Duration = Duration::from_millis(1);

/// A listening socket that a program is to inherit. Equal to its clones alone.
#[derive(Clone, Debug)]
pub struct Listener(Arc<OwnedFd>);

impl Listener {
    /// Hands over a copy of `socket`.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub(crate) fn copy(socket: &TcpListener) -> std::io::Result<Self> {
        Ok(Self(Arc::new(socket.try_clone()?.into())))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl PartialEq for Listener {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Listener {}

/// Resolves once whoever else has `socket`, which listens on `address`, has accepted a
/// connection. Has no deadline of its own. Cancel safe.
pub(crate) async fn accepts(socket: &TcpListener, address: SocketAddr) {
    // It waits there until it is accepted.
    let _ours = loop {
        match TcpStream::connect(address).await {
            Ok(stream) => break stream,
            Err(_) => sleep(LOOK).await, // no descriptor is left at the moment
        }
    };
    while waits(socket) {
        sleep(LOOK).await;
    }
}

/// Whether a connection waits to be accepted.
fn waits(socket: &TcpListener) -> bool {
    let mut look = [PollFd::new(socket, PollFlags::IN)];
    !matches!(poll(&mut look, Some(&Timespec::default())), Ok(0))
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_connection_that_is_accepted_and_not_one_that_waits_is_a_sign_of_life() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        assert!(!waits(&socket));
        let program = socket.try_clone().unwrap();
        assert!(timeout(LOOK * 20, accepts(&socket, address)).await.is_err(), "nobody accepts");
        // What waits from the look before is accepted, too.
        let accepting = tokio::task::spawn_blocking(move || (program.accept(), program.accept()));
        timeout(Duration::from_secs(20), accepts(&socket, address)).await.unwrap();
        let (first, second) = accepting.await.unwrap();
        assert!(first.is_ok() && second.is_ok());
    }
}
