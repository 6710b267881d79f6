//! What is remembered of one instance, as bytes.

use lca::{Digest, InstanceId, Spec, api::proto};
use prost::Message;

use crate::driver::Started;

/// How a record begins; a change of what follows changes the number.
const MAGIC: &[u8] = b"lca instance 1\n";
/// How those of every version begin.
const ANY: &[u8] = b"lca instance ";

/// How far an instance had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It was to run.
    Live,
    /// It was to end.
    Ending,
    /// It had ended because it was asked to.
    Stopped,
    /// It had ended, or never got ready.
    Failed,
}

/// One instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) instance: InstanceId,
    pub(crate) spec: Spec,
    pub(crate) phase: Phase,
    /// Milliseconds since 1970.
    pub(crate) admitted_ms: u64,
    /// When it ended; 0 before.
    pub(crate) ended_ms: u64,
    /// What it was told to listen on; `None` before.
    pub(crate) port: Option<u16>,
    /// The port of the front it was told of.
    pub(crate) front: Option<u16>,
    /// The process; pid 0 before it was started.
    pub(crate) started: Started,
    /// Why it ended, or is about to.
    pub(crate) reason: String,
    /// The last lines it wrote.
    pub(crate) output: Vec<String>,
}

/// What follows the magic and the SHA-256 of this.
#[derive(Clone, PartialEq, Message)]
struct Content {
    #[prost(string, tag = "1")]
    instance: String,
    #[prost(message, optional, tag = "2")]
    spec: Option<proto::ServiceSpec>,
    #[prost(uint32, tag = "3")]
    phase: u32,
    #[prost(uint64, tag = "4")]
    admitted_ms: u64,
    #[prost(uint64, tag = "5")]
    ended_ms: u64,
    #[prost(uint32, tag = "6")]
    port: u32,
    #[prost(uint32, tag = "7")]
    front: u32,
    #[prost(uint32, tag = "8")]
    pid: u32,
    #[prost(uint64, tag = "9")]
    start_time: u64,
    #[prost(string, tag = "10")]
    reason: String,
    #[prost(string, repeated, tag = "11")]
    output: Vec<String>,
}

impl Record {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let content = Content {
            instance: self.instance.to_string(),
            spec: Some((&self.spec).into()),
            phase: match self.phase {
                Phase::Live => 1,
                Phase::Ending => 2,
                Phase::Stopped => 3,
                Phase::Failed => 4,
            },
            admitted_ms: self.admitted_ms,
            ended_ms: self.ended_ms,
            port: self.port.unwrap_or(0).into(),
            front: self.front.unwrap_or(0).into(),
            pid: self.started.pid,
            start_time: self.started.start_time,
            reason: self.reason.clone(),
            output: self.output.clone(),
        };
        let content = content.encode_to_vec();
        [MAGIC, Digest::of(&content).as_bytes(), &content].concat()
    }

    /// Reads a record, or says what is wrong with it.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let Some(rest) = bytes.strip_prefix(MAGIC) else {
            let known = bytes.starts_with(ANY);
            return Err(if known { "it is of another version" } else { "it is no record" }.into());
        };
        let (digest, content) = rest.split_at_checked(32).ok_or("it is truncated")?;
        if Digest::of(content).as_bytes() != digest {
            return Err("it is damaged".to_owned());
        }
        let content = Content::decode(content).map_err(|error| error.to_string())?;
        let port = |number: u32| match u16::try_from(number) {
            Ok(0) => Ok(None),
            Ok(port) => Ok(Some(port)),
            Err(_) => Err(format!("{number} is no port")),
        };
        let spec = Spec::try_from(content.spec.unwrap_or_default());
        Ok(Self {
            instance: content.instance.parse().map_err(|error| format!("{error}"))?,
            spec: spec.map_err(|error| error.to_string())?,
            phase: match content.phase {
                1 => Phase::Live,
                2 => Phase::Ending,
                3 => Phase::Stopped,
                4 => Phase::Failed,
                other => return Err(format!("it is in a phase {other} that is not known")),
            },
            admitted_ms: content.admitted_ms,
            ended_ms: content.ended_ms,
            port: port(content.port)?,
            front: port(content.front)?,
            started: Started { pid: content.pid, start_time: content.start_time },
            reason: content.reason,
            output: content.output,
        })
    }
}
