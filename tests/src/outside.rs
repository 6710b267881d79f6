//! A program that no fleet has started: what an external service is.

use std::{
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::service::demo_program;

/// The demo, started by hand, always at the same address. Killed when this is dropped.
#[derive(Debug)]
pub struct Outside {
    address: SocketAddr,
    child: Option<Child>,
}

impl Outside {
    /// Starts it on a port that was free just now.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start() -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = free.local_addr().expect("a bound socket has an address");
        drop(free);
        let mut outside = Self { address, child: None };
        outside.start_again();
        outside
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts it again where it was.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start_again(&mut self) {
        self.kill();
        let child = Command::new(demo_program())
            .args(["--port", &self.address.port().to_string()])
            .stdin(Stdio::null())
            .spawn();
        self.child = Some(child.expect("the demo is built with the tests"));
    }

    /// Kills it.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _over_already = child.kill();
            let _reaped = child.wait();
        }
    }

    /// Has it do nothing, its port open, until [`wake`](Self::wake).
    pub fn hang(&self) {
        self.signal(Signal::STOP);
    }

    /// Ends [`hang`](Self::hang).
    pub fn wake(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, signal).expect("it is our own child");
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.kill();
    }
}
