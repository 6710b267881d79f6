//! What a daemon does not start with: the reason, the remedy, a code, and nothing half
//! started.

use std::{fs, os::unix::fs::PermissionsExt as _};

use crate::machine::Machine;

#[tokio::test]
async fn a_port_that_is_taken_is_named_with_its_holder_and_nothing_starts() {
    let machine = Machine::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap();
    let port = at.port().to_string();
    let libp2p = format!("/ip4/127.0.0.1/tcp/{port}");
    for (daemon, flags) in [
        ("proxy", vec![port.as_str()]),
        ("registry", vec!["--mesh-listen", ""]),
        ("allocator", vec!["--listen", libp2p.as_str()]),
    ] {
        let address = at.to_string();
        let flags: Vec<_> =
            flags.into_iter().map(|flag| if flag.is_empty() { &address } else { flag }).collect();
        let (code, out, err) = machine.run(machine.daemon(daemon, &flags));
        assert_eq!((code, out.as_str()), (5, ""), "{err}");
        assert!(err.contains(&format!("has port {port}")), "{err}");
        assert!(err.contains(&format!("(pid {})", std::process::id())), "{err}");
        assert!(err.contains("hint: "), "{err}");
        assert!(!err.contains("aiting for requests"), "{err}");
        let left = fs::read_dir(machine.path("lca")).map_or(0, |sockets| sockets.count());
        assert_eq!(left, 0, "a socket stays");
    }
}

#[test]
fn two_flags_with_one_port_are_refused_before_one_is_taken_for_the_others_holder() {
    let machine = Machine::new();
    let flags = [
        "4201",
        "--listen",
        "/ip4/127.0.0.1/tcp/4001",
        "--mesh-listen",
        "127.0.0.1:4001",
        "--grpc-listen",
        "127.0.0.1:4201",
        "--metrics-listen",
        "127.0.0.2:4001",
    ];
    let (code, out, err) = machine.run(machine.daemon("proxy", &flags));
    assert_eq!((code, out.as_str()), (2, ""));
    assert_eq!(err.matches("name the same port").count(), 2, "{err}");
    assert!(err.contains("--listen and --mesh-listen name the same port, 4001"), "{err}");
    assert!(err.contains("PORT and --grpc-listen name the same port, 4201"), "{err}");
}

#[tokio::test]
async fn two_daemons_in_one_folder_are_refused_whatever_they_are() {
    let machine = Machine::new();
    for (daemon, port) in [("registry", None), ("allocator", None), ("proxy", Some("0"))] {
        let flags: Vec<_> = port.into_iter().chain(["--data-dir", "data"]).collect();
        let mut first = machine.start(daemon, &flags).await;
        let boots = || fs::read(machine.path("work/data/identity.boot")).unwrap();
        let before = boots();
        for (other, port) in [("registry", None), ("allocator", None), ("proxy", Some("0"))] {
            let flags: Vec<_> = port.into_iter().chain(["--data-dir", "data"]).collect();
            let (code, out, err) = machine.run(machine.daemon(other, &flags));
            assert_eq!((code, out.as_str()), (5, ""), "{err}");
            let who = format!("work/data is in use by another daemon (pid {})", first.id());
            assert!(err.contains(&who) && err.contains("--data-dir"), "{err}");
        }
        assert_eq!(boots(), before, "it had begun to be a node");
        assert_eq!(first.stop().await, Some(0));
    }
}

#[tokio::test]
async fn a_key_that_others_could_read_is_refused_with_the_remedy() {
    let machine = Machine::new();
    let mut first = machine.start("registry", &[]).await;
    let peer = first.line("PeerId");
    first.stop().await;
    let key = machine.path(".local/share/lca/registry/identity");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    for flags in [&[][..], &["--check"]] {
        let (code, out, err) = machine.run(machine.daemon("registry", flags));
        assert_eq!((code, out.as_str()), (2, ""));
        assert!(err.contains("can be read by others") && err.contains("chmod 600"), "{err}");
    }
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let mut again = machine.start("registry", &[]).await;
    assert_eq!(again.line("PeerId"), peer);
    again.stop().await;
    fs::write(&key, "").unwrap();
    let (code, _, err) = machine.run(machine.daemon("registry", &[]));
    assert_eq!(code, 2);
    assert!(err.contains("is empty"), "{err}");
    let (code, _, err) = machine.run(machine.daemon("registry", &["--keyfile", "."]));
    assert_eq!(code, 2);
    assert!(err.contains("is not a file"), "{err}");
}

#[test]
fn a_pre_shared_key_is_refused_and_not_shown() {
    let machine = Machine::new();
    let mut by_environment = machine.daemon("proxy", &["0"]);
    by_environment.env("P2P_PSK", "secret-word");
    for command in [by_environment, machine.daemon("proxy", &["0", "--psk", "secret-word"])] {
        let (code, out, err) = machine.run(command);
        assert_eq!((code, out.as_str()), (2, ""));
        assert!(err.contains("not supported yet") && !err.contains("secret-word"), "{err}");
    }
}

#[tokio::test]
async fn what_other_machines_can_reach_must_be_asked_for() {
    let machine = Machine::new();
    let everywhere = ["--listen", "/ip4/0.0.0.0/tcp/0", "--mesh-listen", "0.0.0.0:0"];
    let (code, out, err) = machine.run(machine.daemon("registry", &everywhere));
    assert_eq!((code, out.as_str()), (2, ""));
    assert_eq!(err.matches("--insecure-open-network").count(), 2, "{err}");
    let flags: Vec<_> = everywhere.into_iter().chain(["--insecure-open-network"]).collect();
    let mut open = machine.start("registry", &flags).await;
    assert_eq!(open.stop().await, Some(0));
    // A token in plaintext does not go over a network, however open that is.
    let flags = ["--insecure-open-network", "--grpc-listen", "0.0.0.0:0"];
    let (code, _, err) = machine.run(machine.daemon("registry", &flags));
    assert_eq!(code, 2);
    assert!(err.contains("--grpc-listen"), "{err}");
}
