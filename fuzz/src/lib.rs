//! What must hold for any bytes that come from outside.
//!
//! Each function takes what a fuzzer makes up, hands it to the code that reads it in a
//! daemon, and panics if a promise is broken: not only that nothing panics, but that what
//! was taken keeps the rules and means the same when it is written and read again. The
//! fuzzer's programs in `libfuzzer/` call them with coverage as a guide; the tests of this
//! package call them with every file of `corpus/`, so that what was found once stays found.

mod configuration;
mod ids_and_routing;
mod mesh_headers;
mod signed_records;

pub use configuration::configuration;
pub use ids_and_routing::ids_and_routing;
pub use mesh_headers::mesh_headers;
pub use signed_records::signed_records;

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
