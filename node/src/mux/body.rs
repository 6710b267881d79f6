//! The body of a request or an answer as it comes on a stream.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use super::shared::{Part, Shared};
use crate::h1::BoxError;

/// A body that comes on a stream. It fails if its stream is over before it is, or if it
/// has not the length that its head says.
#[derive(Debug)]
pub struct Incoming {
    shared: Arc<Shared>,
    id: u32,
    /// Of what is said to come.
    left: Option<u64>,
    over: bool,
}

/// Why a body is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    #[error("the stream was over before its body")]
    Off,
    #[error("the body has not the length that was said")]
    Length,
}

impl Incoming {
    pub(super) fn new(shared: Arc<Shared>, id: u32, length: Option<u64>, whole: bool) -> Self {
        Self { shared, id, left: if whole { Some(0) } else { length }, over: whole }
    }

    fn part(&mut self, part: Part) -> Result<Option<Frame<Bytes>>, Broken> {
        match part {
            Part::Data(data) => {
                if let Some(left) = &mut self.left {
                    *left = left.checked_sub(data.len() as u64).ok_or(Broken::Length)?;
                }
                Ok(Some(Frame::data(data)))
            }
            Part::Trailers(trailers) if self.left.is_none_or(|left| left == 0) => {
                Ok(Some(Frame::trailers(trailers)))
            }
            Part::End if self.left.is_none_or(|left| left == 0) => Ok(None),
            Part::End | Part::Trailers(_) => Err(Broken::Length),
            Part::Broken => Err(Broken::Off),
        }
    }
}

impl HttpBody for Incoming {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.over {
            return Poll::Ready(None);
        }
        let id = self.id;
        let part = self.shared.tell(|state| {
            let Some(stream) = state.streams.get_mut(&id) else {
                return Some((Part::Broken, false));
            };
            let part = stream.part();
            let whole = stream.is_whole();
            match &part {
                None => stream.reader = Some(cx.waker().clone()),
                Some(Part::Data(_)) => state.allow(id),
                Some(_) => {}
            }
            part.map(|part| (part, whole))
        });
        let Some((part, whole)) = part else { return Poll::Pending };
        let frame = self.part(part);
        // With a length said, the end must be there to be compared.
        self.over = match &frame {
            Ok(Some(_)) => whole && self.left.is_none_or(|left| left == 0),
            Ok(None) | Err(_) => true,
        };
        Poll::Ready(frame.map_err(Into::into).transpose())
    }

    fn is_end_stream(&self) -> bool {
        self.over
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map(SizeHint::with_exact).unwrap_or_default()
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.over {
            self.shared.lock().ignore(self.id);
        }
    }
}
