//! Which image a spec means, having it here, and what its containers listen on.

use lca::{Error, Image, Kind, Result, api::proto::Fetching};
use lca_engine::{Engine, Progress, Stock, Wanted, bollard::models::ContainerInspectResponse};

use crate::driver::Container;

/// The container of an image, which is pulled if it is not here and there is a `stock` to
/// keep it in.
///
/// # Errors
/// As [`Stock::have`]; [`Kind::NotHere`] if it is not here and there is no stock.
pub(super) async fn have(
    engine: &Engine,
    stock: Option<&Stock>,
    image: &Image,
    told: &mut (dyn FnMut(Fetching) + Send),
) -> Result<Container> {
    let wanted = Wanted::of(image)?;
    let here = match stock {
        Some(stock) => {
            let mut told = |progress| told(fetching(progress));
            stock.have(engine, &wanted, &mut told).await?
        }
        None => engine.present(&wanted).await?.ok_or_else(|| {
            let what = format!("image {} is not present here", wanted.name());
            Error::new(Kind::NotHere, what)
        })?,
    };
    Ok(Container {
        image: here.id,
        port: image.port.map_or_else(|| port(&here.ports), |port| port.get()),
        read_only_root: image.read_only_root,
        capabilities: image.capabilities.clone(),
        host_network: image.host_network,
    })
}

const fn fetching(progress: Progress) -> Fetching {
    let Progress { bytes, total_bytes, layers, total_layers } = progress;
    Fetching { bytes, total_bytes, layers, total_layers }
}

/// The only port that is exposed, else the usual one.
fn port(exposed: &[u16]) -> u16 {
    match exposed {
        [only] => *only,
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
        for (exposed, expected) in [(&[80][..], 80), (&[80, 443], 8080), (&[], 8080)] {
            assert_eq!(port(exposed), expected, "{exposed:?}");
        }
    }
}
