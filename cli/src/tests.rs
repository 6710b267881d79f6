//! The commands against a local API that answers as told: what people see, what
//! programs read, and how each ends.

mod doctor;
mod fake;
mod services;
mod watching;

use std::{ffi::OsString, path::Path};

use clap::Parser as _;
use fake::Daemon;
use insta::assert_snapshot;
use lca::{api::proto, testing::eventually};
use tokio_util::sync::CancellationToken;

use crate::{
    Cli, client,
    errors::Exit,
    output::{Output, captured::Captured},
};

/// How a command ended, and what it printed.
struct Ended {
    exit: Exit,
    out: String,
    err: String,
}

impl Ended {
    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap()
    }
}

/// The words of `line`, with the address of `socket`.
fn parse(socket: &Path, line: &str) -> Cli {
    let words = ["lcactl", "--address"].map(OsString::from).into_iter();
    let words = words.chain([socket.into()]).chain(line.split(' ').map(OsString::from));
    Cli::try_parse_from(words).unwrap()
}

async fn on(socket: &Path, line: &str, terminal: bool, interrupt: CancellationToken) -> Ended {
    let Cli { global, command } = parse(socket, line);
    let (mut output, captured): (Output, Captured) = Output::captured(global.output, terminal);
    let exit = client(command, &global, &mut output, interrupt).await;
    Ended { exit, out: captured.out(), err: captured.err() }
}

impl Daemon {
    /// As on a terminal of so many columns and rows.
    async fn run_on(&self, line: &str, terminal: (usize, usize)) -> Ended {
        let Cli { global, command } = parse(&self.socket, line);
        let (output, captured) = Output::captured(global.output, true);
        let mut output = output.on_terminal(terminal.0, terminal.1);
        let exit = client(command, &global, &mut output, CancellationToken::new()).await;
        Ended { exit, out: captured.out(), err: captured.err() }
    }

    async fn run(&self, line: &str) -> Ended {
        on(&self.socket, line, false, CancellationToken::new()).await
    }

    /// On a terminal where somebody types this.
    async fn typing(&self, line: &str, typed: &'static str) -> Ended {
        let Cli { global, command } = parse(&self.socket, line);
        let (output, captured) = Output::captured(global.output, true);
        let mut output = output.answering(typed);
        let exit = client(command, &global, &mut output, CancellationToken::new()).await;
        Ended { exit, out: captured.out(), err: captured.err() }
    }
}

#[tokio::test]
async fn a_list_may_be_longer_than_the_4_mib_of_grpc() {
    let daemon = Daemon::start().await;
    daemon.state(|state| {
        for number in 0..100 {
            let name = format!("s{number:02}");
            let arguments = vec!["x".repeat(60 << 10)];
            let spec = proto::ServiceSpec { name: name.clone(), arguments, ..Default::default() };
            state.specs.insert(name, spec);
        }
    });
    let ended = daemon.run("-o json service list").await;
    assert_eq!((ended.exit, ended.err.as_str()), (Exit::Success, ""));
    assert_eq!(ended.json()["services"].as_array().unwrap().len(), 100);
}

#[tokio::test]
async fn a_daemon_is_asked_by_tcp_with_its_token_and_not_without() {
    let daemon = Daemon::start().await;
    let url = format!("http://{}", daemon.port);
    let by_tcp =
        async |line: &str| on(Path::new(&url), line, false, CancellationToken::new()).await;
    let with = format!("peers --token-file {}", daemon.token_file.display());
    let ended = by_tcp(&with).await;
    assert_eq!((ended.exit, ended.err.as_str()), (Exit::Success, ""));
    assert_eq!(ended.out, daemon.run("peers").await.out);
    assert_eq!(by_tcp("health").await.exit, Exit::Success, "health asks for no token");
    let ended = by_tcp("peers").await;
    assert_eq!(ended.exit, Exit::Refused);
    let file = daemon.token_file.display().to_string();
    assert!(ended.err.contains(&file), "it says where the token is: {}", ended.err);
    let ended = by_tcp("peers --token-file /nowhere/token").await;
    assert_eq!(ended.exit, Exit::Refused);
    assert!(ended.err.contains("/nowhere/token does not exist"), "{}", ended.err);
}

