//! A gRPC service to try proxies with: says back what it hears, in calls of every kind, and can
//! be asked to misbehave as real programs do.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use futures::{Stream, StreamExt as _, stream};
use proto::echo_server::{Echo, EchoServer};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Code, Request, Response, Status, Streaming,
    metadata::{KeyAndValueRef, MetadataMap},
    transport::{Error, Server},
};

/// What is spoken.
pub mod proto {
    #![allow(missing_docs, missing_debug_implementations, reason = "generated")]
    #![allow(clippy::unwrap_used, unreachable_pub, reason = "generated")]
    tonic::include_proto!("echo.v1");
}

use proto::{FailRequest, RepeatRequest, StuckResponse, Words};

type Answers = Pin<Box<dyn Stream<Item = Result<Words, Status>> + Send>>;

/// Serves calls on `listener` until dropped, or `end` resolves and all calls have ended.
///
/// # Errors
/// What the transport says.
pub async fn serve(
    listener: TcpListener,
    end: impl Future<Output = ()> + Send,
) -> Result<(), Error> {
    let echo = EchoServer::new(Parrot::default());
    let incoming = TcpListenerStream::new(listener).map(|stream| {
        let stream = stream?;
        stream.set_nodelay(true)?;
        Ok::<_, io::Error>(stream)
    });
    Server::builder().add_service(echo).serve_with_incoming_shutdown(incoming, end).await
}

#[derive(Debug, Default)]
struct Parrot {
    stuck: Arc<AtomicU32>,
}

/// A call of `Hang`, as long as it is open.
struct Stuck(Arc<AtomicU32>);

impl Stuck {
    fn new(calls: &Arc<AtomicU32>) -> Self {
        calls.fetch_add(1, Ordering::Relaxed);
        Self(calls.clone())
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[tonic::async_trait]
impl Echo for Parrot {
    type TalkStream = Answers;
    type RepeatStream = Answers;
    type HangStream = Answers;

    async fn say(&self, request: Request<Words>) -> Result<Response<Words>, Status> {
        let mut metadata = MetadataMap::new();
        for entry in request.metadata().iter() {
            if let KeyAndValueRef::Ascii(name, value) = entry
                && name.as_str().starts_with("x-")
            {
                metadata.insert(name, value.clone());
            }
        }
        let mut answer = Response::new(request.into_inner());
        *answer.metadata_mut() = metadata;
        Ok(answer)
    }

    async fn talk(&self, request: Request<Streaming<Words>>) -> Result<Response<Answers>, Status> {
        Ok(Response::new(request.into_inner().boxed()))
    }

    async fn listen(&self, request: Request<Streaming<Words>>) -> Result<Response<Words>, Status> {
        let (mut words, mut heard) = (request.into_inner(), 0);
        while let Some(Words { text }) = words.message().await? {
            heard += text.len();
        }
        Ok(Response::new(Words { text: heard.to_string() }))
    }

    async fn repeat(&self, request: Request<RepeatRequest>) -> Result<Response<Answers>, Status> {
        let RepeatRequest { text, times, fail } = request.into_inner();
        let words = stream::iter(0..times).map(move |_| Ok(Words { text: text.clone() }));
        let end = stream::iter(fail.then(|| Err(Status::aborted("as told"))));
        Ok(Response::new(words.chain(end).boxed()))
    }

    async fn fail(&self, request: Request<FailRequest>) -> Result<Response<Words>, Status> {
        let FailRequest { code, message } = request.into_inner();
        Err(Status::new(Code::from(code), message))
    }

    async fn hang(&self, request: Request<Streaming<Words>>) -> Result<Response<Answers>, Status> {
        let (stuck, unread) = (Stuck::new(&self.stuck), request.into_inner());
        let held = async move {
            let _both = (stuck, unread);
            std::future::pending().await
        };
        Ok(Response::new(stream::once(held).boxed()))
    }

    async fn stuck(&self, _: Request<Words>) -> Result<Response<StuckResponse>, Status> {
        Ok(Response::new(StuckResponse { calls: self.stuck.load(Ordering::Relaxed) }))
    }
}
