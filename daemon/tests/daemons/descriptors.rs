//! With hardly a descriptor left: refuse, do not spin, recover.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use lca::testing::eventually;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::machine::{Machine, binary};

/// Clock ticks the process has used so far.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Whether it was closed, or told 503, without having asked for anything.
pub(crate) fn was_refused(mut client: &TcpStream) -> bool {
    client.set_nonblocking(true).unwrap();
    let mut said = [0; 12];
    match client.read(&mut said) {
        Ok(length) => length == 0 || said.ends_with(b" 503"),
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

/// The share of a core that the process takes for some seconds.
pub(crate) async fn share(pid: u32) -> f64 {
    let before = (ticks(pid), Instant::now());
    tokio::time::timeout(Duration::from_secs(2), std::future::pending::<()>()).await.unwrap_err();
    let used = ticks(pid) - before.0;
    // A hundred ticks are a second; a loop that spins has two hundred by now.
    used as f64 / (before.1.elapsed().as_secs_f64() * 100.0)
}

/// From now on the process opens only descriptors below this; without, as many as at first.
fn limit_descriptors(pid: u32, below: Option<u64>) {
    // Its own is that of this process, raised.
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit { current: below.or(maximum), maximum };
    prlimit(Pid::from_raw(pid.cast_signed()), Resource::Nofile, limit).unwrap();
}

/// The lowest descriptor that is free: what the next one opened is to be.
fn next_descriptor(pid: u32) -> u64 {
    let open = |number: &u64| std::fs::symlink_metadata(format!("/proc/{pid}/fd/{number}")).is_ok();
    (0..).find(|number| !open(number)).unwrap()
}

/// Whether whoever listens there answers what libp2p begins with, or closes what is no TLS.
fn takes_up(at: &str, libp2p: bool) -> bool {
    const MULTISTREAM: &[u8] = b"\x13/multistream/1.0.0\n";
    let Ok(mut stream) = TcpStream::connect(at) else { return false };
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let said = if libp2p { [MULTISTREAM, b"\x07/noise\n"].concat() } else { vec![0xff; 64] };
    let mut heard = [0; MULTISTREAM.len()];
    let _may_be_closed_already = stream.write_all(&said);
    match libp2p {
        true => stream.read_exact(&mut heard).is_ok() && heard == MULTISTREAM,
        false => match stream.read(&mut heard) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        },
    }
}

// FAULTS 81: not the bound on connections but the system's own refusal.
#[tokio::test]
async fn without_a_descriptor_left_no_listener_spins_and_each_goes_on_by_itself() {
    let machine = Machine::new();
    let mut registry = machine.start("registry", &["--grpc-listen", "127.0.0.1:0"]).await;
    let pid = registry.id();
    let libp2p: Vec<_> = registry.line("libp2p").split('/').map(str::to_owned).collect();
    let (libp2p, mesh) = (format!("{}:{}", libp2p[2], libp2p[4]), registry.line("mesh"));
    let grpc = registry.line("gRPC").split(',').next().unwrap().to_owned();
    for (at, is_libp2p) in [(&libp2p, true), (&mesh, false), (&grpc, false)] {
        assert!(takes_up(at, is_libp2p), "{at}");
    }
    limit_descriptors(pid, Some(next_descriptor(pid)));
    let open = |at: &String| TcpStream::connect(at).unwrap();
    let waiting: Vec<_> = [&libp2p, &mesh, &grpc].map(|at| (0..20).map(|_| open(at))).into();
    let waiting: Vec<_> = waiting.into_iter().flatten().collect();
    registry.says("cannot accept peers on").await;
    registry.says("cannot accept programs on").await;
    registry.says("cannot accept peers over libp2p").await;
    let share = share(pid).await;
    assert!(share < 0.3, "{share} of a core: {}", registry.err());
    let complaints = registry.err().lines().filter(|line| line.contains("accept")).count();
    assert!(complaints <= 6, "{}", registry.err());

    limit_descriptors(pid, None);
    for (at, is_libp2p) in [(&libp2p, true), (&mesh, false), (&grpc, false)] {
        let what = format!("{at} to be answered again");
        eventually(&what, async || takes_up(at, is_libp2p).then_some(())).await;
    }
    drop(waiting);
    assert_eq!(registry.stop().await, Some(0), "{}", registry.err());
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
    let share = share(proxy.id()).await;
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
