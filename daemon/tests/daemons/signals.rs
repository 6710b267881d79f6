//! What signals do.

use lca::api::proto::{DiagnoseRequest, node_client::NodeClient};
use rustix::process::Signal;

use crate::machine::Machine;

#[tokio::test]
async fn an_interrupt_and_a_termination_both_stop_it_politely() {
    let machine = Machine::new();
    for signal in [Signal::INT, Signal::TERM] {
        let mut registry = machine.start("registry", &[]).await;
        registry.signal(signal);
        assert_eq!(registry.ended().await.code(), Some(0), "{}", registry.err());
    }
}

#[tokio::test]
async fn a_hangup_reads_the_configuration_again_and_says_what_changed() {
    let machine = Machine::new();
    let file = machine.path("conf.json");
    std::fs::write(&file, "{}").unwrap();
    let mut registry = machine.start("registry", &["--data-dir", "r"]).await;
    let name = file.to_str().unwrap();
    let mut proxy = machine.start("proxy", &["0", "--configfile", name]).await;
    assert_eq!(
        proxy.line("network"),
        "alone: no bootstrap is configured, others join through this one"
    );
    // A file that is wrong changes nothing and is named as at the start.
    std::fs::write(&file, "{\"Perf\": {\"SoftReq\": {\"RTT\": -5}},}").unwrap();
    proxy.signal(Signal::HUP);
    proxy.says("conf.json:1:").await;
    let at = registry.line("libp2p");
    let text =
        format!("{{\"Perf\": {{\"HardReq\": {{\"RTT\": 50}}}}, \"Bootstraps\": [\"{at}\"]}}");
    std::fs::write(&file, text).unwrap();
    proxy.signal(Signal::HUP);
    proxy.says("changed: the RTT limits").await;
    proxy.says("changed: the bootstraps").await;
    proxy.says("not changed before a restart").await;
    proxy.says("registry followed").await; // found through the new bootstrap
    proxy.says("joined, not alone any more").await;
    assert_eq!(proxy.stop().await, Some(0));
    assert_eq!(registry.stop().await, Some(0));
}

#[tokio::test]
async fn a_token_that_was_removed_is_made_anew_at_a_hangup_and_the_old_one_is_none_any_more() {
    let machine = Machine::new();
    let flags = ["--data-dir", "r", "--grpc-listen", "127.0.0.1:0"];
    let mut registry = machine.start("registry", &flags).await;
    let file = machine.path("work/r/token");
    let before = std::fs::read_to_string(&file).unwrap();
    let at = registry.line("gRPC");
    let channel = lca::local::tcp::connect(at.split(',').next().unwrap().parse().unwrap());
    let mut node = NodeClient::new(channel.await.unwrap());
    let mut asked = async |token: &str| {
        let mut request = tonic::Request::new(DiagnoseRequest {});
        let token = lca::local::Token::parse(token).unwrap();
        request.metadata_mut().insert("authorization", token.bearer());
        node.diagnose(request).await.map(drop).map_err(|status| status.code())
    };
    assert_eq!(asked(&before).await, Ok(()));
    // Unless it is gone it stays.
    registry.signal(Signal::HUP);
    registry.says("configuration read again").await;
    assert_eq!(asked(&before).await, Ok(()));
    std::fs::remove_file(&file).unwrap();
    registry.signal(Signal::HUP);
    registry.says("changed: the token of gRPC").await;
    let after = std::fs::read_to_string(&file).unwrap();
    assert_eq!(asked(&after).await, Ok(()));
    assert_eq!(asked(&before).await, Err(tonic::Code::Unauthenticated), "on an open connection");
    assert_eq!(registry.stop().await, Some(0));
}

#[tokio::test]
async fn a_hangup_says_that_flags_stay() {
    let machine = Machine::new();
    let gone = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA";
    let mut registry = machine.start("registry", &["--bootstrap", gone]).await;
    registry.signal(Signal::HUP);
    registry.says("not changed: the bootstraps, which were given by --bootstrap").await;
    assert_eq!(registry.stop().await, Some(0));
}
