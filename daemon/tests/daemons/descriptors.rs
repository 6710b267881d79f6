//! With hardly a descriptor left: refuse, do not spin, recover.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use lca::testing::eventually;

use crate::machine::{Machine, binary};

/// Clock ticks the process has used so far.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Whether it was closed, or told 503, without having asked for anything.
fn was_refused(mut client: &TcpStream) -> bool {
    client.set_nonblocking(true).unwrap();
    let mut said = [0; 12];
    match client.read(&mut said) {
        Ok(length) => length == 0 || said.ends_with(b" 503"),
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[tokio::test]
async fn with_64_descriptors_it_refuses_without_spinning_and_recovers() {
    let machine = Machine::new();
    let mut command = machine.command("/bin/sh");
    command.args(["-c", "ulimit -n 64; exec \"$0\" \"$@\"", binary("proxy"), "0"]);
    let mut proxy = machine.spawn(command);
    proxy.ready().await;
    let front = proxy.line("front").replace("http://", "");
    let mesh = proxy.line("mesh");
    // More than there are descriptors, on both listeners; none says anything.
    let open = |at: &str| TcpStream::connect(at).unwrap();
    let fronts: Vec<_> = (0..60).map(|_| open(&front)).collect();
    let meshes: Vec<_> = (0..60).map(|_| open(&mesh)).collect();
    let before = (ticks(proxy.id()), Instant::now());
    tokio::time::timeout(Duration::from_secs(2), std::future::pending::<()>()).await.unwrap_err();
    let used = ticks(proxy.id()) - before.0;
    // A hundred ticks are a second; a loop that spins has two hundred by now.
    let share = used as f64 / (before.1.elapsed().as_secs_f64() * 100.0);
    assert!(share < 0.3, "{share} of a core");
    let complaints = proxy.err().lines().filter(|line| line.contains("cannot accept")).count();
    assert!(complaints <= 4, "{}", proxy.err());
    assert!(fronts.iter().any(was_refused), "it took 60 connections with 64 descriptors");
    drop((fronts, meshes));
    eventually("the front to answer again", async || {
        let mut client = open(&front);
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        client.write_all(b"GET /no-such-service/ HTTP/1.1\r\nhost: localhost\r\n\r\n").ok()?;
        let mut head = [0; 12];
        client.read_exact(&mut head).ok()?;
        // 503 without a body is the refusal of one connection too many.
        let mut rest = [0; 200];
        let length = client.read(&mut rest).ok()?;
        let said = String::from_utf8_lossy(&rest[..length]).into_owned();
        said.contains("lca-").then_some(()).or_else(|| said.contains("problem+json").then_some(()))
    })
    .await;
    assert_eq!(proxy.stop().await, Some(0), "{}", proxy.err());
}
