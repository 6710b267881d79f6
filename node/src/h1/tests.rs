//! The pool against servers that behave byte by byte as a script says.

use std::{
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use lca::{Error, Kind, Result, testing::eventually};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;

use super::{Body, BoxError, Cause, Config, Dial, Failed, Pool, empty, full, line::MAX_DIALS};

const SOON: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Tcp;

impl Dial for Tcp {
    type To = SocketAddr;
    type Key = SocketAddr;
    type Io = TcpStream;

    fn key(&self, to: &SocketAddr) -> SocketAddr {
        *to
    }

    async fn dial(&self, to: &SocketAddr) -> Result<TcpStream> {
        TcpStream::connect(to)
            .await
            .map_err(|error| Error::new(Kind::Unavailable, "refused").because(error))
    }
}

fn config() -> Config {
    Config { connect: SOON, head: SOON, quiet: SOON, stall: SOON, keep: SOON, max_idle: 2 }
}

/// Takes a moment, and counts how many do at the same time.
#[derive(Debug, Default)]
struct Counted {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Dial for Counted {
    type To = SocketAddr;
    type Key = SocketAddr;
    type Io = TcpStream;

    fn key(&self, to: &SocketAddr) -> SocketAddr {
        *to
    }

    async fn dial(&self, to: &SocketAddr) -> Result<TcpStream> {
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(now, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(5)).await;
        let dialled = Tcp.dial(to).await;
        self.now.fetch_sub(1, Ordering::Relaxed);
        dialled
    }
}

/// Opens its first connection, and then lets everybody wait.
#[derive(Debug, Default)]
struct Once(AtomicBool);

impl Dial for Once {
    type To = SocketAddr;
    type Key = SocketAddr;
    type Io = TcpStream;

    fn key(&self, to: &SocketAddr) -> SocketAddr {
        *to
    }

    async fn dial(&self, to: &SocketAddr) -> Result<TcpStream> {
        if self.0.swap(true, Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        Tcp.dial(to).await
    }
}

/// Opens one connection in memory, whose other end it hands out, and no other.
#[derive(Debug)]
struct Only(Mutex<Option<DuplexStream>>);

impl Only {
    fn new() -> (DuplexStream, Self) {
        let (ours, theirs) = tokio::io::duplex(1024);
        (theirs, Self(Mutex::new(Some(ours))))
    }
}

impl Dial for Only {
    type To = ();
    type Key = ();
    type Io = DuplexStream;

    fn key(&self, (): &()) {}

    async fn dial(&self, (): &()) -> Result<DuplexStream> {
        let one = self.0.lock().unwrap().take();
        match one {
            Some(one) => Ok(one),
            None => std::future::pending().await,
        }
    }
}

/// A body that is what is sent to it.
fn fed() -> (mpsc::Sender<Result<Frame<Bytes>, BoxError>>, Body) {
    let (feed, source) = mpsc::channel(1);
    (feed, StreamBody::new(ReceiverStream::new(source)).boxed_unsync())
}

/// One connection as the server sees it.
struct Accepted(TcpStream);

impl Accepted {
    /// Reads until `text` was seen, and returns all that was read.
    async fn read_to(&mut self, text: &str) -> String {
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains(text) {
            let mut byte = [0; 1];
            let read = timeout(SOON, self.0.read(&mut byte)).await.expect("bytes in time");
            assert_eq!(read.unwrap(), 1, "ended at {:?}", String::from_utf8_lossy(&seen));
            seen.extend(byte);
        }
        String::from_utf8(seen).unwrap()
    }

    async fn answer(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    async fn is_closed(&mut self) {
        let mut rest = Vec::new();
        let _reset_or_end =
            timeout(SOON, self.0.read_to_end(&mut rest)).await.expect("closed in time");
    }
}

struct Server(TcpListener);

impl Server {
    async fn start() -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (Self(listener), address)
    }

    async fn accept(&self) -> Accepted {
        Accepted(timeout(SOON, self.0.accept()).await.expect("a connection in time").unwrap().0)
    }
}

fn get() -> Request<Body> {
    Request::get("/x").header("host", "h").body(empty()).unwrap()
}

async fn text(answer: Response<Body>) -> String {
    String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

fn cause(failed: Failed) -> Cause {
    match failed {
        Failed::Sent(cause, _) => cause,
        Failed::NotSent(..) | Failed::Busy(..) => panic!("it was sent"),
    }
}

#[tokio::test]
async fn a_connection_is_used_again_after_a_clean_end() {
    let (server, address) = Server::start().await;
    let pool = Pool::new(Tcp, config());
    let serve = async {
        let mut connection = server.accept().await;
        for _ in 0..3 {
            connection.read_to("\r\n\r\n").await;
            connection.answer("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        }
        connection
    };
    let ask = async {
        for _ in 0..3 {
            let answer = pool.send(&address, get()).await.unwrap();
            assert_eq!(pool.in_flight(&address), 1);
            assert_eq!(text(answer).await, "ok");
            let back = async || pool.idle(&address) > 0;
            eventually("the connection to come back", back).await;
        }
    };
    let (_connection, ()) = tokio::join!(serve, ask);
    assert_eq!(pool.in_flight(&address), 0);
}

#[tokio::test]
async fn interim_answers_without_an_end_are_garbled() {
    let (server, address) = Server::start().await;
    let pool = Pool::new(Tcp, config());
    let serve = async {
        let mut connection = server.accept().await;
        connection.read_to("\r\n\r\n").await;
        let many = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n".repeat(1000);
        while connection.0.write_all(many.as_bytes()).await.is_ok() {}
    };
    let (failed, ()) = tokio::join!(pool.send(&address, get()), serve);
    assert_eq!(cause(failed.expect_err("no answer")), Cause::Garbled);
    let serve = async {
        let mut connection = server.accept().await;
        connection.read_to("\r\n\r\n").await;
        let few = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n".repeat(50);
        let body = "x".repeat(1 << 20);
        connection
            .answer(&format!("{few}HTTP/1.1 200 OK\r\ncontent-length: 1048576\r\n\r\n{body}"))
            .await;
    };
    let (answer, ()) =
        tokio::join!(async { text(pool.send(&address, get()).await.unwrap()).await }, serve);
    assert_eq!(answer.len(), 1 << 20);
}

#[tokio::test]
async fn an_idle_connection_that_died_is_replaced_without_a_word() {
    let (server, address) = Server::start().await;
    let pool = Pool::new(Tcp, config());
    let serve = async {
        for _ in 0..3 {
            let mut connection = server.accept().await;
            connection.read_to("\r\n\r\n").await;
            connection.answer("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        }
    };
    let ask = async {
        for _ in 0..3 {
            let post = Request::post("/x").body(full("body")).unwrap();
            assert_eq!(text(pool.send(&address, post).await.unwrap()).await, "ok");
        }
    };
    tokio::join!(serve, ask);
}

#[tokio::test]
async fn what_was_not_sent_comes_back_whole() {
    let (server, address) = Server::start().await;
    drop(server);
    let post = Request::post("/x").header("a", "b").body(full("body")).unwrap();
    match Pool::new(Tcp, config()).send(&address, post).await {
        Err(Failed::NotSent(request, error)) => {
            assert_eq!(error.kind(), Kind::Unavailable);
            assert_eq!(request.method(), Method::POST);
            assert_eq!(request.headers()["a"], "b");
            let body = request.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, "body");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn each_way_to_fail_after_sending_has_its_cause() {
    for (script, expected) in [
        ("", Cause::Silent),
        ("SSH-2.0-OpenSSH\r\n", Cause::Garbled),
        ("HTTP/1.1 200 OK\r\ncontent-le", Cause::Garbled),
        ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", Cause::Garbled),
        ("HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\nabcde", Cause::Garbled),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            Cause::Garbled,
        ),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nx", Cause::Garbled),
        ("HTTP/1.1 200 OK\r\na: b\rc: d\r\n\r\n", Cause::Garbled),
        ("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n", Cause::Garbled),
    ] {
        let (server, address) = Server::start().await;
        let pool = Pool::new(Tcp, config());
        let serve = async {
            let mut connection = server.accept().await;
            connection.read_to("\r\n\r\n").await;
            connection.answer(script).await;
            connection.0.shutdown().await.unwrap();
            connection.is_closed().await;
        };
        let (failed, ()) = tokio::join!(pool.send(&address, get()), serve);
        assert_eq!(cause(failed.unwrap_err()), expected, "{script:?}");
        assert_eq!(pool.idle(&address), 0, "{script:?}");
    }
}

#[tokio::test]
async fn headers_beyond_the_limit_are_no_answer() {
    let (server, address) = Server::start().await;
    let pool = Pool::new(Tcp, config());
    let serve = async {
        let mut connection = server.accept().await;
        connection.read_to("\r\n\r\n").await;
        let filler = format!("a: {}\r\n", "x".repeat(1000)).repeat(90);
        let _may_be_closed =
            connection.0.write_all(format!("HTTP/1.1 200 OK\r\n{filler}\r\n").as_bytes()).await;
    };
    let (failed, ()) = tokio::join!(pool.send(&address, get()), serve);
    assert_eq!(cause(failed.map(drop).unwrap_err()), Cause::Garbled);
}

#[tokio::test]
async fn a_head_that_does_not_come_is_late_and_closes_the_connection() {
    let (server, address) = Server::start().await;
    let pool = Pool::new(Tcp, Config { head: Duration::from_millis(50), ..config() });
    let serve = async {
        let mut connection = server.accept().await;
        connection.read_to("\r\n\r\n").await;
        connection.is_closed().await;
    };
    let (failed, ()) = tokio::join!(pool.send(&address, get()), serve);
    assert_eq!(cause(failed.unwrap_err()), Cause::Late);
}

#[tokio::test]
async fn dropping_an_answer_half_way_closes_its_connection() {
    let (server, address) = Server::start().await;
    let pool = Pool::new(Tcp, config());
    let serve = async {
        let mut connection = server.accept().await;
        connection.read_to("\r\n\r\n").await;
        connection.answer("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await;
        connection.is_closed().await;
    };
    let ask = async {
        let mut answer = pool.send(&address, get()).await.unwrap();
        answer.frame().await.unwrap().unwrap();
        drop(answer);
        assert_eq!((pool.in_flight(&address), pool.idle(&address)), (0, 0));
    };
    tokio::join!(serve, ask);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_an_error_not_an_end() {
    for head in ["content-length: 10", "transfer-encoding: chunked"] {
        let (server, address) = Server::start().await;
        let pool = Pool::new(Tcp, config());
        let serve = async {
            let mut connection = server.accept().await;
            connection.read_to("\r\n\r\n").await;
            connection.answer(&format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n4\r\nhalf")).await;
        };
        let (answer, ()) = tokio::join!(pool.send(&address, get()), serve);
        assert!(answer.unwrap().into_body().collect().await.is_err(), "{head}");
        assert_eq!((pool.in_flight(&address), pool.idle(&address)), (0, 0));
    }
}

#[tokio::test]
async fn after_an_early_answer_the_connection_is_not_used_again() {
    let (server, address) = Server::start().await;
    let pool = Pool::new(Tcp, config());
    let (feed, body) = fed();
    let serve = async {
        let mut connection = server.accept().await;
        connection.read_to("\r\n\r\n").await;
        connection.answer("HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n").await;
        connection.is_closed().await;
    };
    let ask = async {
        feed.send(Ok(Frame::data(Bytes::from_static(b"part")))).await.unwrap();
        let post = Request::post("/x").body(body).unwrap();
        let answer = pool.send(&address, post).await.unwrap();
        assert_eq!(answer.status(), 413);
        assert_eq!(text(answer).await, "");
        assert_eq!((pool.in_flight(&address), pool.idle(&address)), (0, 0));
    };
    tokio::join!(serve, ask);
    timeout(SOON, feed.closed()).await.expect("the body is let go");
}

#[tokio::test]
async fn a_body_of_unknown_length_is_sent_whatever_the_method() {
    let (server, address) = Server::start().await;
    let pool = Pool::new(Tcp, config());
    let (feed, body) = fed();
    let serve = async {
        let mut connection = server.accept().await;
        let seen = connection.read_to("0\r\n\r\n").await;
        assert!(seen.contains("transfer-encoding: chunked"), "{seen}");
        assert!(seen.ends_with("4\r\npart\r\n0\r\n\r\n"), "{seen}");
        connection.answer("HTTP/1.1 204 No Content\r\n\r\n").await;
        connection
    };
    let ask = async {
        feed.send(Ok(Frame::data(Bytes::from_static(b"part")))).await.unwrap();
        drop(feed);
        let request = Request::get("/x").body(body).unwrap();
        assert_eq!(pool.send(&address, request).await.unwrap().status(), 204);
    };
    tokio::join!(serve, ask);
}

#[tokio::test]
async fn unused_connections_are_few_and_do_not_last() {
    let (server, address) = Server::start().await;
    let pool = Pool::new(Tcp, Config { keep: Duration::from_millis(200), ..config() });
    let serve = async {
        let mut connections = Vec::new();
        for _ in 0..4 {
            let mut connection = server.accept().await;
            connection.read_to("\r\n\r\n").await;
            connections.push(connection);
        }
        for connection in &mut connections {
            connection.answer("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        }
        for connection in &mut connections {
            connection.is_closed().await;
        }
    };
    let ask = async {
        let asked = (0..4).map(|_| async { pool.send(&address, get()).await.unwrap() });
        for answer in futures::future::join_all(asked).await {
            text(answer).await;
            assert!(pool.idle(&address) <= 2);
        }
    };
    tokio::join!(serve, ask);
    assert_eq!(pool.idle(&address), 0);
}

#[tokio::test]
async fn an_answer_that_falls_silent_fails() {
    let (server, address) = Server::start().await;
    let pool = Pool::new(Tcp, Config { quiet: Duration::from_millis(50), ..config() });
    let serve = async {
        let mut connection = server.accept().await;
        connection.read_to("\r\n\r\n").await;
        connection.answer("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await;
        connection.is_closed().await;
    };
    let ask = async {
        let answer = pool.send(&address, get()).await.unwrap();
        assert!(answer.into_body().collect().await.is_err());
    };
    tokio::join!(serve, ask);
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn however_many_come_at_once_few_connections_are_being_opened() {
    let (server, address) = Server::start().await;
    let pool = Pool::new(Counted::default(), config());
    let serve = async {
        let mut serving = FuturesUnordered::new();
        loop {
            tokio::select! {
                accepted = server.0.accept() => serving.push(async {
                    let mut stream = accepted.unwrap().0;
                    let mut asked = [0; 1024];
                    while let Ok(1..) = stream.read(&mut asked).await {
                        let _closed_meanwhile = stream.write_all(OK.as_bytes()).await;
                    }
                }),
                Some(()) = serving.next() => {}
            }
        }
    };
    let ask = async |_| text(pool.send(&address, get()).await.unwrap()).await;
    let answers = tokio::select! {
        answers = join_all((0..300).map(ask)) => answers,
        () = serve => unreachable!(),
    };
    assert!(answers.iter().all(|answer| answer == "ok"));
    assert_eq!(pool.shared.dial.most.load(Ordering::Relaxed), MAX_DIALS);
    assert_eq!(pool.in_flight(&address), 0);
}

#[tokio::test]
async fn a_connection_given_back_goes_to_whoever_waits_longest_and_is_still_there() {
    let (server, address) = Server::start().await;
    let pool = Pool::new(Once::default(), config());
    let first = pool.send(&address, get());
    let serve = async {
        let mut connection = server.accept().await;
        connection.read_to("\r\n\r\n").await;
        connection
    };
    let (mut first, mut connection) = (Box::pin(first), Box::pin(serve));
    let mut connection = tokio::select! {
        _ = &mut first => panic!("nothing was answered"),
        connection = &mut connection => connection,
    };
    // One who gives up, and one who does not: both have a dial that never ends.
    let gone = timeout(Duration::from_millis(20), pool.send(&address, get())).await;
    assert!(gone.is_err());
    let (first, second, ()) = tokio::join!(
        async { text(first.await.unwrap()).await },
        async { text(pool.send(&address, get()).await.unwrap()).await },
        async {
            connection.answer(OK).await;
            connection.read_to("\r\n\r\n").await;
            connection.answer(OK).await;
        }
    );
    assert_eq!([first, second], ["ok", "ok"]);
}

#[tokio::test]
async fn where_nobody_listens_all_who_wait_are_told() {
    let (server, address) = Server::start().await;
    drop(server);
    let pool = Pool::new(Tcp, config());
    let ask = join_all((0..300).map(|_| pool.send(&address, get())));
    for answer in timeout(SOON / 2, ask).await.expect("without waiting for a deadline") {
        assert!(matches!(answer, Err(Failed::NotSent(..))), "{answer:?}");
    }
}

#[tokio::test]
async fn who_stood_in_line_while_others_are_served_met_somebody_busy() {
    let (server, address) = Server::start().await;
    let config = Config { connect: Duration::from_millis(200), ..config() };
    let pool = Pool::new(Once::default(), config);
    let mut first = Box::pin(pool.send(&address, get()));
    let mut connection = tokio::select! {
        _ = &mut first => panic!("nothing was answered"),
        connection = server.accept() => connection,
    };
    let second = tokio::select! {
        _ = &mut first => panic!("nothing was answered"),
        second = pool.send(&address, get()) => second,
    };
    assert!(matches!(second, Err(Failed::Busy(..))), "{second:?}");
    let (first, ()) =
        tokio::join!(async { text(first.await.unwrap()).await }, connection.answer(OK));
    assert_eq!(first, "ok");
}

#[tokio::test(start_paused = true)]
async fn a_line_that_moves_is_stood_in_and_one_that_does_not_is_left() {
    let (mut server, only) = Only::new();
    let limit = Duration::from_secs(3);
    let patient = Duration::from_secs(60);
    let config =
        Config { connect: limit, head: Duration::from_secs(10), keep: patient, ..config() };
    let pool = Pool::new(only, config);
    // Everybody is answered two seconds after the one before, but the last two.
    let serving = async {
        for _ in 0..5 {
            let mut seen = Vec::new();
            while !seen.ends_with(b"\r\n\r\n") {
                seen.push(server.read_u8().await.unwrap());
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
            server.write_all(OK.as_bytes()).await.unwrap();
        }
        std::future::pending::<()>().await;
    };
    let asking = join_all((0..7).map(|_| async {
        let begun = Instant::now();
        match pool.send(&(), get()).await {
            Ok(answer) => (text(answer).await, begun.elapsed().as_secs()),
            Err(Failed::Busy(..)) => ("busy".to_owned(), begun.elapsed().as_secs()),
            Err(Failed::Sent(Cause::Late, _)) => ("late".to_owned(), begun.elapsed().as_secs()),
            Err(other) => panic!("after {:?}: {other:?}", begun.elapsed()),
        }
    }));
    let told = tokio::select! {
        told = asking => told,
        () = serving => unreachable!("it goes on"),
        () = tokio::time::sleep(patient) => panic!("somebody waits for ever"),
    };
    let told: Vec<_> = told.iter().map(|(what, after)| (what.as_str(), *after)).collect();
    let answered = [("ok", 2), ("ok", 4), ("ok", 6), ("ok", 8), ("ok", 10)];
    assert_eq!(told, [&answered[..], &[("late", 20), ("busy", 13)]].concat());
}

#[tokio::test]
async fn where_no_connection_is_and_none_can_be_opened_in_time_nobody_is_reached() {
    let (_server, address) = Server::start().await;
    let config = Config { connect: Duration::from_millis(200), ..config() };
    let pool = Pool::new(Once(AtomicBool::new(true)), config);
    let answer = pool.send(&address, get()).await;
    assert!(matches!(answer, Err(Failed::NotSent(..))), "{answer:?}");
}
