//! Clients that connect to a front and say nothing: what they cost, and whom.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use lca::testing::eventually;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{
    descriptors::{share, was_refused},
    machine::Machine,
};

/// Connections that are opened, more than twice what a front takes at once.
const MANY: usize = 10_000;
/// Bytes that they may cost in all: 16 KiB for each of the 4096 that a front takes.
const MOST: u64 = 64 << 20;

/// Connections that a front takes at once; the rest of a process needs far fewer descriptors
/// than [`BESIDES`].
const TAKEN: usize = 4096;
const BESIDES: usize = 300;

/// A question that a front answers by itself, on a connection that stays open.
fn asks(mut client: &TcpStream) -> std::io::Result<()> {
    client.write_all(b"GET /svc HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut said = Vec::new();
    while !said.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        said.extend(byte);
    }
    match said.starts_with(b"HTTP/1.1 308") {
        true => Ok(()),
        false => Err(std::io::Error::other(String::from_utf8_lossy(&said).into_owned())),
    }
}

fn open(at: &str) -> TcpStream {
    let client = TcpStream::connect(at).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    client
}

/// Bytes of memory that the process has.
fn resident(pid: u32) -> u64 {
    let pages = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Descriptors that the process has open.
fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

// FAULTS 26.
#[tokio::test]
async fn ten_thousand_idle_connections_cost_little_and_the_one_in_use_nothing() {
    let all = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: all.maximum, ..all }).unwrap();
    let room = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    assert!(room > MANY as u64 + 500, "{room} descriptors: raise the hard limit (`ulimit -Hn`)");
    let machine = Machine::new();
    let mut proxy = machine.start("proxy", &["0"]).await;
    let front = proxy.line("front").replace("http://", "");
    let used = open(&front);
    asks(&used).unwrap();
    let before = resident(proxy.id());

    let mut idle = Vec::with_capacity(MANY);
    for number in 0..MANY {
        idle.push(open(&front));
        // Under the limit and over it.
        if number % 500 == 0 {
            asks(&used).unwrap_or_else(|error| panic!("after {number}: {error}"));
            let held = descriptors(proxy.id());
            assert!(held < TAKEN + BESIDES, "{held} descriptors after {number}");
        }
    }
    let share = share(proxy.id()).await;
    asks(&used).unwrap();
    let more = resident(proxy.id()).saturating_sub(before);
    assert!(more < MOST, "{more} bytes more");
    assert!(share < 0.3, "{share} of a core");
    let refused = idle.iter().filter(|client| was_refused(client)).count();
    println!("{more} bytes more, {share:.3} of a core, {refused} refused");
    assert!(refused >= MANY - TAKEN, "{refused} refused");

    // Who says nothing for ten seconds makes room, without going away by itself.
    eventually("a place for somebody new", async || {
        asks(&used)?;
        asks(&open(&front))
    })
    .await;
    drop(idle);
    assert_eq!(proxy.stop().await, Some(0), "{}", proxy.err());
}
