//! A plain HTTP/1.1 client: one connection a request, so that nothing is reused behind
//! a test's back.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// Longer than any answer of a test takes, a start that fails at its deadline included.
const PATIENCE: Duration = Duration::from_secs(90);

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// GET `target` (a path with query) from `address`, and the whole answer.
///
/// # Errors
/// If no complete answer comes.
pub async fn get(address: SocketAddr, target: &str) -> anyhow::Result<Answer> {
    send(address, Method::GET, target, Bytes::new()).await
}

/// As [`get`], asking who answered and where the time went (`LCA-Debug: 1`).
///
/// # Errors
/// If no complete answer comes.
pub async fn get_debug(address: SocketAddr, target: &str) -> anyhow::Result<Answer> {
    send_debug(address, Method::GET, target).await
}

/// As [`get_debug`], with another method and no body. A `POST` that was severed is not
/// repeated elsewhere.
///
/// # Errors
/// If no complete answer comes.
pub async fn send_debug(
    address: SocketAddr,
    method: Method,
    target: &str,
) -> anyhow::Result<Answer> {
    let request = request(address, method, target).header("lca-debug", "1");
    whole(open_request(address, request.body(Full::default())?)).await
}

/// Sends a request with a body and waits for the whole answer.
///
/// # Errors
/// If no complete answer comes.
pub async fn send(
    address: SocketAddr,
    method: Method,
    target: &str,
    body: Bytes,
) -> anyhow::Result<Answer> {
    whole(open(address, method, target, body)).await
}

/// The whole answer of which `opened` brings the head.
async fn whole(
    opened: impl Future<Output = anyhow::Result<http::Response<Incoming>>>,
) -> anyhow::Result<Answer> {
    let answer = async {
        let response = opened.await?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.context("reading the body")?.to_bytes();
        Ok(Answer { status: head.status, headers: head.headers, body })
    };
    timeout(PATIENCE, answer)
        .await
        .with_context(|| format!("no whole answer within {PATIENCE:?}"))?
}

/// Sends a request and returns as soon as the head of the answer is there. Dropping the
/// response closes the connection.
///
/// # Errors
/// If no head comes.
pub async fn open(
    address: SocketAddr,
    method: Method,
    target: &str,
    body: Bytes,
) -> anyhow::Result<http::Response<Incoming>> {
    open_request(address, request(address, method, target).body(Full::new(body))?).await
}

fn request(address: SocketAddr, method: Method, target: &str) -> http::request::Builder {
    let request = Request::builder().method(method).uri(target);
    request.header(header::HOST, address.to_string()).header(header::CONNECTION, "close")
}

async fn open_request(
    address: SocketAddr,
    request: Request<Full<Bytes>>,
) -> anyhow::Result<http::Response<Incoming>> {
    let stream = TcpStream::connect(address).await.context("connecting")?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    sender.send_request(request).await.context("waiting for the answer")
}

/// Writes bytes to a new connection and reads until the other side closes.
///
/// # Errors
/// If the connection fails in another way than being closed.
pub async fn raw(address: SocketAddr, bytes: &[u8]) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(bytes).await?;
    let mut answer = Vec::new();
    // A reset after the answer is a close all the same.
    let _closed = timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .with_context(|| format!("the connection is still open after {PATIENCE:?}"))?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
