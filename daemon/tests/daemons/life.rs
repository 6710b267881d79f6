//! Starting, saying so, joining, stopping, and starting again.

use crate::machine::Machine;

#[tokio::test]
async fn each_daemon_says_who_it_is_and_where_and_stops_with_nothing_left() {
    let machine = Machine::new();
    for (name, arguments) in
        [("registry", &[][..]), ("allocator", &[]), ("proxy", &["0", "my-app", "127.0.0.1"])]
    {
        let mut daemon = machine.start(name, arguments).await;
        assert!(daemon.line("PeerId").starts_with("12D3Koo"));
        assert!(daemon.line("libp2p").ends_with(&daemon.line("PeerId")));
        assert!(daemon.line("mesh").starts_with("127.0.0.1:"));
        assert_eq!(daemon.line("bootstraps"), "none configured");
        assert!(daemon.line("network").starts_with("alone"));
        assert_eq!(daemon.line("peers"), "0 known");
        let socket = std::path::PathBuf::from(daemon.line("local API"));
        assert!(socket.exists());
        if name == "proxy" {
            assert!(daemon.line("front").starts_with("http://127.0.0.1:"));
            assert_eq!(daemon.line("represents"), "my-app at 127.0.0.1:8080");
        }
        assert_eq!(daemon.stop().await, Some(0), "{}", daemon.err());
        assert!(!socket.exists(), "the socket stays");
    }
}

#[tokio::test]
async fn a_daemon_joins_through_a_flag_a_file_or_the_environment_in_this_order() {
    let machine = Machine::new();
    let mut registry = machine.start("registry", &[]).await;
    let at = registry.line("libp2p");
    // Nobody is there.
    let nobody = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA";
    let file = |name: &str, bootstrap: &str| {
        let path = machine.path(name);
        std::fs::write(&path, format!("{{\"Bootstraps\": [\"{bootstrap}\"]}}")).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (right, wrong) = (file("right.json", &at), file("wrong.json", nobody));
    for (dir, flags, environment) in [
        ("a", vec!["--bootstrap", &at, "--configfile", &wrong], nobody),
        ("b", vec!["--configfile", &right], nobody),
        ("c", vec![], at.as_str()),
    ] {
        let mut command = machine.daemon("allocator", &["--data-dir", dir]);
        command.args(flags).env("P2P_BOOTSTRAPS", environment);
        let mut allocator = machine.spawn(command);
        allocator.ready().await;
        assert_eq!(allocator.line("bootstraps"), "1 of 1 reached");
        assert_eq!(allocator.line("network"), "joined");
        assert_eq!(allocator.line("peers"), "1 known");
        assert_eq!(allocator.stop().await, Some(0));
    }
    assert_eq!(registry.stop().await, Some(0));
}

#[tokio::test]
async fn a_daemon_whose_bootstrap_is_gone_serves_alone_and_says_so() {
    let machine = Machine::new();
    let gone = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA";
    let mut proxy = machine.start("proxy", &["0", "--bootstrap", gone]).await;
    assert_eq!(proxy.line("bootstraps"), "0 of 1 reached");
    assert!(proxy.out().contains(&format!("not yet: {gone}")), "{}", proxy.out());
    assert!(proxy.line("network").starts_with("alone: no bootstrap has answered"));
    assert_eq!(proxy.stop().await, Some(0));
}

#[tokio::test]
async fn identity_and_ports_are_kept_over_a_restart_and_flags_win() {
    let machine = Machine::new();
    let places = |daemon: &crate::machine::Process| {
        (daemon.line("PeerId"), daemon.line("libp2p"), daemon.line("mesh"))
    };
    let mut first = machine.start("allocator", &[]).await;
    let before = places(&first);
    first.signal(rustix::process::Signal::KILL);
    first.ended().await;
    let mut again = machine.start("allocator", &[]).await;
    assert_eq!(places(&again), before);
    again.stop().await;
    // Somebody else has taken it meanwhile.
    let _taken = std::net::TcpListener::bind(&before.2).unwrap();
    let mut elsewhere = machine.start("allocator", &[]).await;
    assert_eq!(places(&elsewhere).1, before.1);
    assert_ne!(places(&elsewhere).2, before.2);
    assert!(elsewhere.err().contains("the port of the last start is taken"));
    elsewhere.stop().await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut chosen = machine.start("allocator", &["--mesh-listen", &free.to_string()]).await;
    assert_eq!(chosen.line("mesh"), free.to_string());
    chosen.stop().await;
}

#[tokio::test]
async fn an_ephemeral_identity_is_kept_nowhere() {
    let machine = Machine::new();
    let mut first = machine.start("registry", &["--ephemeral"]).await;
    let before = first.line("PeerId");
    first.stop().await;
    assert!(!machine.path(".local/share/lca/registry/identity").exists());
    let mut second = machine.start("registry", &["--ephemeral"]).await;
    assert_ne!(second.line("PeerId"), before);
    second.stop().await;
}

#[tokio::test]
async fn a_service_manager_is_told() {
    let machine = Machine::new();
    let path = machine.path("notify");
    let manager = tokio::net::UnixDatagram::bind(&path).unwrap();
    let mut command = machine.daemon("proxy", &["0"]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000");
    let mut proxy = machine.spawn(command);
    let said = async |wanted: &str| {
        let mut bytes = [0; 200];
        let waited = std::time::Duration::from_secs(60);
        let hearing = async {
            loop {
                let length = manager.recv(&mut bytes).await.unwrap();
                if bytes[..length].starts_with(wanted.as_bytes()) {
                    return;
                }
            }
        };
        tokio::time::timeout(waited, hearing).await.expect(wanted);
    };
    said("READY=1\nSTATUS=").await;
    assert!(proxy.out().ends_with("Waiting for requests\n"), "ready before it was");
    said("WATCHDOG=1").await;
    proxy.signal(rustix::process::Signal::HUP);
    said("RELOADING=1\nMONOTONIC_USEC=").await;
    said("READY=1").await;
    proxy.signal(rustix::process::Signal::TERM);
    said("STOPPING=1").await;
    assert_eq!(proxy.ended().await.code(), Some(0));
}
