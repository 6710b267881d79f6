//! Carries the bytes of a stream whose link has a profile: one task a stream, which
//! ends with the stream. Each direction reads, notes when what it read is due on the
//! other side, and a second half delivers it then and not while the link is cut.

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream},
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Link;

/// What the user of a stream may have written that the pump has not read.
const PIPE: usize = 64 << 10;
/// Bytes read at once.
const CHUNK: usize = 16 << 10;
/// Chunks under way in one direction: 4 MiB at most, so 300 Mbit/s at 100 ms. Beyond,
/// the writer waits, as it would for a window.
const UNDER_WAY: usize = 256;
/// How long bytes already written are still delivered after the stream was dropped.
/// The kernel would try for minutes; a test wants its tasks to end.
const LINGER: Duration = Duration::from_secs(10);

/// Takes `stream` over. Returns the end to use instead of it, and what stops the pump
/// when dropped.
pub(super) fn start<S>(stream: S, link: Link) -> (DuplexStream, DropGuard)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (near, far) = tokio::io::duplex(PIPE);
    let gone = CancellationToken::new();
    let guard = gone.clone().drop_guard();
    // Not a task of the daemon's: whoever owns the stream ends it by dropping that.
    tokio::spawn(async move {
        let (from_near, to_near) = tokio::io::split(far);
        let (from_peer, to_peer) = tokio::io::split(stream);
        let outbound = async {
            // Not the end of what arrives: the peer may have answered before it closed.
            if let Err(error) = carry(from_near, to_peer, link.clone()).await {
                tracing::trace!(%error, "link: cannot deliver");
            }
            Ok(())
        };
        let inbound = async {
            let carried = carry(from_peer, to_near, link.clone());
            gone.run_until_cancelled(carried).await.unwrap_or(Ok(()))
        };
        let both = async { tokio::try_join!(outbound, inbound) };
        let abandoned = async {
            gone.cancelled().await;
            tokio::time::sleep(LINGER).await;
        };
        tokio::select! {
            _ = both => {}
            () = abandoned => {}
        }
    });
    (near, guard)
}

/// Moves bytes until `from` ends, then ends `to`. A failure of `from` takes as long to
/// arrive as bytes do, so nothing that was read before it is lost.
async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut link: Link,
) -> io::Result<()> {
    let (sender, mut under_way) = mpsc::channel::<(Instant, io::Result<Bytes>)>(UNDER_WAY);
    let leaving = link.clone();
    let read = async move {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(CHUNK);
            let read = from.read_buf(&mut buffer).await;
            let over = !matches!(read, Ok(1..));
            let chunk = read.map(|_| buffer.split().freeze());
            if sender.send((leaving.arrival(), chunk)).await.is_err() || over {
                return;
            }
        }
    };
    let deliver = async move {
        while let Some((due, chunk)) = under_way.recv().await {
            sleep_until(due).await;
            link.open().await;
            let chunk = chunk?;
            if chunk.is_empty() {
                return to.shutdown().await;
            }
            to.write_all(&chunk).await?;
            to.flush().await?;
        }
        Ok(())
    };
    tokio::pin!(read, deliver);
    tokio::select! {
        delivered = &mut deliver => delivered,
        () = &mut read => deliver.await,
    }
}
