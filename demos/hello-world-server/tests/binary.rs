//! The demo as a process. Also what makes `cargo test` build its binary, which the
//! system tests start.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, ExitStatus},
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(10);

/// Looks until there is something, or the test fails.
fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        std::thread::yield_now();
    }
}

struct Demo(Child);

impl Demo {
    fn start(port: u16) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hello-world-server"));
        Self(command.env("SERVICE_PORT", port.to_string()).spawn().expect("the demo starts"))
    }

    fn ended(&mut self) -> ExitStatus {
        eventually("the demo to end", || self.0.try_wait().expect("it is our child"))
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _gone_already = self.0.kill();
    }
}

fn free_port() -> u16 {
    let probe = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
    probe.local_addr().expect("it is bound").port()
}

fn get(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

#[test]
fn it_says_hello_where_it_was_told_to_and_ends_when_asked() {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut demo = Demo::start(address.port());
    let answer = eventually("an answer", || get(address, "/hello"));
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\nHello, world\n"),
        "{answer}"
    );
    let terminated = Command::new("kill").arg(demo.0.id().to_string()).status();
    assert!(terminated.expect("kill is everywhere").success());
    assert_eq!(demo.ended().code(), Some(0));
}

#[test]
fn a_port_that_is_taken_is_an_error() {
    let holder = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
    let mut demo = Demo::start(holder.local_addr().expect("it is bound").port());
    assert_eq!(demo.ended().code(), Some(1));
}
