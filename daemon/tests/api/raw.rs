//! A daemon, and a gRPC client that sends any bytes.

use std::net::SocketAddr;

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::{RecvStream, client::SendRequest};
use http::{HeaderMap, Request};
use lca::{Error, local::Token, testing::eventually};
use lca_daemon::{Settings, registry};
use prost::Message;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tonic::{Code, Status};

/// A registry's daemon with gRPC by TCP; killed when dropped.
pub(crate) struct Daemon {
    _app: registry::App,
    pub(crate) address: SocketAddr,
    pub(crate) dir: TempDir,
    authorization: String,
}

impl Daemon {
    /// One that answers for its registry.
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = Settings::loopback(dir.path().join("data"), dir.path().join("run"));
        settings.grpc_listen = Some(([127, 0, 0, 1], 0).into());
        let app = registry::App::build(settings).await.unwrap();
        let address = app.addresses().grpc.expect("it was asked for");
        let token = Token::load(&Token::file(&dir.path().join("data"))).unwrap();
        let authorization = token.bearer().to_str().unwrap().to_owned();
        let daemon = Self { _app: app, address, dir, authorization };
        let client = daemon.client().await;
        eventually("the registry to be found", async || {
            let reply = daemon.call(&client, "lca.v1.Registry/ListServices", &[]).await;
            if reply.code == Code::Ok { Ok(()) } else { Err(reply.message()) }
        })
        .await;
        daemon
    }

    pub(crate) async fn client(&self) -> SendRequest<Bytes> {
        connect(self.address, 1 << 20).await
    }

    /// A call with the token.
    pub(crate) async fn call(
        &self,
        client: &SendRequest<Bytes>,
        method: &str,
        message: &[u8],
    ) -> Reply {
        call(client, method, &[("authorization", &self.authorization)], framed(message)).await
    }

    /// A call with the token and one more header.
    pub(crate) async fn call_with(
        &self,
        client: &SendRequest<Bytes>,
        method: &str,
        header: (&str, &str),
        message: &[u8],
    ) -> Reply {
        let headers = [("authorization", &*self.authorization), header];
        call(client, method, &headers, framed(message)).await
    }
}

/// A connection whose streams may have so many bytes unread.
pub(crate) async fn connect(address: SocketAddr, window: u32) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let connecting = h2::client::Builder::new().initial_window_size(window).handshake(stream);
    let (client, connection) = connecting.await.unwrap();
    tokio::spawn(connection);
    client
}

/// What was answered.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) code: Code,
    pub(crate) status: Status,
    /// The frames of all messages.
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn message(&self) -> String {
        format!("{:?}: {}", self.code, self.status.message())
    }

    pub(crate) fn hint(&self) -> String {
        Error::from(self.status.clone()).hint_text().unwrap_or_default().to_owned()
    }

    /// The only message.
    pub(crate) fn decoded<M: Message + Default>(&self) -> M {
        M::decode(&self.body[5..]).unwrap()
    }
}

/// A message as it stands in the body.
pub(crate) fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(message.len().try_into().unwrap());
    frame.put_slice(message);
    frame.freeze()
}

pub(crate) async fn call(
    client: &SendRequest<Bytes>,
    method: &str,
    headers: &[(&str, &str)],
    body: Bytes,
) -> Reply {
    let answer = send(client, method, headers, body).await.unwrap();
    assert_eq!(answer.status(), 200, "gRPC failures are not HTTP's");
    let (head, body) = answer.into_parts();
    to_end(Some(&head.headers), body).await
}

/// A stream that has begun.
pub(crate) async fn open(
    client: &SendRequest<Bytes>,
    method: &str,
    headers: &[(&str, &str)],
    body: Bytes,
) -> RecvStream {
    send(client, method, headers, body).await.unwrap().into_body()
}

/// Reads a stream to its end.
pub(crate) async fn to_end(head: Option<&HeaderMap>, mut body: RecvStream) -> Reply {
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        bytes.extend_from_slice(&data);
    }
    let trailers = body.trailers().await.unwrap();
    let said = trailers.as_ref().or(head).expect("an end has trailers");
    let status = Status::from_header_map(said).expect("there is a grpc-status");
    Reply { code: status.code(), status, body: bytes }
}

async fn send(
    client: &SendRequest<Bytes>,
    method: &str,
    headers: &[(&str, &str)],
    mut body: Bytes,
) -> Result<http::Response<RecvStream>, h2::Error> {
    let mut request = Request::post(format!("http://localhost/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut client = client.clone().ready().await?;
    let (answer, mut stream) = client.send_request(request.body(()).unwrap(), false)?;
    // As much at a time as there is room for; who answers early wants no more.
    let sending = async {
        while !body.is_empty() {
            stream.reserve_capacity(body.len());
            match std::future::poll_fn(|cx| stream.poll_capacity(cx)).await {
                Some(Ok(room)) => {
                    let part = body.split_to(room.min(body.len()));
                    if stream.send_data(part, body.is_empty()).is_err() {
                        return;
                    }
                }
                _ => return,
            }
        }
    };
    let (answer, ()) = tokio::join!(answer, sending);
    answer
}
