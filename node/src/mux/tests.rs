//! Both sides against each other, and each against bytes that an honest other side would not
//! send.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::future::join_all;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame as BodyFrame;
use lca::{Error, Kind as Fault, testing::eventually};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    sync::mpsc,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::{
    CHUNK_COST, Cut, Hop, Incoming, STREAMS, Streamed, WINDOW,
    client::{Attempt, Connection},
    frame::{self, Kind, Reset},
    serve, takes,
};
use crate::h1::{Body, BoxError, Cause, Config, Dial, Failed, Waits, empty, full};

const SOON: Duration = Duration::from_secs(10);
const LIMITS: Waits = Waits { head: SOON, quiet: SOON };

/// A front's connection to an ingress that answers with `answer`.
fn connected<A, F>(answer: A) -> (Connection, CancellationToken)
where
    A: Fn(Request<Incoming>, Cut) -> F + Send + 'static,
    F: Future<Output = Result<Response<Body>, BoxError>> + Send + 'static,
{
    let (front, ingress) = duplex(4096);
    let leave = CancellationToken::new();
    tokio::spawn(serve(ingress, SOON, leave.clone(), answer));
    (Connection::start(front, SOON), leave)
}

/// A front's connection to whoever writes bytes.
fn raw() -> (Connection, Wire) {
    let (front, other) = duplex(1 << 20);
    (Connection::start(front, SOON), Wire(other, BytesMut::new()))
}

/// A connection to an ingress that counts what it is asked and answers nothing, which `asked`
/// and `over` tell.
fn silent_ingress() -> (Wire, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let (front, ingress) = duplex(1 << 20);
    let (asked, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (asked.clone(), over.clone());
    tokio::spawn(serve(ingress, SOON, CancellationToken::new(), move |request, _| {
        counts.0.fetch_add(1, Ordering::SeqCst);
        let held = Counted(counts.1.clone());
        async move {
            let _held = (held, request);
            std::future::pending().await
        }
    }));
    (Wire(front, BytesMut::new()), asked, over)
}

struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A frame as it is written.
type Written<'a> = (Kind, u32, &'a [u8]);

/// One end, read and written as frames.
struct Wire(DuplexStream, BytesMut);

impl Wire {
    async fn write(&mut self, kind: Kind, stream: u32, payload: &[u8]) {
        let mut out = BytesMut::new();
        frame::put(&mut out, kind, stream, payload);
        let _may_be_closed = self.0.write_all(&out).await;
    }

