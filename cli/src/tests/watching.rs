//! `--watch`, `explain` and `completions`.

use insta::assert_snapshot;
use lca::testing::eventually;
use tokio_util::sync::CancellationToken;

use super::{Daemon, fake, parse};
use crate::{
    Cli, client,
    errors::Exit,
    output::{Output, captured::Captured},
};

/// Runs a watch until it has printed what is awaited, then Ctrl-C.
async fn watched(
    daemon: &Daemon,
    line: &str,
    terminal: Option<(usize, usize)>,
    until: impl Fn(&Captured) -> bool,
) -> (Exit, Captured) {
    let Cli { global, command } = parse(&daemon.socket, line);
    let (mut output, captured) = Output::captured(global.output, terminal.is_some());
    if let Some((columns, rows)) = terminal {
        output = output.on_terminal(columns, rows);
    }
    let interrupt = CancellationToken::new();
    let token = interrupt.clone();
    let watching = tokio::spawn(async move { client(command, &global, &mut output, token).await });
    eventually("what is awaited to be printed", async || {
        if until(&captured) { Ok(()) } else { Err(captured.out()) }
    })
    .await;
    interrupt.cancel();
    (watching.await.unwrap(), captured)
}

#[tokio::test]
async fn instances_are_redrawn_in_place_on_a_terminal() {
    let daemon = Daemon::start().await;
    let ended = daemon.run_on("instances --watch", (50, 24)).await;
    assert_eq!(ended.exit, Exit::Unavailable);
    assert!(ended.err.starts_with("error: the daemon has ended the watch\n"), "{}", ended.err);
    let frames: Vec<_> = ended.out.split("\x1b[2A\r\x1b[J").collect();
    assert!(frames.len() >= 2, "{:?}", ended.out);
    assert_snapshot!(frames[0], @r"
    INSTANCE  SERVICE  STATE  PEER      REASON
    00112233  hello    ready  eQAJU5SA  -
    ");
    assert_eq!(*frames.last().unwrap(), "no instances\n");
}

#[tokio::test]
async fn instances_are_printed_anew_where_nobody_looks() {
    let daemon = Daemon::start().await;
    let ended = daemon.run("instances --watch").await;
    let tables: Vec<_> = ended.out.split("\n\n").collect();
    assert!(tables[0].starts_with("INSTANCE  SERVICE  STATE"), "{}", ended.out);
    assert!(tables[0].contains("2 of 1024"), "{}", ended.out);
    assert_eq!(*tables.last().unwrap(), "no instances\n");
    assert!(!ended.out.contains('\x1b'), "{}", ended.out);
}

#[tokio::test]
async fn events_are_streamed_as_json_one_a_line() {
    let daemon = Daemon::start().await;
    let ended = daemon.run("instances --watch -o json").await;
    let events: Vec<serde_json::Value> =
        ended.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events[0]["put"]["id"], fake::INSTANCE);
    assert_eq!(events[1]["capacity"]["total"]["instances"], 64);
    assert_eq!(events[2], serde_json::json!({ "synced": true }));
    assert_eq!(events[3]["put"]["load"]["in_flight"], 7);
    assert_eq!(events[4], serde_json::json!({ "gone": fake::INSTANCE }));
    let error: serde_json::Value = serde_json::from_str(&ended.err).unwrap();
    assert_eq!(error["error"]["kind"], "unavailable");
}

#[tokio::test]
async fn a_watch_that_is_interrupted_leaves_the_cursor_below_and_exits_130() {
    let daemon = Daemon::start().await;
    let drawn = |captured: &Captured| captured.out().contains("00112233");
    let (exit, captured) =
        watched(&daemon, "instances endless --watch", Some((80, 24)), drawn).await;
    assert_eq!((exit, captured.err().as_str()), (Exit::Interrupted, "interrupted\n"));
    assert!(captured.out().ends_with('\n'), "{}", captured.out());
    assert!(!captured.out().contains("?25l"), "the cursor is never hidden");
}