#[tokio::test]
async fn peers_are_listed_and_cannot_colour_the_terminal() {
    let daemon = Daemon::start().await;
    let ended = daemon.run("peers").await;
    assert_eq!((ended.exit, ended.err.as_str()), (Exit::Success, ""));
    assert_snapshot!(ended.out, @r"
    PEER      ROLES               STATE        LINK  RTT           INSTANCES  VERSION  ADDRESSES
    eQAJU5SA  proxy               this node    -     -             -          0.1.0    127.0.0.1:4444
    junk?[31  registry,allocator  unreachable  edge  1.2 ± 0.3 ms  3 of 64    0.1.0    127.0.0.1:4444
    ");
    let json = daemon.run("-o json peers").await.json();
    assert_eq!(json["peers"][0]["peer"], fake::PEER);
    assert_eq!(json["peers"][0]["rtt_us"], serde_json::Value::Null);
    assert_eq!(json["peers"][1]["rtt_us"], 1250);
}

#[tokio::test]
async fn instances_are_listed_with_what_is_missing() {
    let daemon = Daemon::start().await;
    let ended = daemon.run("instances --all").await;
    assert_snapshot!(ended.out, @r"
    INSTANCE  SERVICE  STATE   PEER      RTT          REQUESTS   CPU       MEMORY         AGE      DRIVER   RESTARTS  LAST EXIT           ADDRESS         REASON
    00112233  hello    ready   eQAJU5SA  412 ± 38 us  2 of 1024  0.12/0.5  12 MiB/64 MiB  1 m 1 s  process  1         exited with code 3  127.0.0.1:4444  -
    ffffffff  hello    failed  eQAJU5SA  -            -          0.12/0.5  12 MiB/64 MiB  1 m 1 s  process  1         exited with code 3  127.0.0.1:4444  exited with code 1
    ");
    assert_eq!(ended.err, "warning: peer eQAJU5SA did not answer; its instances are missing\n");
    let nothing = daemon.run("instances other").await;
    assert_eq!((nothing.out.as_str(), nothing.err.as_str()), ("", "no instances of other\n"));
    assert_eq!(nothing.exit, Exit::Success);
    let json = daemon.run("-o json instances other").await.json();
    assert_eq!(json, serde_json::json!({ "instances": [], "unreachable_peers": [] }));
    let json = daemon.run("-o json instances hello").await.json();
    assert_eq!(json["instances"][0]["state"], "INSTANCE_STATE_READY");
    assert_eq!(json["instances"][0]["load"]["in_flight"], 2);
}

#[tokio::test]
async fn an_allocation_says_where_it_is_and_where_the_time_went() {
    let daemon = Daemon::start().await;
    let ended = daemon.run("allocate hello --new").await;
    assert_eq!((ended.exit, ended.err.as_str()), (Exit::Success, ""));
    assert_snapshot!(ended.out, @r"
    INSTANCE  SERVICE  STATE  PEER      RTT          REQUESTS   CPU       MEMORY         AGE      DRIVER   RESTARTS  LAST EXIT           ADDRESS         REASON
    00112233  hello    ready  eQAJU5SA  412 ± 38 us  2 of 1024  0.12/0.5  12 MiB/64 MiB  1 m 1 s  process  1         exited with code 3  127.0.0.1:4444  -

    STEP   TIME     DETAIL
    find   52.0 ms  -
    spawn  850 us   -
    ready  1.2 ms   AJU5SA
    ");
    let joined = daemon.run("allocate hello").await;
    assert_eq!(joined.err, "it was there already; --new starts another\n");
    let watched = on(&daemon.socket, "allocate hello --new", true, CancellationToken::new()).await;
    assert_snapshot!(watched.err, @r"
    find       52.0 ms
    spawn       850 us
    ready       1.2 ms  AJU5SA
    ");
    let json = daemon.run("allocate hello -o json").await.json();
    assert_eq!(json["joined"], true);
    assert_eq!(
        json["steps"][1],
        serde_json::json!({ "name": "spawn", "duration_us": 850, "detail": "" })
    );
}

#[tokio::test]
async fn an_image_on_its_way_is_drawn_over_one_line_where_somebody_looks() {
    let daemon = Daemon::start().await;
    let quiet = daemon.run("allocate pulled --new").await;
    assert_eq!((quiet.exit, quiet.err.as_str()), (Exit::Success, ""));
    let line = "allocate pulled --new";
    let watched = on(&daemon.socket, line, true, CancellationToken::new()).await;
    assert_snapshot!(watched.err.replace("\r", "<").replace("\x1b[K", ">\n"), @r"
    find       52.0 ms
    <pulling its image: 0 of 4 layers>
    <pulling its image: 3 MiB of 12 MiB (25 %), 1 of 4 layers>
    <>
    spawn       850 us
    ready       1.2 ms  AJU5SA
    ");
}

#[tokio::test]
async fn a_failed_start_shows_the_programs_last_words() {
    let daemon = Daemon::start().await;
    let ended = daemon.run("allocate broken").await;
    assert_eq!((ended.exit, ended.out.as_str()), (Exit::Refused, ""));
    assert_snapshot!(ended.err, @r"
    error: broken exited with code 1 before it was ready
      | no such table
      | giving up
    hint: try again in 2.0 s
    ");
    let ended = daemon.run("-o json allocate broken").await;
    assert_eq!((ended.exit, ended.out.as_str()), (Exit::Refused, ""));
    let error: serde_json::Value = serde_json::from_str(&ended.err).unwrap();
    assert_eq!(error["error"]["kind"], "start-failed");
    assert_eq!(error["error"]["output"][1], "giving up");
    assert_eq!(error["error"]["retry_after_ms"], 2000);
    let cut = daemon.run("allocate cut").await;
    assert_eq!(cut.exit, Exit::Other);
    assert_eq!(cut.err, "error: the daemon broke off before the start was over\n");
}

#[tokio::test]
async fn an_interrupted_allocation_says_how_to_find_it_again() {
    let daemon = Daemon::start().await;
    let interrupt = CancellationToken::new();
    let running =
        on(&daemon.socket, "allocate never --new --request-id abc", false, interrupt.clone());
    // The call is made before the first poll ends in waiting; then Ctrl-C.
    let (ended, ()) = tokio::join!(running, async {
        daemon.fake.asked("never").await;
        interrupt.cancel();
    });
    assert_eq!(ended.exit, Exit::Interrupted);
    assert_eq!(
        ended.err,
        "interrupted\nhint: the start goes on; `lcactl allocate never --new --request-id abc` waits for it again\n"
    );
}

#[tokio::test]
async fn an_instance_is_released_by_the_beginning_of_its_id() {
    let daemon = Daemon::start().await;
    let ended = daemon.run("release 0011").await;
    assert_eq!(ended.exit, Exit::Success);
    assert!(
        ended.out.lines().nth(1).unwrap().starts_with("00112233  hello    stopped"),
        "{}",
        ended.out
    );
    let ended = daemon.run("release abc").await;
    assert_eq!(ended.exit, Exit::NotFound);
    assert_eq!(ended.err, "error: no such instance\nhint: `lcactl instances` lists what runs\n");
}

#[tokio::test]
async fn logs_are_given_as_they_are_or_line_by_line() {
    let daemon = Daemon::start().await;
    let ended = daemon.run("logs 00").await;
    assert_eq!(
        (ended.exit, ended.out.as_str()),
        (Exit::Success, "listening\nfirst request\n\u{fffd}\n")
    );
    let ended = daemon.run("logs 00 -o json").await;
    assert_eq!(
        ended.out,
        "{\"line\":\"listening\"}\n{\"line\":\"first request\"}\n{\"line\":\"\u{fffd}\"}\n"
    );
    assert_eq!(daemon.run("logs 00 --tail 1").await.out, "\u{fffd}\n");
}

#[tokio::test]
async fn logs_are_followed_until_interrupted() {
    let daemon = Daemon::start().await;
    let interrupt = CancellationToken::new();
    let Cli { global, command } = parse(&daemon.socket, "logs 00 --follow");
    let (mut output, captured) = Output::captured(global.output, false);
    let token = interrupt.clone();
    let following = tokio::spawn(async move { client(command, &global, &mut output, token).await });
    eventually("all lines to be printed", async || captured.out().ends_with("\u{fffd}\n")).await;
    interrupt.cancel();
    assert_eq!(following.await.unwrap(), Exit::Interrupted);
    assert_eq!(captured.err(), "interrupted\n");
}

#[tokio::test]
async fn health_tells_who_serves_and_fails_if_nobody_does() {
    let daemon = Daemon::start().await;
    let ended = daemon.run("health").await;
    assert_eq!(ended.exit, Exit::Success);
    let out = ended.out.replace(&daemon.socket.display().to_string(), "SOCKET");
    assert!(out.ends_with("SOCKET  serving  -\n"), "{out}");
    let json = daemon.run("health -o json").await.json();
    assert_eq!(json["daemons"][0]["status"], "SERVING");
    let gone = on(Path::new("/nowhere/x.sock"), "health", false, CancellationToken::new()).await;
    assert_eq!((gone.exit, gone.out.as_str()), (Exit::Unavailable, ""));
}

#[tokio::test]
async fn without_a_daemon_there_is_one_line_and_a_hint() {
    let ended = on(Path::new("/nowhere/x.sock"), "peers", false, CancellationToken::new()).await;
    assert_eq!((ended.exit, ended.out.as_str()), (Exit::Unavailable, ""));
    assert_snapshot!(ended.err, @r"
    error: no daemon answers on /nowhere/x.sock
    hint: without --address and LCA_ADDRESS, the daemons of this user are found by themselves
    ");
}

// The clock is paused, so seconds of silence pass at once.
#[tokio::test(start_paused = true)]
async fn a_daemon_that_never_answers_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("proxy-1.sock");
    let _listening = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for line in [
        "peers",
        "instances",
        "service list",
        "logs 00",
        "release 00",
        "allocate x",
        "health",
        "doctor",
    ] {
        let begun = tokio::time::Instant::now();
        let ended = on(&socket, line, false, CancellationToken::new()).await;
        let table = ["health", "doctor"].contains(&line);
        assert_eq!((ended.exit, ended.out.is_empty()), (Exit::Unavailable, !table), "{line}");
        assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{line}");
        let said = ended.err.replace(&socket.display().to_string(), "SOCKET");
        if !table {
            assert_eq!(
                said,
                "error: the daemon on SOCKET takes connections and does not answer\n\
                 hint: it is stopped or stuck: end it and start it again\n",
                "{line}"
            );
        }
        assert!(!said.contains("Timeout expired"), "{line}: {said}");
    }
}

#[tokio::test]
async fn a_socket_that_a_killed_daemon_left_is_shown_and_removed_unless_it_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("proxy-1.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let ask = async || on(&socket, "-o json health", false, CancellationToken::new()).await;
    assert_eq!(ask().await.exit, Exit::Unavailable);
    assert!(socket.exists(), "a daemon may be about to listen on it");
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(10);
    let since = old.duration_since(std::time::UNIX_EPOCH).unwrap();
    let time = rustix::fs::Timespec { tv_sec: since.as_secs() as i64, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    let follow = rustix::fs::AtFlags::empty();
    rustix::fs::utimensat(rustix::fs::CWD, &socket, &times, follow).unwrap();
    assert_eq!(ask().await.exit, Exit::Unavailable);
    assert!(!socket.exists());
    // A file that is no socket is nobody's to remove.
    std::fs::write(&socket, "precious").unwrap();
    ask().await;
    assert!(socket.exists());
}
