//! What must hold for any bytes that come from outside.
//!
//! Each function takes what a fuzzer makes up, hands it to the code that reads it in a
//! daemon, and panics if a promise is broken: not only that nothing panics, but that what
//! was taken keeps the rules and means the same when it is written and read again. The
//! fuzzer's programs in `libfuzzer/` call them with coverage as a guide; the tests of this
//! package call them with every file of `corpus/`, so that what was found once stays found.

mod answers;
mod configuration;
mod ids_and_routing;
mod mesh_headers;
mod rewriting;
mod signed_records;
mod upgrades;

use http::{HeaderMap, HeaderName, HeaderValue};

pub use answers::answers;
pub use configuration::configuration;
pub use ids_and_routing::ids_and_routing;
pub use mesh_headers::mesh_headers;
pub use rewriting::rewriting;
pub use signed_records::signed_records;
pub use upgrades::upgrades;

/// Whether an input was taken. A corpus in which nothing is, or everything, tests little.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is well formed.
    Taken,
    /// It is not, and was refused as it should be.
    Refused,
}

impl From<bool> for Outcome {
    fn from(taken: bool) -> Self {
        if taken { Self::Taken } else { Self::Refused }
    }
}

/// The lines that are headers, at most 128 of them.
fn lines_of(input: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in input.split(|byte| *byte == b'\n').take(128) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    headers
}
