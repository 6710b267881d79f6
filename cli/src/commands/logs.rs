//! `lcactl logs`
//!
//! For people the bytes as they are; with `-o json` one object a line, since the
//! output of an instance may have no end.

use lca::{
    InstancePrefix, Kind,
    api::{
        self,
        proto::{self, InstanceState, instances_client::InstancesClient},
    },
};
use serde::Serialize;
use tokio::time::timeout;

use crate::{
    args::{Global, Logs as Args},
    connect,
    errors::{Failure, Result},
    output::{Format, Output},
};

/// A line longer than this is given in parts, so that a program that never ends one
/// does not fill our memory.
const MAX_LINE: usize = 64 << 10;

#[derive(Serialize)]
struct Line<'a> {
    line: &'a str,
}

pub(super) async fn run(args: Args, global: &Global, output: &mut Output) -> Result<()> {
    let channel = connect::daemon(global).await?;
    let mut allocator = proto::allocator_client::AllocatorClient::new(channel.clone());
    let request = proto::LogsRequest {
        instance: args.instance.to_string(),
        tail_lines: args.tail.unwrap_or(0),
        follow: args.follow,
    };
    let silent = || {
        let within = connect::ANSWER;
        Failure::new(Kind::Timeout, format!("the daemon did not answer within {within:?}"))
    };
    // Without grpc-timeout: it would end the stream, too.
    let opened = timeout(connect::ANSWER, allocator.logs(request)).await.map_err(|_| silent())?;
    let mut chunks = opened?.into_inner();
    let mut lines = Lines::default();
    loop {
        // Whoever follows waits for as long as the instance is silent.
        let chunk = match args.follow {
            true => chunks.message().await,
            false => timeout(connect::ANSWER, chunks.message()).await.map_err(|_| silent())?,
        };
        let chunk = chunk.map_err(|status| match args.follow {
            true => broken_off(lca::Error::from(status).public()),
            false => status.into(),
        })?;
        match chunk {
            Some(chunk) if output.format == Format::Table => output.raw(&chunk.data)?,
            Some(chunk) => output.raw(lines.take(&chunk.data).as_bytes())?,
            None => break,
        }
    }
    output.raw(lines.rest().as_bytes())?;
    match args.follow {
        true => ended(channel, &args.instance, output).await,
        false => Ok(()),
    }
}

/// Whoever follows is told whether the output ended because the instance did.
async fn ended(
    channel: connect::Api,
    instance: &InstancePrefix,
    output: &mut Output,
) -> Result<()> {
    let mut instances = InstancesClient::new(channel).max_decoding_message_size(api::MAX_ANSWER);
    let request = proto::ListInstancesRequest { include_ended: true, ..Default::default() };
    let answer =
        api::call("the daemon", connect::ANSWER, request, |r| instances.list_instances(r)).await;
    let answer = answer.map_err(|error| broken_off(error.public()))?;
    let is_it = |one: &&proto::Instance| one.id.parse().is_ok_and(|id| instance.matches(id));
    match answer.instances.iter().find(is_it) {
        None => Err(broken_off("its allocator does not answer")),
        Some(one) => match one.state() {
            InstanceState::Draining | InstanceState::Stopped | InstanceState::Failed => {
                let reason = if one.reason.is_empty() { "it was stopped" } else { &one.reason };
                output.note(&format!("the instance has ended: {reason}"));
                Ok(())
            }
            _ => Err(broken_off("the instance still runs")),
        },
    }
}

/// The end of what is followed that is not the end of the instance.
fn broken_off(why: &str) -> Failure {
    Failure::new(Kind::Unavailable, format!("the log broke off: {why}"))
        .hint("`lcactl instances` shows what runs; the same command follows it again")
}

/// Cuts chunks into lines.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    /// The lines that are complete with these bytes, as JSON.
    fn take(&mut self, data: &[u8]) -> String {
        let mut text = String::new();
        for part in data.split_inclusive(|byte| *byte == b'\n') {
            for piece in part.chunks(MAX_LINE) {
                self.0.extend_from_slice(piece);
                if piece.ends_with(b"\n") || self.0.len() >= MAX_LINE {
                    text.push_str(&self.rest());
                }
            }
        }
        text
    }

    /// What has come of a line that has no end yet.
    fn rest(&mut self) -> String {
        let bytes = std::mem::take(&mut self.0);
        if bytes.is_empty() {
            return String::new();
        }
        let line = String::from_utf8_lossy(bytes.strip_suffix(b"\n").unwrap_or(&bytes));
        let json = serde_json::to_string(&Line { line: &line });
        json.expect("a string always serialises") + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_put_together_from_chunks() {
        let mut lines = Lines::default();
        assert_eq!(lines.take(b"one\ntw"), "{\"line\":\"one\"}\n");
        assert_eq!(lines.take(b"o\n\n\xff"), "{\"line\":\"two\"}\n{\"line\":\"\"}\n");
        assert_eq!(lines.rest(), "{\"line\":\"\u{fffd}\"}\n");
        assert_eq!(lines.rest(), "");
    }

    #[test]
    fn a_line_without_end_is_given_in_parts() {
        let mut lines = Lines::default();
        let endless = lines.take(&vec![b'x'; 3 * MAX_LINE + 1]);
        assert_eq!(endless.lines().count(), 3);
        assert_eq!(lines.0.len(), 1);
    }
}
