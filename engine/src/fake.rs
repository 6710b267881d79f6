//! An engine that answers as a test says: by a few lines of HTTP on a socket of its own. It
//! takes one call a connection, as the client makes them.

use std::{path::PathBuf, sync::Arc};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    task::JoinHandle,
};

use crate::{Address, Engine};

/// Largest head of a request that is read.
const MAX_HEAD: usize = 64 << 10;

/// The head of a request.
pub(crate) struct Head(String);

impl Head {
    /// Path and query, as sent.
    pub(crate) fn target(&self) -> &str {
        self.0.split(' ').nth(1).unwrap_or_default()
    }

    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut fields = self.0.lines().skip(1).filter_map(|line| line.split_once(':'));
        fields.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

/// What is answered.
pub(crate) struct Reply {
    status: u16,
    body: String,
    hangs: bool,
}

impl Reply {
    /// 200 with this document.
    pub(crate) fn json(body: &str) -> Self {
        Self { status: 200, body: body.into(), hangs: false }
    }

    /// A failure in the engine's form.
    pub(crate) fn error(status: u16, message: &str) -> Self {
        Self { status, body: format!(r#"{{"message":"{message}"}}"#), hangs: false }
    }

    /// 200 and the beginning of a document, or, if that is empty, nothing at all; and no end.
    pub(crate) fn hang(body: &str) -> Self {
        Self { status: 200, body: body.into(), hangs: true }
    }
}

/// What every engine answers, so that it can be connected to.
pub(crate) fn whole(head: &Head) -> Reply {
    match head.target() {
        "/version" => {
            Reply::json(r#"{"Version":"1","ApiVersion":"1.41","Os":"linux","Arch":"amd64"}"#)
        }
        "/info" => Reply::json("{}"),
        _ => Reply::error(404, "page not found"),
    }
}

/// An engine until it is dropped.
pub(crate) struct Fake {
    address: Address,
    serving: JoinHandle<()>,
    _dir: TempDir,
}

impl Fake {
    /// One that answers like this.
    pub(crate) fn start(answer: impl Fn(&Head) -> Reply + Send + Sync + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path: PathBuf = dir.path().join("engine.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let answer = Arc::new(answer);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let answer = answer.clone();
                tokio::spawn(async move { serve(stream, &*answer).await });
            }
        });
        Self { address: Address::Unix(path), serving, _dir: dir }
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// A connection to it.
    pub(crate) async fn engine(&self) -> Engine {
        Engine::connect(&self.address).await.unwrap()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(mut stream: UnixStream, answer: &(dyn Fn(&Head) -> Reply + Send + Sync)) {
    let mut bytes = Vec::new();
    while !bytes.windows(4).any(|four| four == b"\r\n\r\n") && bytes.len() < MAX_HEAD {
        match stream.read_buf(&mut bytes).await {
            Ok(1..) => {}
            _ => return,
        }
    }
    let Reply { status, body, hangs } = answer(&Head(String::from_utf8_lossy(&bytes).into()));
    if !(hangs && body.is_empty()) {
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n"
        );
        // The client may have gone.
        let _gone = stream.write_all(format!("{head}{body}").as_bytes()).await;
    }
    if hangs {
        std::future::pending::<()>().await;
    }
}
