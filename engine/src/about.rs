//! What an engine says of itself.

use bollard::models::{SystemInfo, SystemInfoCgroupVersionEnum as Cgroup, SystemVersion};

/// What kind of engine it is, and of which machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// Its version, such as `20.10.24`; empty if it does not say.
    pub version: String,
    /// The newest version of its API, such as `1.41`.
    pub api: String,
    /// What images must be for: `linux`.
    pub os: String,
    /// And for which processors, in the words of images: `amd64`, `arm64`.
    pub architecture: String,
    /// Which version of control groups its containers are limited by, 1 or 2; 0 if it
    /// does not say.
    pub cgroup: u8,
    /// By which it is told from other engines; empty if it does not say.
    pub id: String,
}

impl About {
    /// From its two answers. What it leaves out stays empty.
    pub(crate) fn new(version: SystemVersion, info: SystemInfo) -> Self {
        Self {
            version: version.version.unwrap_or_default(),
            api: version.api_version.unwrap_or_default(),
            os: version.os.unwrap_or_default(),
            architecture: version.arch.unwrap_or_default(),
            cgroup: match info.cgroup_version {
                Some(Cgroup::_1) => 1,
                Some(Cgroup::_2) => 2,
                Some(Cgroup::EMPTY) | None => 0,
            },
            id: info.id.unwrap_or_default(),
        }
    }
}
