//! `--check`, and that all that is wrong is said at once.

use crate::machine::Machine;

#[test]
fn a_check_prints_what_would_be_used_and_makes_nothing() {
    let machine = Machine::new();
    let conf = machine.path("conf.json");
    std::fs::write(&conf, "{\"Perf\": {\"SoftReq\": {\"RTT\": 100}}}").unwrap();
    let flags =
        ["--check", "--cpu", "1.5", "--keep-instances", "--rcache-ttl", "60", "--configfile"];
    let mut command = machine.daemon("allocator", &flags);
    command.arg(&conf);
    let (code, out, err) = machine.run(command);
    assert_eq!((code, err.as_str()), (0, ""));
    let shown: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(shown["daemon"], "allocator");
    assert_eq!(shown["configuration"]["Perf"]["SoftReq"]["RTT"], 100);
    assert_eq!(shown["cpu_millis"], 1500);
    assert_eq!(shown["keep_instances"], true);
    assert_eq!(shown["spec_ttl_ms"], 60_000);
    assert!(!machine.path(".local").exists(), "a check makes no folder");
}

#[test]
fn everything_that_is_wrong_is_said_at_once_with_its_place() {
    let machine = Machine::new();
    let conf = machine.path("conf.json");
    let text = "{\n  \"Perf\": {\"SoftReq\": {\"RTT\": -5}, \"HardReq\": {\"RTT\": \"1\"}},\n  \"Nonsense\": 1\n}\n";
    std::fs::write(&conf, text).unwrap();
    let key = machine.path("key");
    std::fs::write(&key, "").unwrap();
    for check in [true, false] {
        let flags = [
            "notaport",
            "my_app!",
            "localhost:80",
            "--bootstrap",
            "nonsense",
            "--psk",
            "secret-word",
            "--algo",
            "RSA",
            "--bits",
            "2048",
            "--rcache-ttl",
            "-1",
            "--listen",
            "127.0.0.1:1",
            "--mesh-listen",
            "10.0.0.1:1",
            "--advertise",
            "0.0.0.0",
            "--grpc-listen",
            "0.0.0.0:1",
            "--metrics-listen",
            "x",
            "--worker-threads",
            "0",
        ];
        let mut command = machine.daemon("proxy", &flags);
        command.arg("--configfile").arg(&conf).arg("--keyfile").arg(&key);
        command.args(check.then_some("--check"));
        let (code, out, err) = machine.run(command);
        assert_eq!((code, out.as_str()), (2, ""));
        for wanted in [
            "PORT: \"notaport\"",
            "SERVICE: ",
            "ADDRESS: \"localhost:80\"",
            "--bootstrap: ",
            "--psk: ",
            "--algo: \"RSA\"",
            "--bits: \"2048\"",
            "--rcache-ttl: ",
            "--listen: ",
            "--mesh-listen: ",
            "--advertise: ",
            "--grpc-listen: ",
            "--metrics-listen: ",
            "--worker-threads: ",
            "conf.json:2:",
            "conf.json:3:",
            "the key file",
            "hint: ",
        ] {
            assert!(err.contains(wanted), "no {wanted} in {err}");
        }
        assert_eq!(err.matches("conf.json:2:").count(), 2, "{err}");
        assert!(!err.contains("secret-word"), "{err}");
    }
}

#[test]
fn every_wrong_bootstrap_of_the_environment_is_named() {
    let machine = Machine::new();
    let mut command = machine.daemon("registry", &["--check"]);
    command.env("P2P_BOOTSTRAPS", "nonsense,/ip4/1.2.3.4/tcp/x");
    let (code, out, err) = machine.run(command);
    assert_eq!((code, out.as_str()), (2, ""));
    assert_eq!(err.matches("error: P2P_BOOTSTRAPS: bootstrap ").count(), 2, "{err}");
    assert_eq!(err.matches("hint: write it as").count(), 1, "{err}");
}

#[test]
fn the_version_names_the_commit_where_there_is_one() {
    let machine = Machine::new();
    let (code, out, _) = machine.run(machine.daemon("registry", &["--version"]));
    assert_eq!((code, out), (0, format!("registry {}\n", lca_daemon::VERSION)));
    let repository = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../.git");
    assert_eq!(lca_daemon::VERSION.contains(" ("), repository.exists());
}

#[test]
fn the_help_has_examples_and_exit_codes() {
    let machine = Machine::new();
    for daemon in ["registry", "allocator", "proxy"] {
        let (code, out, _) = machine.run(machine.daemon(daemon, &["--help"]));
        assert_eq!(code, 0);
        assert!(out.contains("Examples:") && out.contains("Exit codes:"), "{out}");
    }
}
