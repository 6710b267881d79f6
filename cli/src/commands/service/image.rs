//! Images in `lcactl service`: which one is meant, and how it is shown.
//!
//! A tag is made a digest here, once, by the engine of the machine that registers it; what
//! the registry of services is given names one image for ever.

use lca::{Kind, Pin, api::proto};
use lca_engine::{Address, Keyring, Resolved, resolve};

use crate::{
    args::ImageArgs,
    errors::{Failure, Result},
    output::Output,
    view::{self, ServiceSpec, short_digest},
};

/// Finds out which image is meant, if one is named, and tells what is worth knowing of it.
pub(super) async fn find(args: &ImageArgs, output: &mut Output) -> Result<Option<Resolved>> {
    let Some(text) = &args.image else { return Ok(None) };
    let address = Address::of_the_environment()?;
    let resolved = resolve(text, &address, &Keyring::of_the_environment()).await?;
    resolved.notes.iter().for_each(|note| output.note(&format!("note: {note}")));
    Ok(Some(resolved))
}

/// Writes into `spec` what was found and what the flags say. The flags alone change what a
/// file says of an image.
pub(super) fn apply(
    args: &ImageArgs,
    found: Option<Resolved>,
    spec: &mut proto::ServiceSpec,
) -> Result<()> {
    if let Some(found) = found {
        spec.artifact = String::new();
        let image = spec.image.get_or_insert_default();
        image.reference = found.reference;
        (image.digest, image.id) = match found.pin {
            Pin::Digest(digest) => (digest.to_string(), String::new()),
            Pin::Id(id) => (String::new(), id.to_string()),
        };
    }
    match (&mut spec.image, args.of_containers()) {
        (Some(image), _) => {
            image.port = args.image_port.map_or(image.port, |port| port.get().into());
            image.read_only_root |= args.read_only;
            image.host_network |= args.host_network;
            image.capabilities.extend(args.cap_add.iter().map(ToString::to_string));
            Ok(())
        }
        (None, Some(flag)) => {
            let sentence = format!("{flag} is about containers, and no image is named");
            Err(Failure::new(Kind::InvalidArgument, sentence).hint("--image REF names one"))
        }
        (None, None) => Ok(()),
    }
}

/// What runs, in a word.
pub(super) fn what(spec: &ServiceSpec) -> String {
    match (&spec.image, spec.artifact.as_str()) {
        (Some(image), _) => familiar(&image.reference),
        (None, "") => "external".to_owned(),
        (None, digest) => short_digest(digest),
    }
}

/// An image's name and tag as Docker shows them, a digest only where there is no tag; an ID
/// without its algorithm, shortened.
fn familiar(reference: &str) -> String {
    if reference.starts_with("sha256:") {
        return short_digest(reference);
    }
    match reference.parse::<lca::ImageRef>() {
        Ok(image) => match (image.tag(), image.digest()) {
            (None, Some(digest)) => {
                format!("{}@{}", image.familiar_name(), short_digest(&digest.to_string()))
            }
            (tag, _) => format!("{}:{}", image.familiar_name(), tag.unwrap_or_default()),
        },
        Err(_) => reference.to_owned(),
    }
}

/// What is said of an image, in the words of `service add`.
pub(super) fn fields(image: &view::Image) -> Vec<(&'static str, String)> {
    let yes = |is: bool| if is { "yes".to_owned() } else { String::new() };
    vec![
        ("image", image.reference.clone()),
        ("image digest", image.digest.clone()),
        ("image id", image.id.clone()),
        ("image port", super::setting(image.port)),
        ("read only", yes(image.read_only_root)),
        ("capabilities", image.capabilities.join(" ")),
        ("host network", yes(image.host_network)),
    ]
}
