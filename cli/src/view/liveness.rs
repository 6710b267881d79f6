//! How a hanging instance is noticed, with the field names of the API and in words.

use lca::{api::proto, units::setting_millis};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Liveness {
    pub(crate) http_path: String,
    pub(crate) interval_ms: u64,
    pub(crate) timeout_ms: u64,
    pub(crate) failures: u32,
}

impl From<proto::Liveness> for Liveness {
    fn from(liveness: proto::Liveness) -> Self {
        let proto::Liveness { http_path, interval_ms, timeout_ms, failures } = liveness;
        Self { http_path, interval_ms, timeout_ms, failures }
    }
}

impl From<Liveness> for proto::Liveness {
    fn from(liveness: Liveness) -> Self {
        let Liveness { http_path, interval_ms, timeout_ms, failures } = liveness;
        Self { http_path, interval_ms, timeout_ms, failures }
    }
}

impl Liveness {
    /// In one line: `GET /healthz every 10 s, 3 times without an answer in 1 s`.
    pub(crate) fn words(&self) -> String {
        format!(
            "GET {} every {}, {} times without an answer in {}",
            self.http_path,
            setting_millis(self.interval_ms),
            self.failures,
            setting_millis(self.timeout_ms),
        )
    }
}
