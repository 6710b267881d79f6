//! The last link: a real request through the front of the daemon that was asked, or,
//! where it has none, an instance that confirms that it is there.

use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use lca::{ServiceName, api::proto::DiagnoseResponse};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};

use super::Link;
use crate::units::show_duration;

const NAME: &str = "round trip";
/// Longest a request may take: most services start in less, and the doctor is to say
/// something within 10 s.
const REQUEST: Duration = Duration::from_millis(4500);
/// What is read of an answer that is an explanation.
const MAX_BODY: usize = 64 << 10;

pub(super) async fn link(told: &DiagnoseResponse, service: &ServiceName) -> Link {
    if told.front.is_empty() {
        let fix =
            format!("ask a proxy: --address names its socket; or `lcactl allocate {service}`");
        return Link::broken(NAME, "this daemon has no front to send a request through", fix);
    }
    let begun = Instant::now();
    let url = format!("http://{}/{service}/", told.front);
    let fix = || format!("`lcactl instances --all {service}` and `lcactl logs` tell more");
    match timeout(REQUEST, get(&told.front, service)).await {
        Ok(Ok((status, None))) => {
            let took = show_duration(begun.elapsed());
            Link::ok(NAME, format!("{url} answered {} in {took}", status.as_u16()))
        }
        Ok(Ok((status, Some(problem)))) => {
            Link::broken(NAME, format!("{url}: {}: {problem}", status.as_u16()), fix())
        }
        Ok(Err(error)) => Link::broken(NAME, format!("{url}: {error}"), fix()),
        Err(_) => Link::broken(NAME, format!("{url} was not answered within {REQUEST:?}"), fix()),
    }
}

/// What came back, and why if it is the front's own refusal: what the program itself
/// answers, good or bad, has made the whole way.
async fn get(
    front: &str,
    service: &ServiceName,
) -> Result<(StatusCode, Option<String>), Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(front).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(format!("/{service}/"))
        .header(header::HOST, front)
        .header(header::USER_AGENT, concat!("lcactl/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let kind = response.headers().get(header::CONTENT_TYPE);
        if kind.is_none_or(|kind| kind != "application/problem+json") {
            return Ok((status, None));
        }
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await?.to_bytes();
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let of = |key: &str| problem[key].as_str().unwrap_or_default().to_owned();
        // A program may have problems of its own.
        Ok((status, of("type").starts_with("urn:lca:error:").then(|| of("detail"))))
    };
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        ended = connection => {
            ended?;
            exchange.await
        }
    }
}
