//! The list of faults at the socket: what bytes come in, what the client gets, and what the
//! application has received of it, by the numbers of the list.

use std::sync::{Arc, Mutex};

use lca_proxy::Config;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use crate::world::{App, SOON, World, lines};

/// What is added on the way to the application, and is tested elsewhere.
const ADDED: [&str; 6] =
    ["host", "via", "forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"];

/// What the front does with the connection afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// It closes it without being asked to.
    Closes,
    /// It serves what comes next on it.
    Serves,
}
use After::{Closes, Serves};

/// What is sent, the statuses that come back, what becomes of the connection, and each
/// request that the application received whole: target, headers, body.
struct Case {
    what: String,
    sent: Vec<u8>,
    statuses: &'static [u16],
    after: After,
    received: Vec<String>,
}

fn case(
    what: &str,
    sent: impl AsRef<[u8]>,
    statuses: &'static [u16],
    after: After,
    received: &[&str],
) -> Case {
    let received = received.iter().map(|text| (*text).to_owned()).collect();
    Case { what: what.to_owned(), sent: sent.as_ref().to_vec(), statuses, after, received }
}

/// A GET of `/svc/x` with these header lines.
fn get(headers: &str) -> String {
    format!("GET /svc/x HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n")
}

/// A POST to `/svc/x` with these header lines and what follows them.
fn post(headers: &str, rest: &str) -> String {
    format!("POST /svc/x HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n{rest}")
}

/// The head of a GET of this target.
fn target(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

fn refused_by_the_parser() -> Vec<Case> {
    let chunked = "Transfer-Encoding: chunked\r\n";
    let mut cases = vec![
        case("1 version", "GET /svc/x HTTP/9.9\r\nHost: localhost\r\n\r\n", &[400], Closes, &[]),
        case("1 no version", "GET /svc/x\r\nHost: localhost\r\n\r\n", &[400], Closes, &[]),
        case(
            "1 garbage",
            b"\x01\x02 /svc/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
            &[400],
            Closes,
            &[],
        ),
        case("1 TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", &[400], Closes, &[]),
        case(
            "7 NUL",
            "GET /svc/x HTTP/1.1\r\nHost: localhost\r\na: b\0c\r\n\r\n",
            &[400],
            Closes,
            &[],
        ),
        case("7 CR", get("a: b\rc: d\r\n"), &[400], Closes, &[]),
        case("7 0x01", get("a: b\x01\r\n"), &[400], Closes, &[]),
        case("7 name", get("a\x01b: c\r\n"), &[400], Closes, &[]),
        case("7 fold", get("a: b\r\n c\r\n"), &[400], Closes, &[]),
        case("7 blank", get("a : b\r\n"), &[400], Closes, &[]),
        case("7 no colon", get("a\r\n"), &[400], Closes, &[]),
        case("8 fields", get(&"a: b\r\n".repeat(101)), &[431], Closes, &[]),
        case("8 bytes", get(&format!("a: {}\r\n", "b".repeat(66_000))), &[431], Closes, &[]),
        case(
            "8 target beyond all",
            target(&format!("/svc/{}", "a".repeat(65_600))),
            &[431],
            Closes,
            &[],
        ),
    ];
    let lengths = ["1\r\nContent-Length: 2", "+5", "-1", "0x5", "5, 6", "", "5 5"];
    for length in lengths.into_iter().chain(["123456789012345678901234567890"]) {
        let sent = post(&format!("Content-Length: {length}\r\n"), "hello");
        cases.push(case(&format!("4 {length}"), sent, &[400], Closes, &[]));
    }
    for coding in ["gzip", "gzip, chunked", "identity", "chunked;x", "xchunked", "chunked, gzip"] {
        let sent = post(&format!("Transfer-Encoding: {coding}\r\n"), "0\r\n\r\n");
        cases.push(case(&format!("5 {coding}"), sent, &[400], Closes, &[]));
    }
    let old =
        "POST /svc/x HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    cases.push(case("5 old", old, &[400], Closes, &[]));
    for size in ["0_2e", "0x10", "-1", "ffffffffffffffff1", "g", "", "5 5", "+5"] {
        let sent = post(chunked, &format!("{size}\r\nhello\r\n0\r\n\r\n"));
        cases.push(case(&format!("6 {size}"), sent, &[400], Closes, &[]));
    }
    cases.push(case("6 bare LF", post(chunked, "5\nhello\n0\n\n"), &[400], Closes, &[]));
    cases.push(case("6 long", post(chunked, "2\r\nhello\r\n0\r\n\r\n"), &[400], Closes, &[]));
    let junk = format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(20_000));
    cases.push(case("6 endless extension", post(chunked, &junk), &[400], Closes, &[]));
    cases
}

