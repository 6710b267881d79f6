//! What runs, as it is sent.

use std::num::NonZeroU16;

use super::{invalid, proto};
use crate::{
    Digest, ImageRef, Result,
    spec::{Image, Pin, Runs},
};

/// More capabilities than Linux has: a flood, not a wish.
const MAX_CAPABILITIES: usize = 64;

/// Reads what runs: an artifact, an image, or nothing of ours.
pub(super) fn read(artifact: &str, image: Option<proto::Image>) -> Result<Runs> {
    match (artifact, image) {
        ("", None) => Ok(Runs::External),
        (digest, None) => Ok(Runs::Artifact(digest.parse()?)),
        ("", Some(image)) => Ok(Runs::Image(Box::new(self::image(image)?))),
        (_, Some(_)) => Err(invalid("artifact and image: only one of both can run")),
    }
}

/// Writes what runs: an artifact or nothing, and an image or none.
pub(super) fn write(runs: &Runs) -> (String, Option<proto::Image>) {
    match runs {
        Runs::External => (String::new(), None),
        Runs::Artifact(digest) => (digest.to_string(), None),
        Runs::Image(image) => (String::new(), Some(proto::Image::from(&**image))),
    }
}

fn image(image: proto::Image) -> Result<Image> {
    let reference = image.reference;
    let legible = !reference.is_empty() && reference.bytes().all(|byte| byte.is_ascii_graphic());
    if !legible || reference.len() > Image::MAX_REFERENCE {
        let longest = Image::MAX_REFERENCE;
        return Err(invalid(format!(
            "image.reference must be 1 to {longest} printable characters"
        )));
    }
    let digest = |field: &str, text: &str| {
        let parsed = text.parse::<Digest>();
        parsed.map_err(|error| invalid(format!("image.{field}: {error}")))
    };
    let pin = match (image.digest.as_str(), image.id.as_str()) {
        ("", "") => {
            return Err(invalid("image: neither digest nor id says which it is")
                .hint("`lcactl service add NAME --image REF` finds out"));
        }
        (text, "") => Pin::Digest(digest("digest", text)?),
        ("", text) => Pin::Id(digest("id", text)?),
        _ => return Err(invalid("image: it has a digest or an id, not both")),
    };
    let reference = match pin {
        // Where a pull asks.
        Pin::Digest(_) => {
            let named = reference.parse::<ImageRef>();
            named.map_err(|error| invalid(format!("image.reference: {error}")))?.to_string()
        }
        Pin::Id(_) => reference,
    };
    let port = u16::try_from(image.port)
        .map_err(|_| invalid(format!("image.port: {} is no port", image.port)))?;
    if image.capabilities.len() > MAX_CAPABILITIES {
        return Err(invalid(format!("image.capabilities: at most {MAX_CAPABILITIES}")));
    }
    let capabilities = image.capabilities.iter().map(|name| name.parse()).collect::<Result<_>>()?;
    Ok(Image {
        reference,
        pin,
        port: NonZeroU16::new(port),
        read_only_root: image.read_only_root,
        capabilities,
        host_network: image.host_network,
    })
}

impl From<&Image> for proto::Image {
    fn from(image: &Image) -> Self {
        let (digest, id) = match image.pin {
            Pin::Digest(digest) => (digest.to_string(), String::new()),
            Pin::Id(id) => (String::new(), id.to_string()),
        };
        Self {
            reference: image.reference.clone(),
            digest,
            id,
            port: image.port.map_or(0, |port| port.get().into()),
            read_only_root: image.read_only_root,
            capabilities: image.capabilities.iter().map(ToString::to_string).collect(),
            host_network: image.host_network,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Spec, spec::tests::least};

    fn web() -> proto::Image {
        proto::Image {
            reference: "docker.io/library/web:1".into(),
            digest: Digest::of(b"manifest").to_string(),
            port: 80,
            capabilities: vec!["cap_net_bind_service".into()],
            ..Default::default()
        }
    }

    fn spec(image: proto::Image) -> Result<Spec> {
        let artifact = String::new();
        Spec::try_from(proto::ServiceSpec { artifact, image: Some(image), ..least() })
    }

    #[test]
    fn an_image_survives_the_wire_and_has_longer_to_start() {
        let spec = spec(web()).unwrap();
        assert_eq!(Spec::try_from(proto::ServiceSpec::from(&spec)).unwrap(), spec);
        assert_eq!(spec.readiness.start_timeout, Duration::from_secs(60));
        assert!(!spec.is_external());
        assert_eq!(spec.runs.driver(), Some("docker"));
    }

    #[test]
    fn what_cannot_be_an_image_is_refused_by_field() {
        type Change = fn(&mut proto::Image);
        let changes: [(&str, Change); 10] = [
            ("image.reference", |image| image.reference.clear()),
            ("image.reference", |image| image.reference = "a b".into()),
            ("image.reference", |image| image.reference = "a".repeat(513)),
            ("capital letters", |image| image.reference = "web/A".into()),
            ("neither digest nor id", |image| image.digest.clear()),
            ("image.digest: digest", |image| image.digest = "sha256:1".into()),
            ("not both", |image| image.id = image.digest.clone()),
            ("image.port", |image| image.port = 65_536),
            ("capability FLY", |image| image.capabilities.push("FLY".into())),
            ("image.capabilities: at most", |image| {
                image.capabilities = vec!["KILL".into(); MAX_CAPABILITIES + 1];
            }),
        ];
        for (expected, change) in changes {
            let mut image = web();
            change(&mut image);
            let said = spec(image).unwrap_err();
            assert!(said.public().contains(expected), "{expected}: {said}");
        }
        let both = proto::ServiceSpec { image: Some(web()), ..least() };
        let said = Spec::try_from(both).unwrap_err();
        assert!(said.public().contains("only one of both"), "{said}");
    }

    #[test]
    fn each_thing_that_changes_what_runs_changes_the_hash() {
        let first = spec(web()).unwrap().hash();
        type Change = fn(&mut proto::Image);
        let changes: [Change; 6] = [
            |image| image.digest = Digest::of(b"another").to_string(),
            |image| (image.id, image.digest) = (image.digest.clone(), String::new()),
            |image| image.port = 0,
            |image| image.read_only_root = true,
            |image| image.capabilities.clear(),
            |image| image.host_network = true,
        ];
        let mut all = vec![first, Spec::try_from(least()).unwrap().hash()];
        for change in changes {
            let mut image = web();
            change(&mut image);
            all.push(spec(image).unwrap().hash());
        }
        let distinct = all.iter().collect::<std::collections::HashSet<_>>();
        assert_eq!(distinct.len(), all.len());
        // A tag may be given another name: what runs is the same.
        let renamed = proto::Image { reference: "mirror.local/web".into(), ..web() };
        assert_eq!(spec(renamed).unwrap().hash(), first);
    }
}
