//! What the demo answers. Bodies stream in both directions, so that whoever forwards
//! them can be seen to stream as well.

use std::{convert::Infallible, env, io, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// What `/env` tells, in this order.
const TOLD: [&str; 8] = [
    "SERVICE_PORT",
    "PROXY_IP",
    "PROXY_PORT",
    "P2P_BOOTSTRAPS",
    "LCA_SERVICE",
    "LCA_INSTANCE_ID",
    "LISTEN_FDS",
    "LISTEN_PID",
];
/// Longest `/slow` and pause of `/stream`, in milliseconds: an hour is for ever in a test.
const MAX_WAIT_MS: u64 = 3_600_000;

type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// Answers one request.
pub(crate) async fn answer(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    Ok(match path.as_str() {
        "/" | "/hello" => text(StatusCode::OK, "Hello, world\n"),
        "/slow" => {
            tokio::time::sleep(Duration::from_millis(number(&query, "ms").min(MAX_WAIT_MS))).await;
            text(StatusCode::OK, "Hello at last\n")
        }
        "/env" => text(StatusCode::OK, told()),
        "/echo" => Response::new(request.into_body().map_err(Into::into).boxed_unsync()),
        "/stream" => Response::new(chunks(number(&query, "chunks"), number(&query, "ms"))),
        _ => match path.strip_prefix("/call/") {
            Some(target) => call(target, &query, request.method()).await.unwrap_or_else(|error| {
                text(StatusCode::BAD_GATEWAY, format!("cannot call {target}: {error}\n"))
            }),
            None => text(StatusCode::NOT_FOUND, format!("nothing at {path}\n")),
        },
    })
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(body.into()).map_err(Into::into).boxed_unsync());
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

/// The number called `name` in a query, else 0.
fn number(query: &str, name: &str) -> u64 {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == name).and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
}

/// One `NAME=value` a line of what an instance is told, without what it was not.
fn told() -> String {
    let lines = TOLD.iter().filter_map(|name| Some(format!("{name}={}\n", env::var(name).ok()?)));
    lines.collect()
}

/// `count` lines, each after a pause.
fn chunks(count: u64, pause_ms: u64) -> Body {
    let pause = Duration::from_millis(pause_ms.min(MAX_WAIT_MS));
    let chunks = stream::iter(0..count).then(move |index| async move {
        tokio::time::sleep(pause).await;
        Ok(Frame::data(Bytes::from(format!("chunk {index}\n"))))
    });
    StreamBody::new(chunks).boxed_unsync()
}

/// Calls `{service}/{path}` through the front this instance was given.
async fn call(target: &str, query: &str, method: &Method) -> io::Result<Response<Body>> {
    let told = |name: &str| {
        env::var(name).map_err(|_| io::Error::other(format!("{name} is not in the environment")))
    };
    let front = format!("{}:{}", told("PROXY_IP")?, told("PROXY_PORT")?);
    let stream = TcpStream::connect(&front).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(to_io)?;
    tokio::spawn(connection);
    let question = if query.is_empty() { "" } else { "?" };
    let request = Request::builder()
        .method(method)
        .uri(format!("/{target}{question}{query}"))
        .header(header::HOST, &front)
        .body(Full::<Bytes>::default())
        .map_err(to_io)?;
    let (parts, body) = sender.send_request(request).await.map_err(to_io)?.into_parts();
    let mut response = Response::new(body.map_err(Into::into).boxed_unsync());
    *response.status_mut() = parts.status;
    if let Some(kind) = parts.headers.get(header::CONTENT_TYPE) {
        response.headers_mut().insert(header::CONTENT_TYPE, kind.clone());
    }
    Ok(response)
}

fn to_io(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::other(error)
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    async fn ask(request: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(crate::serve(listener));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn get(path: &str) -> String {
        ask(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await
    }

    #[tokio::test]
    async fn it_says_hello() {
        for path in ["/", "/hello"] {
            let answer = get(path).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            assert!(answer.ends_with("\r\n\r\nHello, world\n"), "{answer}");
        }
        assert!(get("/nowhere").await.starts_with("HTTP/1.1 404"));
        assert!(get("/slow?ms=1").await.contains("at last"));
    }

    #[tokio::test]
    async fn it_streams_and_echoes() {
        let answer = get("/stream?chunks=3&ms=1").await;
        assert!(answer.contains("chunk 0\n") && answer.contains("chunk 2\n"), "{answer}");
        let post =
            "POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 4\r\n\r\nback";
        assert!(ask(post).await.ends_with("back"));
    }

    #[tokio::test]
    async fn a_call_without_a_front_says_what_is_missing() {
        let answer = get("/call/other/x").await;
        assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("PROXY_IP"), "{answer}");
    }
}
