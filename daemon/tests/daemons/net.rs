//! A service whose application is outside, the proxy that represents it, and a front beside
//! that: three real daemons and both ends of a request.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    time::Duration,
};

use lca::{
    api::proto::{PutServiceRequest, ServiceSpec, registry_client::RegistryClient},
    testing::eventually,
};

use crate::machine::{Machine, Process};

/// Longer than a daemon takes to stop, on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// A registry, an application outside, who represents it, and a front beside that.
pub(crate) struct Net {
    _machine: Machine,
    registry: Process,
    application: TcpListener,
    ingress: Process,
    front: Process,
}

impl Net {
    pub(crate) async fn start() -> Self {
        Self::configured("{}", "{}").await
    }

    /// With these configuration files of the front and of the ingress.
    pub(crate) async fn configured(front: &str, ingress: &str) -> Self {
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
        let joined = async |dir: &str, conf: &str, more: &[&str]| {
            let file = machine.path(&format!("{dir}.json"));
            std::fs::write(&file, conf).unwrap();
            let file = file.to_str().unwrap();
            let flags = ["--data-dir", dir, "--bootstrap", &joins, "--configfile", file, "0"];
            machine.start("proxy", &[&flags[..], more].concat()).await
        };
        let ingress = joined("i", ingress, &["svc", &address]).await;
        let front = joined("f", front, &[]).await;
        Self { _machine: machine, registry, application, ingress, front }
    }

    pub(crate) fn front_address(&self) -> String {
        self.front.line("front").replace("http://", "")
    }

    /// A request that has come to the application and is not answered yet: both ends.
    pub(crate) async fn open(&self) -> (TcpStream, TcpStream) {
        let front = self.front_address();
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

    /// The front, or the ingress.
    pub(crate) fn stopped(&mut self, front: bool) -> &mut Process {
        if front { &mut self.front } else { &mut self.ingress }
    }

    /// Stops the others, which nothing was wrong with.
    pub(crate) async fn end(mut self, front: bool) {
        assert_eq!(self.stopped(!front).stop().await, Some(0), "the other");
        assert_eq!(self.registry.stop().await, Some(0));
    }
}

/// All that comes until the connection ends.
pub(crate) fn rest(mut client: TcpStream) -> String {
    let mut said = Vec::new();
    let _reset_or_end = client.read_to_end(&mut said);
    String::from_utf8(said).unwrap()
}

/// The head of an answer.
pub(crate) fn head(client: &mut TcpStream) -> String {
    let mut said = Vec::new();
    while !said.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        said.extend(byte);
    }
    String::from_utf8(said).unwrap()
}