fn refused_by_the_front() -> Vec<Case> {
    let long = format!("/svc/{}", "a".repeat(16 << 10));
    let mut cases = vec![
        case("2 no host", "GET /svc/x HTTP/1.1\r\n\r\n", &[400], Closes, &[]),
        case("2 old, no host", "GET /svc/x HTTP/1.0\r\n\r\n", &[400], Closes, &[]),
        case("2 two hosts", get("Host: localhost\r\n"), &[400], Closes, &[]),
        case("2 empty host", "GET /svc/x HTTP/1.1\r\nHost:\r\n\r\n", &[400], Closes, &[]),
        case(
            "2 mismatch",
            "GET http://svc/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
            &[400],
            Closes,
            &[],
        ),
        case("8 target", target(&long), &[414], Serves, &[]),
        case("9 unknown", target("/nobody/x"), &[404], Serves, &[]),
        case("10 no slash", target("/svc?x=1"), &[308], Serves, &[]),
        case("10 star", "OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", &[400], Closes, &[]),
        case("10 trace", "TRACE /svc/x HTTP/1.1\r\nHost: localhost\r\n\r\n", &[405], Serves, &[]),
        case("10 authority", "GET svc:80 HTTP/1.1\r\nHost: svc:80\r\n\r\n", &[400], Closes, &[]),
        case("10 https", "GET https://svc/x HTTP/1.1\r\nHost: svc\r\n\r\n", &[400], Closes, &[]),
        case(
            "21 expectation",
            post("Expect: tea\r\nContent-Length: 0\r\n", ""),
            &[417],
            Serves,
            &[],
        ),
        case(
            "30 rebinding",
            "GET /svc/x HTTP/1.1\r\nHost: evil.example\r\n\r\n",
            &[421],
            Serves,
            &[],
        ),
        case(
            "30 absolute",
            "GET http://10.0.0.1/svc/x HTTP/1.1\r\nHost: 10.0.0.1\r\n\r\n",
            &[421],
            Serves,
            &[],
        ),
        case("rtt", get("LCA-Soft-RTT: -5\r\n"), &[400], Closes, &[]),
    ];
    for coding in [",chunked", "chunked, chunked", "chunked\r\nTransfer-Encoding: chunked"] {
        let sent = post(&format!("Transfer-Encoding: {coding}\r\n"), "0\r\n\r\n");
        cases.push(case(&format!("5 {coding}"), sent, &[400], Closes, &[]));
    }
    for path in ["/../x/", "/%2e%2e/", "//svc", "//", "/svc%2Fadmin", "/%00", "/SVC/x", "/", "*"] {
        cases.push(case(&format!("9 {path}"), target(path), &[400], Closes, &[]));
    }
    let overlong = b"GET /svc\xc0\xaf HTTP/1.1\r\nHost: localhost\r\n\r\n";
    cases.push(case("9 overlong", overlong, &[400], Closes, &[]));
    cases
}

