//! Which image a spec means, and what its containers listen on.

use lca::{Error, Image, Kind, Pin, Result};
use lca_engine::{
    Engine,
    bollard::models::{ContainerInspectResponse, ImageInspect},
};

use crate::driver::Container;

/// The container of an image that is present.
///
/// # Errors
/// [`Kind::NotHere`] if it is not present; [`Kind::FailedPrecondition`] if it is for another
/// kind of machine.
pub(super) async fn look_up(engine: &Engine, image: &Image) -> Result<Container> {
    let name = match image.pin {
        Pin::Id(id) => id.to_string(),
        Pin::Digest(digest) => at(&image.reference, &digest.to_string()),
    };
    let said = engine.call("look for its image", engine.docker().inspect_image(&name)).await;
    match said {
        Err(error) if error.kind() == Kind::NotFound => {
            let what = format!("image {} ({name}) is not present here", image.reference);
            Err(Error::new(Kind::NotHere, what).because(error))
        }
        said => container(engine, image, &said?),
    }
}

/// `name:tag` or `name@digest` at another digest.
fn at(reference: &str, digest: &str) -> String {
    let name = reference.split_once('@').map_or(reference, |(name, _)| name);
    let name = match name.rsplit_once(':') {
        // Else it is the port of a registry.
        Some((name, tag)) if !tag.contains('/') => name,
        _ => name,
    };
    format!("{name}@{digest}")
}

fn container(engine: &Engine, image: &Image, said: &ImageInspect) -> Result<Container> {
    let about = engine.about();
    let foreign = |ours: &str, its: Option<&str>| {
        its.is_some_and(|its| !its.is_empty() && !ours.is_empty() && its != ours)
    };
    let (os, architecture) = (said.os.as_deref(), said.architecture.as_deref());
    if foreign(&about.os, os) || foreign(&about.architecture, architecture) {
        let its = [os, architecture].map(|word| word.unwrap_or_default()).join("/");
        let what = format!(
            "image {} is for {its}, this machine is {}/{}",
            image.reference, about.os, about.architecture
        );
        return Err(Error::new(Kind::NotHere, what));
    }
    let id = said.id.as_deref().unwrap_or_default();
    let id = id.parse().map_err(|error| {
        Error::new(Kind::Internal, "the Docker Engine names an image oddly").because(error)
    })?;
    let exposed = said.config.as_ref().and_then(|config| config.exposed_ports.as_deref());
    Ok(Container {
        image: id,
        port: image.port.map_or_else(|| port(exposed.unwrap_or_default()), |port| port.get()),
        read_only_root: image.read_only_root,
        capabilities: image.capabilities.clone(),
        host_network: image.host_network,
    })
}

/// The only port that is exposed, else the usual one.
fn port(exposed: &[String]) -> u16 {
    let tcp = exposed.iter().filter_map(|port| port.strip_suffix("/tcp").or(Some(port)));
    let mut ports = tcp.filter_map(|port| port.parse::<u16>().ok());
    match (ports.next(), ports.next()) {
        (Some(only), None) => only,
        _ => Image::DEFAULT_PORT,
    }
}

/// What a container of ours listens on: the port that is published for it.
pub(super) fn port_of(said: &ContainerInspectResponse) -> Option<u16> {
    let bindings = said.host_config.as_ref()?.port_bindings.as_ref()?;
    bindings.keys().find_map(|port| port.strip_suffix("/tcp")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_only_exposed_port_is_the_one() {
        for (exposed, expected) in [
            (&["80/tcp"][..], 80),
            (&["80"], 80),
            (&["80/tcp", "53/udp"], 80),
            (&["80/tcp", "443/tcp"], 8080),
            (&[], 8080),
        ] {
            let exposed: Vec<_> = exposed.iter().map(ToString::to_string).collect();
            assert_eq!(port(&exposed), expected, "{exposed:?}");
        }
    }

    #[test]
    fn an_image_is_asked_for_by_its_digest_alone() {
        for reference in ["host:5000/web", "host:5000/web:1", "host:5000/web:1@sha256:1"] {
            assert_eq!(at(reference, "sha256:2"), "host:5000/web@sha256:2");
        }
        assert_eq!(at("docker.io/library/web:1", "sha256:2"), "docker.io/library/web@sha256:2");
    }
}
