//! The image of a spec, with the field names of the API.

use lca::api::proto;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Image {
    pub(crate) reference: String,
    pub(crate) digest: String,
    pub(crate) id: String,
    pub(crate) port: u32,
    pub(crate) read_only_root: bool,
    pub(crate) capabilities: Vec<String>,
    pub(crate) host_network: bool,
}

impl From<proto::Image> for Image {
    fn from(image: proto::Image) -> Self {
        Self {
            reference: image.reference,
            digest: image.digest,
            id: image.id,
            port: image.port,
            read_only_root: image.read_only_root,
            capabilities: image.capabilities,
            host_network: image.host_network,
        }
    }
}

impl From<Image> for proto::Image {
    fn from(image: Image) -> Self {
        Self {
            reference: image.reference,
            digest: image.digest,
            id: image.id,
            port: image.port,
            read_only_root: image.read_only_root,
            capabilities: image.capabilities,
            host_network: image.host_network,
        }
    }
}