fn passed_on() -> Vec<Case> {
    let bytes = target("/svc/%41+;=b//c/../d?e=%2F&?");
    let chunks = "1;ext=\"a b\"\r\na\r\n02\r\nbc\r\n0\r\n\r\n";
    let pipelined = format!(
        "{}GET /svc HTTP/1.1\r\nHost: localhost\r\n\r\n{}",
        post("Content-Length: 2\r\n", "ab"),
        get("")
    );
    let listed = "Connection: X-Auth, close\r\nX-Auth: 1\r\nX-Kept: 2\r\nKeep-Alive: 5\r\n";
    let chunked = "Transfer-Encoding: chunked\r\n";
    vec![
        case(
            "3 length first",
            post("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", chunks),
            &[200],
            Closes,
            &["POST /x\ntransfer-encoding: chunked\n\nabc"],
        ),
        case(
            "3 length last",
            post("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", chunks),
            &[200],
            Closes,
            &["POST /x\ntransfer-encoding: chunked\n\nabc"],
        ),
        case(
            "4 twice the same",
            post("Content-Length: 2\r\nContent-Length: 2\r\n", "ab"),
            &[200],
            Serves,
            &["POST /x\ncontent-length: 2\n\nab"],
        ),
        case(
            "5 upper case",
            post("Transfer-Encoding: CHUNKED\r\n", chunks),
            &[200],
            Serves,
            &["POST /x\ntransfer-encoding: chunked\n\nabc"],
        ),
        case(
            "6 extensions",
            post(chunked, chunks),
            &[200],
            Serves,
            &["POST /x\ntransfer-encoding: chunked\n\nabc"],
        ),
        case(
            "9 dots",
            target("/svc/../../other/%2e%2e"),
            &[200],
            Serves,
            &["GET /../../other/%2e%2e\n\n"],
        ),
        case(
            "10 old",
            "GET /svc/x HTTP/1.0\r\nHost: localhost\r\n\r\n",
            &[200],
            Closes,
            &["GET /x\n\n"],
        ),
        case(
            "10 options",
            "OPTIONS /svc/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
            &[200],
            Serves,
            &["OPTIONS /\n\n"],
        ),
        case("11 bytes", bytes, &[200], Serves, &["GET /%41+;=b//c/../d?e=%2F&?\n\n"]),
        case("12 listed", get(listed), &[200], Closes, &["GET /x\nx-kept: 2\n\n"]),
        case(
            "12 proxy",
            get("Proxy-Authorization: x\r\nProxy-X: y\r\nTE: gzip\r\nUpgrade: h2c\r\n"),
            &[200],
            Serves,
            &["GET /x\n\n"],
        ),
        case(
            "13 ours",
            get(
                "X-Forwarded-For: 6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nLCA-Instance: 0\r\nForwarded: for=6\r\n",
            ),
            &[200],
            Serves,
            &["GET /x\n\n"],
        ),
        case(
            "21 in one go",
            post("Expect: 100-Continue\r\nContent-Length: 2\r\n", "ab"),
            &[100, 200],
            Serves,
            &["POST /x\ncontent-length: 2\n\nab"],
        ),
        case(
            "23 empty body",
            post("Content-Length: 0\r\n", ""),
            &[200],
            Serves,
            &["POST /x\ncontent-length: 0\n\n"],
        ),
        case(
            "23 trailers",
            post(
                "Transfer-Encoding: chunked\r\nTrailer: x-sum\r\n",
                "2\r\nab\r\n0\r\nx-sum: 7\r\n\r\n",
            ),
            &[200],
            Serves,
            &["POST /x\ntrailer: x-sum\ntransfer-encoding: chunked\n\nab"],
        ),
        case(
            "25 pipelined",
            pipelined,
            &[200, 308, 200],
            Serves,
            &["POST /x\ncontent-length: 2\n\nab", "GET /x\n\n"],
        ),
    ]
}