    /// The next frame; none at the end.
    async fn read(&mut self) -> Option<(Kind, u32, Bytes)> {
        loop {
            if let Some(frame) = frame::take(&mut self.1).unwrap() {
                return Some((frame.kind, frame.stream, frame.payload));
            }
            let read = timeout(SOON, self.0.read_buf(&mut self.1)).await.expect("in time");
            if read.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    async fn is_closed(&mut self) {
        while self.read().await.is_some() {}
    }
}

fn get(target: &str) -> Request<Body> {
    Request::get(target).header("host", "h").body(empty()).unwrap()
}

async fn text(answer: Response<Body>) -> String {
    let body = timeout(SOON, answer.into_body().collect()).await.expect("a body in time");
    String::from_utf8(body.unwrap().to_bytes().to_vec()).unwrap()
}

async fn ask(connection: &Connection, request: Request<Body>) -> Response<Body> {
    let answered = timeout(SOON, connection.send(request, LIMITS)).await.expect("in time");
    answered.unwrap_or_else(|_| panic!("an answer"))
}

fn cause(attempt: Result<Response<Body>, Attempt>) -> Option<Cause> {
    match attempt {
        Err(Attempt::Failed(cause, _)) => Some(cause),
        Err(Attempt::Returned { .. }) => None,
        Ok(_) => panic!("an answer"),
    }
}

/// A body that is what is sent to it.
fn fed() -> (mpsc::Sender<Result<BodyFrame<Bytes>, BoxError>>, Body) {
    let (feed, source) = mpsc::channel(1);
    (feed, StreamBody::new(ReceiverStream::new(source)).boxed_unsync())
}

fn data(bytes: impl Into<Bytes>) -> Result<BodyFrame<Bytes>, BoxError> {
    Ok(BodyFrame::data(bytes.into()))
}

async fn echo(request: Request<Incoming>) -> Result<Response<Body>, BoxError> {
    let (parts, body) = request.into_parts();
    let mut answer = Response::new(body.boxed_unsync());
    answer.headers_mut().insert("x-target", HeaderValue::try_from(parts.uri.to_string())?);
    Ok(answer)
}

#[tokio::test]
async fn requests_and_answers_pass_whole_many_at_once() {
    let (connection, _leave) = connected(|request, _| echo(request));
    let asked = (0..300).map(|n| {
        let connection = &connection;
        async move {
            let body = "x".repeat(n * 300);
            let request = Request::post(format!("/{n}")).body(full(body.clone())).unwrap();
            let answer = ask(connection, request).await;
            assert_eq!(answer.headers()["x-target"], format!("/{n}").as_str());
            assert_eq!(text(answer).await, body);
        }
    });
    join_all(asked).await;
    assert_eq!(connection.load(), Some(0), "no stream is left");
}

#[tokio::test]
async fn trailers_and_lengths_pass() {
    let (connection, _leave) = connected(|_, _| async {
        let trailers = HeaderMap::from_iter(
            [("x-sum", "1")]
                .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))),
        );
        let frames = [data("all"), Ok(BodyFrame::trailers(trailers))];
        let body = StreamBody::new(futures::stream::iter(frames)).boxed_unsync();
        Ok(Response::builder().header("content-length", 3).body(body)?)
    });
    let answer = ask(&connection, get("/")).await;
    assert_eq!(hyper::body::Body::size_hint(answer.body()).exact(), Some(3));
    let body = answer.into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["x-sum"], "1");
    assert_eq!(body.to_bytes(), "all");
}

#[tokio::test]
async fn a_hundred_bodies_that_nobody_reads_leave_the_next_at_full_speed() {
    let (connection, _leave) = connected(|request, _| async move {
        let length = if request.uri().path() == "/long" { 8 << 20 } else { 1000 };
        Ok(Response::new(full(vec![b'x'; length])))
    });
    let mut stalled = Vec::new();
    for _ in 0..100 {
        let mut answer = ask(&connection, get("/long")).await;
        answer.frame().await.unwrap().unwrap();
        stalled.push(answer);
    }
    for _ in 0..100 {
        assert_eq!(text(ask(&connection, get("/short")).await).await.len(), 1000);
    }
    // And one of them goes on where it stood.
    let rest = text(stalled.pop().unwrap()).await.len();
    assert!(rest > 7 << 20, "{rest}");
}

#[tokio::test]
async fn a_body_that_is_not_read_stops_its_sender() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    let (connection, _leave) = connected(move |_, _| {
        let counted = counted.clone();
        async move {
            let frames = futures::stream::repeat_with(move || {
                counted.fetch_add(1000, Ordering::SeqCst);
                data(vec![0; 1000])
            });
            Ok(Response::new(StreamBody::new(frames).boxed_unsync()))
        }
    });
    let answer = ask(&connection, get("/")).await;
    // Others go by meanwhile, so it has had its turns.
    for _ in 0..20 {
        drop(ask(&connection, get("/")).await);
    }
    let before = sent.load(Ordering::SeqCst);
    let most = 21 * (WINDOW as usize + 2000);
    assert!(before <= most, "{before} of {most}");
    drop(answer);
}

#[tokio::test]
async fn who_gives_up_ends_that_request_at_the_other_end_and_no_other() {
    let over = Arc::new(AtomicUsize::new(0));
    let counted = over.clone();
    let (connection, _leave) = connected(move |request, _| {
        let held = Counted(counted.clone());
        async move {
            if request.uri().path() == "/never" {
                let _held = held;
                std::future::pending::<()>().await;
            }
            Ok(Response::new(full("ok")))
        }
    });
    let never = connection.send(get("/never"), LIMITS);
    assert!(timeout(Duration::from_millis(50), never).await.is_err());
    eventually("the other end to know", async || over.load(Ordering::SeqCst) == 1).await;
    assert_eq!(text(ask(&connection, get("/")).await).await, "ok");
    assert_eq!(connection.load(), Some(0));
}

