//! The least that is HTTP/1.1 on both ends of a path, so that what is measured is between
//! them: an application that answers with so many bytes, and a client that reads them.

use std::{
    io,
    net::SocketAddr,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    task::JoinSet,
    time::timeout,
};

/// Longest head that either end reads.
const MAX_HEAD: usize = 16 << 10;
/// What the client reads at once.
const CHUNK: usize = 256 << 10;
/// The longest body that can be asked for.
const MAX_BODY: usize = 64 << 20;
/// A program of the benchmark listens within this; a request is answered within it.
const PATIENCE: Duration = Duration::from_secs(30);

/// The application as a process of its own: this program again. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) address: SocketAddr,
    _child: Child,
}

impl App {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("plain-app").stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("cannot start the application")?;
        let mut lines = BufReader::new(child.stdout.take().context("stdout is piped")?).lines();
        let line = timeout(PATIENCE, lines.next_line()).await.context("it does not listen")??;
        Ok(Self { address: line.context("it ended")?.parse()?, _child: child })
    }
}

/// Answers `GET /hello` with 13 bytes and `GET /bytes/N` with N, until it is killed. Says
/// first where it listens.
pub(crate) async fn serve() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let bytes: Bytes = (0..MAX_BODY).map(|n| (n % 251) as u8).collect();
    loop {
        let (stream, _) = listener.accept().await?;
        let bytes = bytes.clone();
        // A client that leaves, as one does whose time is over, ends it.
        tokio::spawn(async move { answer(stream, &bytes).await });
    }
}

async fn answer(mut stream: TcpStream, bytes: &[u8]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut head = Vec::with_capacity(1024);
    loop {
        let end = loop {
            if let Some(end) = end_of_head(&head) {
                break end;
            }
            if head.len() > MAX_HEAD || stream.read_buf(&mut head).await? == 0 {
                return Ok(());
            }
        };
        let target = head[..end].split(|byte| *byte == b' ').nth(1).unwrap_or_default();
        let wanted = std::str::from_utf8(target).ok().and_then(|target| {
            let count = target.strip_prefix("/bytes/")?.parse::<usize>().ok()?;
            bytes.get(..count)
        });
        let body = wanted.unwrap_or(b"Hello, world\n");
        let mut answer =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
        if body.len() < CHUNK {
            answer.extend_from_slice(body);
            stream.write_all(&answer).await?;
        } else {
            stream.write_all(&answer).await?;
            stream.write_all(body).await?;
        }
        head.drain(..end);
    }
}

fn end_of_head(head: &[u8]) -> Option<usize> {
    head.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

/// A connection on which one `GET` after another is sent.
#[derive(Debug)]
pub(crate) struct Client {
    stream: TcpStream,
    read: Vec<u8>,
    request: Vec<u8>,
}

impl Client {
    pub(crate) async fn connect(at: SocketAddr, target: &str) -> anyhow::Result<Self> {
        let stream = timeout(PATIENCE, TcpStream::connect(at)).await??;
        stream.set_nodelay(true)?;
        let request = format!("GET {target} HTTP/1.1\r\nHost: {at}\r\n\r\n").into_bytes();
        Ok(Self { stream, read: Vec::with_capacity(1024), request })
    }

    /// Asks once more and reads the answer; says how many bytes its body had.
    ///
    /// # Errors
    /// If it is no 200 with a length, or does not come in time.
    pub(crate) async fn get(&mut self) -> anyhow::Result<u64> {
        timeout(PATIENCE, self.exchange()).await.context("no answer in time")?
    }

    async fn exchange(&mut self) -> anyhow::Result<u64> {
        self.stream.write_all(&self.request).await?;
        self.read.clear();
        let end = loop {
            if let Some(end) = end_of_head(&self.read) {
                break end;
            }
            ensure!(self.read.len() <= MAX_HEAD, "a head without end");
            ensure!(self.stream.read_buf(&mut self.read).await? > 0, "closed without an answer");
        };
        let head = std::str::from_utf8(&self.read[..end])?;
        if !head.starts_with("HTTP/1.1 200 ") {
            bail!("{}", head.lines().next().unwrap_or_default());
        }
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
        });
        let length: u64 = length.context("an answer without a length")?;
        let mut left = length.checked_sub((self.read.len() - end) as u64).context("too much")?;
        if left > 0 {
            self.read.reserve(CHUNK);
        }
        while left > 0 {
            self.read.clear();
            let some = self.stream.read_buf(&mut self.read).await? as u64;
            ensure!(some > 0, "the body broke off");
            left = left.checked_sub(some).context("more than the length that was said")?;
        }
        Ok(length)
    }
}

/// What so many connections got done within a time.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) took: Vec<Duration>,
    pub(crate) bytes: u64,
    pub(crate) time: Duration,
}

impl Done {
    pub(crate) fn rate(&self) -> f64 {
        self.took.len() as f64 / self.time.as_secs_f64()
    }

    pub(crate) fn megabytes(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.time.as_secs_f64()
    }
}

/// Keeps so many connections busy for so long, each with one request at a time.
///
/// # Errors
/// If any request fails.
pub(crate) async fn load(
    at: SocketAddr,
    target: &str,
    connections: usize,
    time: Duration,
) -> anyhow::Result<Done> {
    let mut clients = Vec::with_capacity(connections);
    for _ in 0..connections {
        clients.push(Client::connect(at, target).await?);
    }
    let begin = Instant::now();
    let until = Arc::new(begin + time);
    let mut running = JoinSet::new();
    for mut client in clients {
        let until = until.clone();
        running.spawn(async move {
            let (mut took, mut bytes) = (Vec::new(), 0);
            while Instant::now() < *until {
                let since = Instant::now();
                bytes += client.get().await?;
                took.push(since.elapsed());
            }
            anyhow::Ok((took, bytes))
        });
    }
    let mut done = Done { took: Vec::new(), bytes: 0, time: Duration::ZERO };
    while let Some(ended) = running.join_next().await {
        let (took, bytes) = ended??;
        done.took.extend(took);
        done.bytes += bytes;
    }
    done.time = begin.elapsed();
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_asked_for_comes_whole_and_anything_else_fails() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move { answer(stream, &[7; 1 << 20]).await });
            }
        });
        for (target, length) in [("/hello", 13), ("/bytes/0", 0), ("/bytes/1048576", 1 << 20)] {
            let mut client = Client::connect(at, target).await.unwrap();
            for _ in 0..3 {
                assert_eq!(client.get().await.unwrap(), length, "{target}");
            }
        }
        let done = load(at, "/bytes/100000", 3, Duration::from_millis(20)).await.unwrap();
        assert_eq!(done.bytes, done.took.len() as u64 * 100_000);

        for answer in ["HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut client =
                Client::connect(listener.local_addr().unwrap(), "/hello").await.unwrap();
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            assert!(client.get().await.is_err(), "{answer}");
        }
    }
}