#[tokio::test]
async fn bytes_that_come_in_are_refused_or_passed_on_as_the_list_of_faults_has_it() {
    // No clock of the front may be what closes a connection.
    let world = World::with(Config { header: 4 * SOON, ..Config::default() }).await;
    let received = Received::default();
    let app = world.service("svc").await;
    let recording = tokio::spawn(record(app, received.clone()));
    let mut wrong = Vec::new();
    for case in [refused_by_the_parser(), refused_by_the_front(), passed_on()].into_iter().flatten()
    {
        let mut client = world.client().await;
        client.0.write_all(&case.sent).await.unwrap();
        if case.after == Serves {
            client.write("OPTIONS /svc HTTP/1.1\r\nHost: localhost\r\nLast: 1\r\n\r\n").await;
            // 20: what is asked is answered to one who sends nothing more.
            client.0.shutdown().await.unwrap();
        }
        let mut answer = Vec::new();
        let ended = timeout(SOON, client.0.read_to_end(&mut answer)).await;
        let mut statuses = statuses(&answer);
        if case.after == Serves && statuses.pop() != Some(308) {
            wrong.push(format!("{}: nothing more is served", case.what));
        }
        let got = std::mem::take(&mut *received.0.lock().unwrap());
        if ended.is_err() || statuses != case.statuses || got != case.received {
            let text = String::from_utf8_lossy(&answer);
            wrong.push(format!(
                "{}: ended {ended:?}, {statuses:?}, the application got {got:?}\n{text}",
                case.what
            ));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    recording.abort();
}

/// The statuses of all answers, in order. None of their bodies holds a status line.
fn statuses(answers: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(answers).into_owned();
    let starts = text.match_indices("HTTP/1.").map(|(at, _)| &text[at + 9..at + 12]);
    starts.filter_map(|status| status.parse().ok()).collect()
}

/// Every request that an application has received whole.
#[derive(Clone, Debug, Default)]
struct Received(Arc<Mutex<Vec<String>>>);

/// Answers every request with 200, and writes it down.
async fn record(app: App, received: Received) {
    while let Ok((mut stream, _)) = app.listener.accept().await {
        let received = received.clone();
        tokio::spawn(async move {
            let mut bytes = Vec::new();
            loop {
                while let Some((request, length)) = whole(&bytes) {
                    bytes.drain(..length);
                    received.0.lock().unwrap().push(request);
                    let ok = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                    if stream.write_all(ok).await.is_err() {
                        return;
                    }
                }
                if !matches!(stream.read_buf(&mut bytes).await, Ok(1..)) {
                    return;
                }
            }
        });
    }
}

/// The first request of `bytes`, if it is whole, and its length. It trusts that chunks
/// come as the ingress writes them.
fn whole(bytes: &[u8]) -> Option<(String, usize)> {
    let text = std::str::from_utf8(bytes).expect("these requests are text");
    let end = text.find("\r\n\r\n")? + 4;
    let mut headers = lines(&text[..end]);
    let first = headers.remove("").unwrap();
    let first = first.strip_suffix(" HTTP/1.1").expect("always in this version").to_owned();
    let (mut at, mut body) = (end, String::new());
    if let Some(length) = headers.get("content-length") {
        at += length.parse::<usize>().unwrap();
        body.push_str(text.get(end..at)?);
    } else if headers.contains_key("transfer-encoding") {
        loop {
            let (size, _) = text[at..].split_once("\r\n")?;
            at += size.len() + 2;
            let size = usize::from_str_radix(size, 16).expect("the size of a chunk and no more");
            if size == 0 {
                at += text[at..].find("\r\n")? + 2;
                if !text[..at].ends_with("\r\n\r\n") {
                    at += text[at..].find("\r\n")? + 2; // after a trailer
                }
                break;
            }
            body.push_str(text.get(at..at + size)?);
            at += size + 2;
        }
    }
    let left = headers.iter().filter(|(name, _)| !ADDED.contains(&name.as_str()));
    let left: String = left.map(|(name, value)| format!("{name}: {value}\n")).collect();
    Some((format!("{first}\n{left}\n{body}"), at))
}