#[tokio::test]
async fn one_that_is_cut_off_breaks_off_alone() {
    let (connection, _leave) = connected(|request, cut: Cut| async move {
        if request.uri().path() == "/whole" {
            return Ok(Response::new(full("ok")));
        }
        if request.uri().path() == "/cut" {
            cut.notify_one();
            std::future::pending::<()>().await;
        }
        let (feed, body) = fed();
        feed.send(data("some")).await?;
        tokio::spawn(async move {
            feed.closed().await;
        });
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            cut.notify_one();
        });
        Ok(Response::new(body))
    });
    assert_eq!(cause(connection.send(get("/cut"), LIMITS).await), Some(Cause::Silent));
    let body = ask(&connection, get("/half")).await.into_body();
    assert!(timeout(SOON, body.collect()).await.unwrap().is_err(), "it is not whole");
    assert_eq!(text(ask(&connection, get("/whole")).await).await, "ok");
}

#[tokio::test]
async fn an_early_answer_comes_while_the_request_is_still_sent() {
    let (connection, _leave) =
        connected(|_, _| async { Ok(Response::builder().status(413).body(full("no"))?) });
    let (feed, body) = fed();
    feed.send(data("part")).await.unwrap();
    let answer = ask(&connection, Request::post("/").body(body).unwrap()).await;
    assert_eq!(answer.status(), 413);
    assert_eq!(text(answer).await, "no");
    timeout(SOON, feed.closed()).await.expect("the body is let go");
    assert_eq!(connection.load(), Some(0));
}

#[tokio::test]
async fn what_an_ingress_never_saw_comes_back_and_what_it_may_have_seen_does_not() {
    let (connection, mut wire) = raw();
    let first = connection.send(get("/1"), LIMITS);
    let refused = async {
        assert_eq!(wire.read().await.unwrap().0, Kind::HeadOnly);
        wire.write(Kind::Reset, 1, &[1]).await;
    };
    let (first, ()) = tokio::join!(first, refused);
    assert_eq!(cause(first), None, "refused");
    let second = connection.send(get("/2"), LIMITS);
    let cut = async {
        wire.read().await;
        wire.write(Kind::Reset, 2, &[0]).await;
    };
    let (second, ()) = tokio::join!(second, cut);
    assert_eq!(cause(second), Some(Cause::Silent), "cut");
    // It has seen the third and says that it takes no later one.
    let asked = async {
        tokio::join!(connection.send(get("/3"), LIMITS), connection.send(get("/4"), LIMITS))
    };
    let leave = async {
        wire.read().await;
        wire.read().await;
        wire.write(Kind::Leave, 3, &[]).await;
        wire.write(Kind::HeadOnly, 3, b"HTTP/1.1 200 OK\r\n\r\n").await;
    };
    let ((third, fourth), ()) = tokio::join!(asked, leave);
    assert!(third.is_ok());
    assert_eq!(cause(fourth), None);
    assert_eq!(connection.load(), None, "nothing more goes there");
}

