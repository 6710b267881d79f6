//! Ports for instances: reserved, not guessed.
//!
//! The kernel chooses a free port and a socket of ours holds it until the moment the
//! program is spawned. No port is given out again while an instance has it, so the only
//! one who can take it in between is a stranger, which the start notices.
//!
//! A child that another start forked meanwhile has a copy of that socket until it
//! executes its own program, which on a busy machine takes milliseconds: closing ours is
//! not enough, and the program would find its port in use by nobody it could name.

use std::{
    collections::HashSet,
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lca::{Error, Kind, Result, listen::out_of_descriptors};
use tokio::{net::TcpSocket, time::sleep};

use crate::handed::Listener;

/// Ports the kernel may offer that are an instance's already, before we give up: its
/// program may not listen yet.
const TRIES: usize = 64;
/// Between two looks whether a port that we let go is free: a fork is over within
/// milliseconds.
const FREE_LOOK: Duration = Duration::from_millis(1);
/// How many looks. After that the program is to find out by itself.
const FREE_LOOKS: u32 = 500;

/// The ports of one allocator's instances. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ports {
    used: Arc<Mutex<HashSet<u16>>>,
}

/// A port that is an instance's until this is dropped.
#[derive(Debug)]
pub(crate) struct Port {
    number: u16,
    socket: Option<TcpListener>,
    ports: Ports,
}

impl Ports {
    /// Takes a free port on 127.0.0.1.
    ///
    /// # Errors
    /// [`Kind::NoCapacity`] if the machine has none left.
    pub(crate) fn reserve(&self) -> Result<Port> {
        // Kept until the end, so that the kernel offers something else each time.
        let mut refused = Vec::new();
        for _ in 0..TRIES {
            let offered = listen(0).and_then(|socket| Ok((socket.local_addr()?.port(), socket)));
            let (number, socket) = offered.map_err(none)?;
            if self.lock().insert(number) {
                return Ok(Port { number, socket: Some(socket), ports: self.clone() });
            }
            refused.push(socket);
        }
        Err(Error::new(Kind::NoCapacity, "this machine has no free port"))
    }

    /// Takes the port that an instance has already, so that no other is given it.
    pub(crate) fn claim(&self, number: u16) -> Port {
        self.lock().insert(number);
        Port { number, socket: None, ports: self.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<u16>> {
        // Nothing panics while holding it.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Port {
    /// The port itself.
    pub(crate) const fn number(&self) -> u16 {
        self.number
    }

    /// Lets the program bind it, and resolves once it can. It stays this instance's in
    /// our table. Cancel safe.
    pub(crate) async fn let_go(&mut self) {
        self.socket = None;
        for _ in 0..FREE_LOOKS {
            if !in_use(self.number) {
                return;
            }
            sleep(FREE_LOOK).await;
        }
    }

    /// A copy of its socket, which listens, for the program to take as its own. Ours stays
    /// open until it is [closed](Self::close).
    ///
    /// # Errors
    /// [`Kind::NoCapacity`] if no descriptor is left.
    pub(crate) fn hand_over(&self) -> Result<Listener> {
        let socket =
            self.socket.as_ref().ok_or_else(|| none(io::ErrorKind::NotConnected.into()))?;
        Listener::copy(socket).map_err(none)
    }

    /// Our copy of the socket that was handed over.
    pub(crate) const fn handed(&self) -> Option<&TcpListener> {
        self.socket.as_ref()
    }

    /// Closes our copy of its socket, if there is one.
    pub(crate) fn close(&mut self) {
        self.socket = None;
    }

    /// Whether somebody listens on it although our program has ended.
    pub(crate) fn is_taken(&self) -> bool {
        listen(self.number).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.ports.lock().remove(&self.number);
    }
}

/// Whether a program could not bind `port`, however little it is ready to share it: not
/// all of them set SO_REUSEADDR.
fn in_use(port: u16) -> bool {
    let bound = TcpSocket::new_v4()
        .and_then(|socket| socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))));
    bound.is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

fn none(error: io::Error) -> Error {
    let short = match out_of_descriptors(&error) {
        true => "the allocator has no file descriptor left",
        false => "this machine has no free port",
    };
    Error::new(Kind::NoCapacity, short).because(error)
}

fn listen(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_is_let_go_only_when_no_fork_of_ours_has_it_either() {
        let mut port = Ports::default().reserve().unwrap();
        let number = port.number();
        // What a child has from its fork to its exec.
        let copy = port.socket.as_ref().unwrap().try_clone().unwrap();
        let forked = async {
            sleep(FREE_LOOK * 20).await;
            assert!(in_use(number));
            drop(copy);
        };
        let ((), ()) = tokio::join!(
            async {
                port.let_go().await;
                assert!(!in_use(number), "the program could not bind it");
            },
            forked
        );
    }

    #[test]
    fn without_a_descriptor_the_ports_are_not_to_blame() {
        let refused = |number| none(io::Error::from_raw_os_error(number));
        for number in [23, 24] {
            assert!(refused(number).public().contains("descriptor"), "{}", refused(number));
        }
        let no_address_left = refused(98);
        assert!(no_address_left.public().contains("no free port"), "{no_address_left}");
        assert_eq!(no_address_left.kind(), Kind::NoCapacity);
    }

    #[tokio::test(start_paused = true)]
    async fn a_port_that_somebody_keeps_is_not_waited_for_forever() {
        let mut port = Ports::default().reserve().unwrap();
        let _kept = port.socket.as_ref().unwrap().try_clone().unwrap();
        let begin = tokio::time::Instant::now();
        port.let_go().await;
        assert_eq!(begin.elapsed(), FREE_LOOK * FREE_LOOKS);
    }

    #[tokio::test]
    async fn a_port_is_held_until_it_is_let_go_and_given_once() {
        let ports = Ports::default();
        let mut port = ports.reserve().unwrap();
        assert!(listen(port.number()).is_err(), "nobody else may bind it");
        port.let_go().await;
        assert!(!port.is_taken());
        let program = listen(port.number()).unwrap();
        assert!(port.is_taken());
        drop(program);
        let others: Vec<_> = (0..50).map(|_| ports.reserve().unwrap()).collect();
        assert!(others.iter().all(|other| other.number() != port.number()));
        let number = port.number();
        drop(port);
        assert!(!ports.lock().contains(&number));
    }
}
