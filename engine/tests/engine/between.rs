//! Something between the engine and a registry: it passes on what is asked and answered, one
//! request a connection, and does to it what a test wants.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// What becomes of blobs and manifests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Does {
    /// Nothing is done to them.
    Pass,
    /// Of each large blob so many bytes pass, and then nothing, and no end.
    StallAfter(usize),
    /// One bit of each large blob is another.
    FlipBlob,
    /// One bit of each manifest is another.
    FlipManifest,
    /// There are no manifests.
    NoManifest,
    /// Who does not say this in `authorization` is asked to.
    Ask(String),
    /// Every connection is closed at once.
    Close,
}

/// A blob that is a layer and not the configuration of an image.
const LARGE: usize = 16 << 10;

/// See the module. Gone when dropped.
pub(crate) struct Between {
    address: SocketAddr,
    does: Arc<Mutex<Does>>,
    seen: Arc<Mutex<Vec<String>>>,
    serving: JoinHandle<()>,
}

impl Between {
    pub(crate) async fn start(registry: SocketAddr, does: Does) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (does, seen) = (Arc::new(Mutex::new(does)), Arc::<Mutex<Vec<String>>>::default());
        let (doing, seeing) = (does.clone(), seen.clone());
        let serving = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (does, seen) = (doing.lock().unwrap().clone(), seeing.clone());
                // Whoever breaks off meets what a broken registry would give.
                tokio::spawn(async move { drop(serve(client, registry, does, &seen).await) });
            }
        });
        Self { address, does, seen, serving }
    }

    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn now(&self, does: Does) {
        *self.does.lock().unwrap() = does;
    }

    /// The requests that came, as `METHOD PATH`.
    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(
    mut client: TcpStream,
    registry: SocketAddr,
    does: Does,
    seen: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        // An engine tries TLS first: that is no head, and it is told so by the end.
        if does == Does::Close
            || client.read_buf(&mut head).await? == 0
            || !head[0].is_ascii()
            || head[0] < b' '
        {
            return Ok(());
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let line = head.lines().next().unwrap_or_default();
    let asked = line.rsplit_once(' ').map_or(line, |(asked, _)| asked).to_owned();
    seen.lock().unwrap().push(asked.clone());
    let (is_blob, is_manifest) = (asked.contains("/blobs/"), asked.contains("/manifests/"));
    if let Does::Ask(authorization) = &does
        && !head.lines().any(|line| {
            line.split_once(": ").is_some_and(|(name, value)| {
                name.eq_ignore_ascii_case("authorization") && value == authorization
            })
        })
    {
        let refused = "HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Basic realm=\"test\"\r\n\
                       docker-distribution-api-version: registry/2.0\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        return client.write_all(refused.as_bytes()).await;
    }
    if is_manifest && does == Does::NoManifest {
        let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
        let answer = format!(
            "HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        return client.write_all(answer.as_bytes()).await;
    }
    let mut upstream = TcpStream::connect(registry).await?;
    let lines = head.trim_end().lines().filter(|line| {
        let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
        name != "connection" && name != "accept-encoding" && name != "authorization"
    });
    let request = lines.collect::<Vec<_>>().join("\r\n") + "\r\nconnection: close\r\n\r\n";
    upstream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer).await?;
    let body =
        answer.windows(4).position(|four| four == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
    let length = answer.len() - body;
    let is_layer = is_blob && length > LARGE;
    match does {
        Does::StallAfter(bytes) if is_layer => {
            client.write_all(&answer[..body + bytes.min(length)]).await?;
            client.flush().await?;
            // Until the engine goes away.
            let mut rest = Vec::new();
            client.read_to_end(&mut rest).await?;
            return Ok(());
        }
        Does::FlipBlob if is_layer => answer[body + length / 2] ^= 1,
        Does::FlipManifest if is_manifest && length > 0 => {
            // Inside a digest, so that it stays JSON.
            let text = String::from_utf8_lossy(&answer[body..]).into_owned();
            let at = text.rfind("sha256:").map_or(length / 2, |at| at + 10);
            answer[body + at] = if answer[body + at] == b'0' { b'1' } else { b'0' };
        }
        _ => {}
    }
    client.write_all(&answer).await
}
