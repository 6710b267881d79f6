//! What `service add` is told of an image.

use std::num::NonZeroU16;

use clap::Args;
use lca::Capability;

/// An image to run instead of a program, and what its containers may do.
#[derive(Clone, Debug, Default, Args)]
#[allow(
    rustdoc::broken_intra_doc_links,
    reason = "help that people read as it is, brackets included"
)]
pub struct Image {
    /// The container image to run: NAME[:TAG][@sha256:DIGEST], or sha256:ID. What a tag
    /// is today is asked once, of the Docker Engine here (DOCKER_HOST)
    #[arg(long, value_name = "REF", conflicts_with_all = ["exec", "external"])]
    pub image: Option<String>,
    /// The port its containers listen on [default: the one the image exposes, else 8080]
    #[arg(long, value_name = "PORT", conflicts_with_all = ["exec", "external"])]
    pub image_port: Option<NonZeroU16>,
    /// Its containers cannot write to their root file system
    #[arg(long, conflicts_with_all = ["exec", "external"])]
    pub read_only: bool,
    /// A capability its containers keep, such as NET_BIND_SERVICE, where the allocator
    /// allows it; repeatable
    #[arg(long, value_name = "NAME", value_parser = capability, conflicts_with_all = ["exec", "external"])]
    pub cap_add: Vec<Capability>,
    /// Its containers use the network of their machine, where the allocator allows it
    #[arg(long, conflicts_with_all = ["exec", "external"])]
    pub host_network: bool,
}

impl Image {
    /// The first flag that is about containers and does not say of which image.
    pub(crate) fn of_containers(&self) -> Option<&'static str> {
        [
            (self.image_port.is_some(), "--image-port"),
            (self.read_only, "--read-only"),
            (!self.cap_add.is_empty(), "--cap-add"),
            (self.host_network, "--host-network"),
        ]
        .into_iter()
        .find_map(|(given, flag)| given.then_some(flag))
    }
}

fn capability(text: &str) -> Result<Capability, String> {
    text.parse().map_err(|error: lca::Error| error.public().to_owned())
}
