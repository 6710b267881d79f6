//! The demo as a process. Also what makes `cargo test` build its binary, which the
//! system tests start.

use std::{
    net::TcpListener,
    process::{Child, Command, Output},
    time::Duration,
};

use grpc_echo::proto::{Words, echo_client::EchoClient};
use tonic::transport::Endpoint;

/// Longer than a busy machine takes to start a program.
const PATIENCE: Duration = Duration::from_secs(10);

struct Demo(Child);

impl Demo {
    fn start(port: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_grpc-echo"));
        Self(command.env("SERVICE_PORT", port).spawn().expect("the demo starts"))
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _gone_already = self.0.kill();
        let _reaped_already = self.0.wait();
    }
}

#[tokio::test]
async fn it_says_back_what_it_hears_where_it_was_told_to() {
    let probe = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
    let port = probe.local_addr().expect("it is bound").port();
    drop(probe);
    let demo = Demo::start(&port.to_string());
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).expect("a URL");
    let connected = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Ok(channel) = endpoint.connect().await {
                return channel;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let mut client = EchoClient::new(connected.await.expect("it listens in time"));
    let said = client.say(Words { text: "hello".into() }).await.expect("it answers");
    assert_eq!(said.into_inner().text, "hello");
    drop(demo);
}

#[test]
fn a_port_that_is_none_is_said_to_be() {
    let Output { status, stderr, .. } = Command::new(env!("CARGO_BIN_EXE_grpc-echo"))
        .env("SERVICE_PORT", "http")
        .output()
        .expect("it ends by itself");
    assert!(!status.success());
    let said = String::from_utf8_lossy(&stderr).into_owned();
    assert!(said.starts_with("grpc-echo: "), "{said}");
}
