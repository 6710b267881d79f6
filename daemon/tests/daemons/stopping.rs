//! What a stop does to requests that are open, at the front and at the ingress: those that
//! end in time are answered, and the exit code says whether any was cut.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    time::Duration,
};

use lca::{
    api::proto::{PutServiceRequest, ServiceSpec, registry_client::RegistryClient},
    testing::eventually,
};
use rustix::process::Signal;

use crate::machine::{Machine, Process};

/// Longer than a daemon takes to stop, on a busy machine.
const SOON: Duration = Duration::from_secs(30);

/// A registry, an application outside, who represents it, and a front beside that.
struct Net {
    _machine: Machine,
    registry: Process,
    application: TcpListener,
    ingress: Process,
    front: Process,
}

impl Net {
    async fn start() -> Self {
        let machine = Machine::new();
        let flags = ["--data-dir", "r", "--grpc-listen", "127.0.0.1:0"];
        let registry = machine.start("registry", &flags).await;
        let application = TcpListener::bind("127.0.0.1:0").unwrap();
        application.set_nonblocking(true).unwrap();
        let token = std::fs::read_to_string(machine.path("work/r/token")).unwrap();
        let at = registry.line("gRPC");
        let channel = lca::local::tcp::connect(at.split(',').next().unwrap().parse().unwrap());
        let spec = ServiceSpec { name: "svc".into(), ..Default::default() };
        let put = PutServiceRequest { spec: Some(spec), if_revision: None };
        let mut put = tonic::Request::new(put);
        let token = lca::local::Token::parse(&token).unwrap();
        put.metadata_mut().insert("authorization", token.bearer());
        RegistryClient::new(channel.await.unwrap()).put_service(put).await.unwrap();
        let joins = registry.line("libp2p");
        let address = application.local_addr().unwrap().to_string();
        let server = ["--data-dir", "i", "--bootstrap", &joins, "0", "svc", &address];
        let ingress = machine.start("proxy", &server).await;
        let front = machine.start("proxy", &["--data-dir", "f", "--bootstrap", &joins, "0"]).await;
        Self { _machine: machine, registry, application, ingress, front }
    }

    /// A request that has come to the application and is not answered yet: both ends.
    async fn open(&self) -> (TcpStream, TcpStream) {
        let front = self.front.line("front").replace("http://", "");
        // Asked again until the service is announced. Nothing else connects and speaks.
        eventually("the application to be asked", async || {
            let mut client = TcpStream::connect(&front).unwrap();
            client.set_read_timeout(Some(SOON)).unwrap();
            let get = b"GET /svc/x HTTP/1.1\r\nHost: localhost\r\n\r\n";
            client.write_all(get).unwrap();
            let asked = tokio::time::timeout(Duration::from_secs(3), self.asked()).await;
            asked.map(|application| (client, application)).map_err(|_| "nobody was asked")
        })
        .await
    }

    /// The first connection on which a request comes; others only look whether it is there.
    async fn asked(&self) -> TcpStream {
        let mut looks: Vec<TcpStream> = Vec::new();
        loop {
            while let Ok((stream, _)) = self.application.accept() {
                stream.set_nonblocking(true).unwrap();
                looks.push(stream);
            }
            let speaks = |mut stream: &TcpStream| matches!(stream.read(&mut [0; 4096]), Ok(1..));
            if let Some(at) = looks.iter().position(speaks) {
                return looks.swap_remove(at);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn stopped(&mut self, front: bool) -> &mut Process {
        if front { &mut self.front } else { &mut self.ingress }
    }

    async fn end(mut self, front: bool) {
        assert_eq!(self.stopped(!front).stop().await, Some(0), "the other");
        assert_eq!(self.registry.stop().await, Some(0));
    }
}

/// All that comes until the connection ends.
fn rest(mut client: TcpStream) -> String {
    let mut said = Vec::new();
    let _reset_or_end = client.read_to_end(&mut said);
    String::from_utf8(said).unwrap()
}

#[tokio::test]
async fn what_is_open_at_a_stop_is_answered_and_the_exit_code_is_0() {
    for front in [true, false] {
        let mut net = Net::start().await;
        let (client, mut application) = net.open().await;
        net.stopped(front).signal(Signal::TERM);
        net.stopped(front).says("stopping").await;
        application.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").unwrap();
        if front {
            let said = rest(client);
            assert!(said.starts_with("HTTP/1.1 200") && said.ends_with("ok"), "{said}");
            assert!(said.contains("connection: close"), "{said}");
        } else {
            let (mut client, mut said) = (client, [0; 12]);
            client.read_exact(&mut said).unwrap();
            assert_eq!(&said, b"HTTP/1.1 200");
        }
        let process = net.stopped(front);
        let ended = process.ended().await.code();
        assert_eq!(ended, Some(0), "front: {front}: {}", process.err());
        net.end(front).await;
    }
}

#[tokio::test]
async fn what_is_cut_at_a_stop_is_seen_by_its_client_and_in_the_exit_code() {
    for front in [true, false] {
        let mut net = Net::start().await;
        let (client, application) = net.open().await;
        net.stopped(front).signal(Signal::TERM);
        let process = net.stopped(front);
        let ended = process.ended().await.code();
        assert_eq!(ended, Some(1), "front: {front}: {}", process.err());
        let said = if front { rest(client) } else { head(client) };
        let expected = if front { "" } else { "HTTP/1.1 502" };
        assert!(said.starts_with(expected) && !said.contains(" 200 "), "front: {front}: {said}");
        drop(application);
        net.end(front).await;
    }
}

fn head(mut client: TcpStream) -> String {
    let mut said = Vec::new();
    while !said.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        said.extend(byte);
    }
    String::from_utf8(said).unwrap()
}