#[tokio::test]
async fn a_connection_that_ends_fails_what_was_written_and_returns_what_was_not() {
    // Takes one request and no byte more, so that the next is never written.
    let (front, mut other) = duplex(64);
    let connection = Connection::start(front, SOON);
    let long = Request::get("/").header("a", "x".repeat(1000)).body(empty()).unwrap();
    let first = connection.send(long, LIMITS);
    let second = async {
        tokio::task::yield_now().await;
        connection.send(get("/second"), LIMITS).await
    };
    let end = async {
        other.read_exact(&mut [0; 8]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(other);
    };
    let (first, second, ()) = tokio::join!(first, second, end);
    assert_eq!(cause(first), Some(Cause::Silent));
    assert_eq!(cause(second), None);
}

#[tokio::test]
async fn an_answer_that_is_no_http_is_garbled() {
    for head in [
        "SSH-2.0",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
    ] {
        let (connection, mut wire) = raw();
        let garbled = async {
            wire.read().await;
            wire.write(Kind::Head, 1, head.as_bytes()).await;
        };
        let (answer, ()) = tokio::join!(connection.send(get("/"), LIMITS), garbled);
        assert_eq!(cause(answer), Some(Cause::Garbled), "{head:?}");
    }
}

#[tokio::test]
async fn a_body_of_another_length_than_was_said_is_an_error() {
    for (length, sent) in [("5", "four"), ("3", "four")] {
        let (connection, mut wire) = raw();
        let lie = async {
            wire.read().await;
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
            wire.write(Kind::Head, 1, head.as_bytes()).await;
            wire.write(Kind::LastData, 1, sent.as_bytes()).await;
        };
        let (answer, ()) = tokio::join!(ask(&connection, get("/")), lie);
        assert!(answer.into_body().collect().await.is_err(), "{length} of {sent}");
    }
}

#[tokio::test]
async fn a_front_that_does_what_none_would_is_closed() {
    let head = b"POST / HTTP/1.1\r\n\r\n";
    let full = vec![0; frame::MAX_DATA];
    let tiny = [0];
    let windows = WINDOW as usize / frame::MAX_DATA + 1;
    let crumbs = (WINDOW / CHUNK_COST) as usize + 1;
    let cases: [(&str, Vec<Written<'_>>); 7] = [
        ("a stream twice", vec![(Kind::Head, 1, head), (Kind::Head, 1, head)]),
        ("a stream from before", vec![(Kind::Head, 5, head), (Kind::Head, 4, head)]),
        ("a body without a head", vec![(Kind::Data, 1, b"x")]),
        ("no head", vec![(Kind::Head, 1, b"x\r\n\r\n")]),
        (
            "more than its window",
            [vec![(Kind::Head, 1, &head[..])], vec![(Kind::Data, 1, &full[..]); windows]].concat(),
        ),
        (
            "a window of crumbs",
            [vec![(Kind::Head, 1, &head[..])], vec![(Kind::Data, 1, &tiny[..]); crumbs]].concat(),
        ),
        ("credit without end", vec![(Kind::Head, 1, head), (Kind::Credit, 1, &[0xff; 4])]),
    ];
    for (what, frames) in cases {
        let (mut wire, _asked, over) = silent_ingress();
        let (first, rest) = frames.split_first().unwrap();
        wire.write(first.0, first.1, first.2).await;
        for (kind, stream, payload) in rest {
            wire.write(*kind, *stream, payload).await;
        }
        timeout(SOON, wire.is_closed()).await.unwrap_or_else(|_| panic!("{what}"));
        let asked = usize::from(first.0 == Kind::Head && first.2 == head);
        eventually("what was open to be dropped", async || over.load(Ordering::SeqCst) == asked)
            .await;
    }
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused_and_those_before_go_on() {
    let (mut wire, asked, _over) = silent_ingress();
    for n in 1..=STREAMS as u32 + 3 {
        wire.write(Kind::HeadOnly, n, b"GET / HTTP/1.1\r\n\r\n").await;
    }
    for n in 1..=3 {
        let (kind, stream, why) = wire.read().await.unwrap();
        assert_eq!((kind, stream), (Kind::Reset, STREAMS as u32 + n));
        assert_eq!(Reset::read(&why), Reset::Refused);
    }
    assert_eq!(asked.load(Ordering::SeqCst), STREAMS);
}

#[tokio::test]
async fn whoever_asks_and_gives_up_without_end_is_closed() {
    let (mut wire, asked, over) = silent_ingress();
    for n in 1..=5000 {
        wire.write(Kind::HeadOnly, n, b"GET / HTTP/1.1\r\n\r\n").await;
        wire.write(Kind::Reset, n, &[0]).await;
    }
    timeout(SOON, wire.is_closed()).await.expect("closed");
    let asked = asked.load(Ordering::SeqCst);
    assert!(asked < 3000, "{asked}");
    eventually("nothing to be left", async || over.load(Ordering::SeqCst) == asked).await;
}

#[tokio::test]
async fn a_node_that_stops_finishes_what_is_open_and_closes() {
    let (go, gone) = tokio::sync::oneshot::channel::<()>();
    let gone = Arc::new(tokio::sync::Mutex::new(Some(gone)));
    let (connection, leave) = connected(move |_, _| {
        let gone = gone.clone();
        async move {
            if let Some(gone) = gone.lock().await.take() {
                gone.await?;
            }
            Ok(Response::new(full("ok")))
        }
    });
    let open = ask(&connection, get("/"));
    let stop = async {
        tokio::task::yield_now().await;
        leave.cancel();
        eventually("the front to know", async || connection.load().is_none()).await;
        go.send(()).unwrap();
    };
    let (answer, ()) = tokio::join!(open, stop);
    assert_eq!(text(answer).await, "ok");
}

#[tokio::test(start_paused = true)]
async fn an_unused_connection_is_closed_after_a_while_and_a_used_one_is_not() {
    let (connection, _leave) = connected(|request, _| async move {
        if request.uri().path() == "/slow" {
            tokio::time::sleep(SOON * 3).await;
        }
        Ok(Response::new(full("ok")))
    });
    let limits = Waits { head: SOON * 9, quiet: SOON };
    assert!(connection.send(get("/slow"), limits).await.is_ok());
    tokio::time::sleep(SOON / 2).await;
    assert_eq!(connection.load(), Some(0));
    tokio::time::sleep(SOON * 2).await;
    assert_eq!(connection.load(), None);
}

/// Opens connections to an ingress that echoes.
#[derive(Debug, Default)]
struct Echo {
    dialled: Arc<AtomicUsize>,
    fails: Arc<AtomicBool>,
}

impl Dial for Echo {
    type To = SocketAddr;
    type Key = SocketAddr;
    type Io = DuplexStream;

    fn key(&self, to: &SocketAddr) -> SocketAddr {
        *to
    }

    async fn dial(&self, _to: &SocketAddr) -> lca::Result<DuplexStream> {
        self.dialled.fetch_add(1, Ordering::SeqCst);
        if self.fails.load(Ordering::SeqCst) {
            return Err(Error::new(Fault::Unavailable, "refused"));
        }
        let (front, ingress) = duplex(4096);
        tokio::spawn(serve(ingress, SOON, CancellationToken::new(), |request, _| echo(request)));
        Ok(front)
    }
}

fn config() -> Config {
    Config { connect: SOON, head: SOON, quiet: SOON, stall: SOON, keep: SOON, max_idle: 2 }
}

#[tokio::test]
async fn whoever_comes_meanwhile_shares_one_connection_and_none_waits_in_vain() {
    let (together, alone) = (Echo::default(), Echo::default());
    let (dialled, fails) = (together.dialled.clone(), together.fails.clone());
    let hop = Hop::new(together, alone, config());
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    let asked = join_all((0..100).map(|_| hop.send(&address, get("/x")))).await;
    assert!(asked.iter().all(Result::is_ok));
    assert_eq!(dialled.load(Ordering::SeqCst), 1);
    fails.store(true, Ordering::SeqCst);
    let other = SocketAddr::from(([127, 0, 0, 1], 2));
    let asked = join_all((0..100).map(|_| hop.send(&other, get("/x")))).await;
    assert!(asked.iter().all(|one| matches!(one, Err(Failed::NotSent(..)))));
    assert_eq!(dialled.load(Ordering::SeqCst), 2);
}

#[test]
fn long_bodies_and_those_who_take_the_connection_over_go_alone() {
    let post = |body| Request::post("/").body(body).unwrap();
    assert!(takes(&get("/")));
    assert!(takes(&post(full(vec![0; 64 << 10]))));
    assert!(!takes(&post(full(vec![0; (64 << 10) + 1]))));
    assert!(!takes(&post(fed().1)));
    let mut streamed = post(fed().1);
    streamed.extensions_mut().insert(Streamed);
    assert!(takes(&streamed), "its trailers must pass");
    assert!(!takes(&Request::get("/").header("upgrade", "websocket").body(empty()).unwrap()));
    assert!(!takes(&Request::builder().method("CONNECT").uri("h:1").body(empty()).unwrap()));
}
