//! What a server answers, byte for byte, to a request of ours: on the way to an instance and
//! to a peer that speaks HTTP/1.1.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use lca_node::h1::{self, Cause, Dial, Failed, Pool, Switched, hygiene};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    runtime::Builder,
    time::timeout,
};

use crate::Outcome;

/// What every later request is answered.
const HONEST: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhonest";
/// Bytes of a server that are looked at, fewer than a connection here holds.
const MOST: usize = 16 << 10;
/// For a server that has said all it will and keeps its connection open.
const WAIT: Duration = Duration::from_millis(20);
/// Nothing here takes so long, unless it hangs.
const HANGS: Duration = Duration::from_secs(9);

/// How the bytes come, read from the first one of the input.
#[derive(Clone, Copy, Debug)]
struct Manner {
    head: bool,
    upgrade: bool,
    /// The connection stays open, and the next request on it is answered honestly.
    open: bool,
    /// Bytes at a time.
    piece: usize,
}

impl Manner {
    fn of(byte: u8) -> Self {
        let bit = |at: u8| byte & (1 << at) != 0;
        let piece = [MOST, 1, 7, 64][usize::from(byte >> 3 & 3)];
        Self { head: bit(0), upgrade: bit(1), open: bit(2), piece }
    }
}

/// The first connection answers what the fuzzer says, the others honestly.
#[derive(Debug)]
struct Server {
    manner: Manner,
    bytes: Arc<[u8]>,
    dialled: AtomicUsize,
}

impl Dial for Server {
    type To = ();
    type Key = ();
    type Io = DuplexStream;

    fn key(&self, (): &()) {}

    async fn dial(&self, (): &()) -> lca::Result<DuplexStream> {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let first = self.dialled.fetch_add(1, Ordering::Relaxed) == 0;
        let (bytes, manner) = match first {
            true => (self.bytes.clone(), self.manner),
            false => (HONEST.into(), Manner { open: true, piece: MOST, ..self.manner }),
        };
        // Ends when the client lets go of its end, which it does when the pool is dropped.
        tokio::spawn(async move {
            let _the_client_left = serve(theirs, &bytes, manner).await;
        });
        Ok(ours)
    }
}

async fn serve(mut io: DuplexStream, bytes: &[u8], manner: Manner) -> std::io::Result<()> {
    request(&mut io).await?;
    for piece in bytes.chunks(manner.piece) {
        io.write_all(piece).await?;
        tokio::task::yield_now().await;
    }
    if !manner.open {
        io.shutdown().await?;
    }
    loop {
        request(&mut io).await?;
        io.write_all(HONEST).await?;
    }
}

/// Reads a request, none of which has a body here.
async fn request(io: &mut DuplexStream) -> std::io::Result<()> {
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        seen.push(io.read_u8().await?);
    }
    Ok(())
}

/// Answers a request with the input but for its first byte, which says how, and then asks
/// again. Taken is an answer that came whole.
///
/// # Panics
/// If an answer is taken whose end is not clear, one that broke off is taken for whole, a
/// connection leaves HTTP that was not asked to, what was left of one answer becomes another,
/// or nothing ends.
pub fn answers(input: &[u8]) -> Outcome {
    let (manner, bytes) = input.split_first().map_or((0, input), |(byte, rest)| (*byte, rest));
    let (manner, bytes) = (Manner::of(manner), &bytes[..bytes.len().min(MOST)]);
    let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        timeout(HANGS, exchange(manner, bytes)).await.expect("an answer comes to its end")
    })
}

async fn exchange(manner: Manner, bytes: &[u8]) -> Outcome {
    let server = Server { manner, bytes: bytes.into(), dialled: AtomicUsize::new(0) };
    let config = h1::Config {
        connect: HANGS,
        head: WAIT,
        quiet: WAIT,
        stall: HANGS,
        keep: HANGS,
        max_idle: 4,
    };
    let pool = Pool::new(server, config);
    let outcome = first(&pool, manner, bytes).await;
    // Whatever it was, the next answer is the next server's or this one's to that request.
    let request = Request::get("/second").body(h1::empty()).expect("a request");
    let answer = pool.send(&(), request).await;
    match answer {
        Ok(answer) => {
            if let Ok(body) = answer.into_body().collect().await {
                assert_eq!(body.to_bytes(), "honest", "the rest of the answer before");
            }
        }
        // It may take the server longer than we wait, and its end may cross the request.
        Err(Failed::Sent(cause, _)) => assert_ne!(cause, Cause::Body),
        Err(Failed::NotSent(..) | Failed::Busy(..)) => {}
    }
    outcome
}

