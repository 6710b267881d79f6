//! What an instance uses, with the field names of the API and as people read it.

use lca::{api::proto, units::show_size};
use serde::Serialize;

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Usage {
    pub(crate) cpu_us: u64,
    pub(crate) cpu_millis: u32,
    pub(crate) cpu_limit_millis: u32,
    pub(crate) memory_bytes: u64,
    pub(crate) memory_limit_bytes: u64,
}

impl From<proto::Usage> for Usage {
    fn from(usage: proto::Usage) -> Self {
        Self {
            cpu_us: usage.cpu_us,
            cpu_millis: usage.cpu_millis,
            cpu_limit_millis: usage.cpu_limit_millis,
            memory_bytes: usage.memory_bytes,
            memory_limit_bytes: usage.memory_limit_bytes,
        }
    }
}

impl Usage {
    /// Cores it uses of those it may have: `0.12/0.5`, or `0.12` without a limit.
    pub(crate) fn cpu(&self) -> String {
        let cores = |millis: u32| f64::from(millis) / 1000.0;
        match self.cpu_limit_millis {
            0 => format!("{:.2}", cores(self.cpu_millis)),
            limit => format!("{:.2}/{}", cores(self.cpu_millis), cores(limit)),
        }
    }

    /// Memory it uses of what it may have: `12 MiB/64 MiB`.
    pub(crate) fn memory(&self) -> String {
        let mebibytes = self.memory_bytes.div_ceil(1 << 20) << 20;
        format!("{}/{}", show_size(mebibytes), show_size(self.memory_limit_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_is_shown_beside_what_may_be() {
        let usage = proto::Usage {
            cpu_us: 1,
            cpu_millis: 123,
            cpu_limit_millis: 1500,
            memory_bytes: (11 << 20) + 1,
            memory_limit_bytes: 64 << 20,
        };
        let (limited, free) = (Usage::from(usage), proto::Usage { cpu_limit_millis: 0, ..usage });
        assert_eq!(
            (limited.cpu().as_str(), limited.memory()),
            ("0.12/1.5", "12 MiB/64 MiB".into())
        );
        assert_eq!(Usage::from(free).cpu(), "0.12");
    }
}
