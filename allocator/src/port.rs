//! Ports for instances: reserved, not guessed.
//!
//! The kernel chooses a free port and a socket of ours holds it until the moment the
//! program is spawned. No port is given out again while an instance has it, so the only
//! one who can take it in between is a stranger, which the start notices.

use std::{
    collections::HashSet,
    io,
    net::{Ipv4Addr, TcpListener},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lca::{Error, Kind, Result};

/// Ports the kernel may offer that are an instance's already, before we give up: its
/// program may not listen yet.
const TRIES: usize = 64;

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
            let (number, socket) = offered.map_err(|error| {
                Error::new(Kind::NoCapacity, "this machine has no free port").because(error)
            })?;
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

    /// Lets the program bind it. It stays this instance's in our table.
    pub(crate) fn let_go(&mut self) {
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

fn listen(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_held_until_it_is_let_go_and_given_once() {
        let ports = Ports::default();
        let mut port = ports.reserve().unwrap();
        assert!(listen(port.number()).is_err(), "nobody else may bind it");
        port.let_go();
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