async fn first(pool: &Pool<Server>, manner: Manner, bytes: &[u8]) -> Outcome {
    let method = if manner.head { Method::HEAD } else { Method::GET };
    let mut request = Request::new(h1::empty());
    *request.method_mut() = method;
    *request.uri_mut() = "/first".parse().expect("a target");
    if manner.upgrade {
        hygiene::insert_upgrade(request.headers_mut(), HeaderValue::from_static("chat"));
    }
    let answer = match pool.send(&(), request).await {
        Ok(answer) => answer,
        Err(Failed::Sent(cause, _)) => {
            assert!(cause != Cause::Silent || bytes.is_empty(), "something came");
            return Outcome::Refused;
        }
        Err(Failed::NotSent(_, error) | Failed::Busy(_, error)) => panic!("it was sent: {error}"),
    };
    let status = answer.status();
    let switched = answer.extensions().get::<Switched>().is_some();
    assert_eq!(switched, status == StatusCode::SWITCHING_PROTOCOLS, "{status}");
    assert!(!switched || manner.upgrade, "nobody asked for another protocol");
    assert!(switched || !status.is_informational(), "{status} is no answer");
    if switched {
        return Outcome::Taken;
    }
    assert!(hygiene::is_framed_clearly(answer.headers()), "{:?}", answer.headers());
    let bare = manner.head || [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&status);
    let (parts, body) = answer.into_parts();
    let Ok(body) = body.collect().await else { return Outcome::Refused };
    let body = body.to_bytes();
    let inside = |body: &[u8]| body.is_empty() || bytes.windows(body.len()).any(|it| it == body);
    if bare {
        assert_eq!(body.len(), 0, "{status} has no body");
    } else if let Some(length) = parts.headers.get(header::CONTENT_LENGTH) {
        let lengths: Vec<_> = parts.headers.get_all(header::CONTENT_LENGTH).iter().collect();
        assert!(lengths.iter().all(|it| *it == length), "which of {lengths:?}?");
        let said = length.to_str().ok().and_then(|text| text.trim().parse().ok());
        assert_eq!(said, Some(body.len()), "it is not as long as it says");
        assert!(inside(&body), "nobody sent this");
    } else if parts.headers.contains_key(header::TRANSFER_ENCODING) {
        assert!(has_chunks(bytes, &body), "nobody sent this, or not to its end");
    } else {
        // Such an answer ends with its connection.
        assert!(!manner.open, "there is no end");
        assert!(bytes.ends_with(&body), "nobody sent this");
    }
    Outcome::Taken
}

/// Whether somewhere after a line end chunks begin that are `body` and come to their end.
fn has_chunks(bytes: &[u8], body: &[u8]) -> bool {
    let begins = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    begins.map(|(at, _)| &bytes[at + 1..]).any(|chunks| is_chunks_of(chunks, body))
}

fn is_chunks_of(mut chunks: &[u8], mut body: &[u8]) -> bool {
    loop {
        let Some(end) = chunks.iter().position(|byte| *byte == b'\n') else { return false };
        let (line, rest) = chunks.split_at(end + 1);
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let size = std::str::from_utf8(&line[..digits]).expect("digits");
        let Ok(size) = usize::from_str_radix(size, 16) else { return false };
        if size == 0 {
            // Trailers, or none, and an empty line.
            let ends = rest.starts_with(b"\r\n") || rest.windows(4).any(|it| it == b"\r\n\r\n");
            let ends = ends || rest.starts_with(b"\n") || rest.windows(2).any(|it| it == b"\n\n");
            return body.is_empty() && ends;
        }
        let (Some((data, rest)), Some((sent, left))) =
            (rest.split_at_checked(size), body.split_at_checked(size))
        else {
            return false;
        };
        let Some(rest) = rest.strip_prefix(b"\r\n") else { return false };
        if data != sent {
            return false;
        }
        (chunks, body) = (rest, left);
    }
}
