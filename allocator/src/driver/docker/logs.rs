//! What a container wrote, as the engine kept it.

use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use lca::{Error, Kind, Result};
use lca_engine::{
    Engine,
    bollard::{errors::Error as Bollard, query_parameters::LogsOptionsBuilder},
    failed,
};
use tokio::time::{Duration, timeout};

use crate::driver::{Begin, MAX_CHUNK, Output};

/// Lines that are asked for where somebody wants the last bytes: few programs write lines so
/// short that more of them would be needed, and longer ones are cut.
const LINES_OF_BYTES: &str = "400";
/// Within this the engine has sent the next piece of what it has kept, or hangs.
const PIECE: Duration = Duration::from_secs(10);

/// Reads the output of the container `name`.
///
/// # Errors
/// [`Kind::NotFound`] if there is none; [`Kind::Unavailable`] if the engine does not answer.
pub(super) async fn read(engine: &Engine, name: &str, from: Begin, follow: bool) -> Result<Output> {
    let lines = match from {
        Begin::Oldest => "all".to_owned(),
        Begin::LastLines(lines) => lines.to_string(),
        Begin::LastBytes(_) => LINES_OF_BYTES.to_owned(),
    };
    let options =
        LogsOptionsBuilder::new().stdout(true).stderr(true).follow(follow).tail(&lines).build();
    let pieces =
        engine.docker().logs(name, Some(options)).map_ok(|piece| piece.into_bytes()).boxed();
    let output = stream::unfold((pieces, false), move |(mut pieces, over)| async move {
        if over {
            return None;
        }
        // Somebody who follows waits for as long as nothing is written.
        let next = match follow {
            true => Ok(pieces.next().await),
            false => timeout(PIECE, pieces.next()).await,
        };
        let piece = match next {
            Ok(None) => return None,
            Ok(Some(piece)) => piece.map_err(unreadable),
            Err(_) => Err(Error::new(Kind::Unavailable, "the Docker Engine sends no output")),
        };
        let over = piece.is_err();
        Some((piece, (pieces, over)))
    });
    let output: Output = output.map_ok(cut).try_flatten().boxed();
    match from {
        Begin::LastBytes(bytes) if !follow => last(output, bytes).await,
        _ => Ok(output),
    }
}

fn unreadable(error: Bollard) -> Error {
    failed("read the output of a container", error)
}

/// The same in pieces that are not too long.
fn cut(mut piece: Bytes) -> stream::BoxStream<'static, Result<Bytes>> {
    let mut pieces = Vec::new();
    while piece.len() > MAX_CHUNK {
        pieces.push(Ok(piece.split_to(MAX_CHUNK)));
    }
    pieces.push(Ok(piece));
    stream::iter(pieces).boxed()
}

/// The end of it.
async fn last(mut output: Output, bytes: u64) -> Result<Output> {
    let keep = usize::try_from(bytes).unwrap_or(usize::MAX).min(MAX_CHUNK);
    let mut kept = BytesMut::new();
    while let Some(piece) = output.try_next().await? {
        kept.extend_from_slice(&piece);
        let over = kept.len().saturating_sub(keep);
        drop(kept.split_to(over));
    }
    Ok(stream::iter([Ok(kept.freeze())]).boxed())
}