#[tokio::test]
async fn peers_are_asked_every_second_and_changes_told() {
    let daemon = Daemon::start().await;
    let gone = |captured: &Captured| captured.out().contains("gone");
    let (exit, captured) = watched(&daemon, "peers --watch -o json", None, gone).await;
    assert_eq!(exit, Exit::Interrupted);
    let out = captured.out();
    let events: Vec<serde_json::Value> =
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events[0]["put"]["peer"], fake::PEER);
    assert_eq!(events[1]["put"]["reachable"], false);
    assert_eq!(events[2], serde_json::json!({ "synced": true }));
    assert_eq!(events[3]["put"]["reachable"], true);
    assert_eq!(events[4]["gone"], events[1]["put"]["peer"]);
    assert_eq!(events.len(), 5, "what has not changed is not told again");
}

#[tokio::test]
async fn an_explanation_shows_what_was_considered_and_what_comes_of_it() {
    let daemon = Daemon::start().await;
    let ended = daemon.run("explain hello").await;
    assert_eq!(ended.exit, Exit::Success);
    assert_snapshot!(ended.out, @r"
    hello, revision 3: soft limit 10ms (this node's), hard limit 20ms (the service's)
    A request now would use 00112233 on eQAJU5SA: a request is sent to a known instance at once

    INSTANCE  PEER      RTT            STATE  REQUESTS   KNOWN  LEVEL  VERDICT      WHY
    00112233  eQAJU5SA  412 ± 38 us    ready  2 of 1024  yes    good   chosen       the best there is: 412 us away
    ffffffff  eQAJU5SA  30.0 ± 1.5 ms  ready  2 of 1024  no     -      beyond hard  30.0 ms away, beyond the hard limit of 20.0 ms

    ALLOCATOR  RTT     ORDER  ROOM  INSTANCES  WHY
    eQAJU5SA   412 us  1      yes   1 of 64    under 2.0 ms, within the soft limit of 10.0 ms
    eQAJU5SA   -       -      no    -          does not answer

    MOVED        FROM                  TO                    WHY
    1 m 1 s ago  ffffffff on eQAJU5SA  00112233 on eQAJU5SA  above the soft limit of 10.0 ms for 2.0 s
    ");
    assert_eq!(ended.err, "warning: peer eQAJU5SA did not answer in time\n");
    let narrow = daemon.run_on("explain hello", (60, 24)).await;
    assert_snapshot!(narrow.out, @r"
    hello, revision 3: soft limit 10ms (this node's), hard limit 20ms (the service's)
    A request now would use 00112233 on eQAJU5SA: a request is sent to a known instance at once

    INSTANCE  RTT            VERDICT      WHY
    00112233  412 ± 38 us    chosen       the best there is: 41…
    ffffffff  30.0 ± 1.5 ms  beyond hard  30.0 ms away, beyond …

    ALLOCATOR  RTT     ORDER  ROOM  WHY
    eQAJU5SA   412 us  1      yes   under 2.0 ms, within the so…
    eQAJU5SA   -       -      no    does not answer

    MOVED        FROM             TO              WHY
    1 m 1 s ago  ffffffff on eQ…  00112233 on e…  above the sof…
    ");
    let json = daemon.run("explain hello -o json").await.json();
    assert_eq!(json["outlook"]["action"], "ACTION_USE");
    assert_eq!(json["instances"][1]["verdict"], "VERDICT_BEYOND_HARD");
    assert_eq!(json["requirements"]["in_force"]["soft_rtt_ms"], 10);
    assert_eq!(json["allocators"][1]["rank"], 0);
    assert_eq!(daemon.run("explain other").await.exit, Exit::NotFound);
}

#[tokio::test]
async fn shells_get_scripts_that_know_the_commands() {
    let daemon = Daemon::start().await;
    for shell in ["bash", "zsh", "fish"] {
        let ended = daemon.run(&format!("completions {shell}")).await;
        assert_eq!(ended.exit, Exit::Success);
        for word in ["lcactl", "explain", "doctor", "watch"] {
            assert!(ended.out.contains(word), "{word} for {shell}");
        }
    }
}
