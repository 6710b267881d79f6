//! Images as the engine has them: whether one is there, and what it is.

use bollard::{
    errors::Error as Bollard, models::ImageInspect, query_parameters::RemoveImageOptionsBuilder,
};
use lca::{Digest, Error, ImageRef, Kind, Pin, Result};

use crate::{Engine, failed};

/// Exactly one image, whatever becomes of tags.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// One of a registry, by the digest of its manifest. The reference carries it.
    Pinned(ImageRef),
    /// One without a registry, by its image ID.
    Local(Digest),
}

impl Wanted {
    /// What a spec wants.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] if its reference is none: specs are checked before.
    pub fn of(image: &lca::Image) -> Result<Self> {
        match image.pin {
            Pin::Digest(digest) => {
                Ok(Self::Pinned(image.reference.parse::<ImageRef>()?.at(digest)))
            }
            Pin::Id(id) => Ok(Self::Local(id)),
        }
    }

    /// As the engine is asked for it.
    pub fn name(&self) -> String {
        match self {
            Self::Pinned(image) => match image.digest() {
                Some(digest) => image.at(digest).to_string(),
                None => image.to_string(),
            },
            Self::Local(id) => id.to_string(),
        }
    }
}

/// An image the engine has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The image ID.
    pub id: Digest,
    /// The system it is for: `linux`; empty if it does not say.
    pub os: String,
    /// The processors it is for, such as `amd64`; empty if it does not say.
    pub architecture: String,
    /// Bytes of its layers, unpacked, as if no other image shared them.
    pub size: u64,
    /// The TCP ports it says its program listens on, in order.
    pub ports: Vec<u16>,
    /// `NAME@DIGEST` under which registries have it.
    pub(crate) repo_digests: Vec<ImageRef>,
}

impl Image {
    fn new(found: ImageInspect) -> Option<Self> {
        let config = found.config.unwrap_or_default();
        let mut ports: Vec<_> =
            config.exposed_ports.unwrap_or_default().iter().filter_map(|port| tcp(port)).collect();
        ports.sort_unstable();
        ports.dedup();
        let digests = found.repo_digests.unwrap_or_default();
        Some(Self {
            id: found.id?.parse().ok()?,
            os: found.os.unwrap_or_default(),
            architecture: found.architecture.unwrap_or_default(),
            size: found.size.and_then(|size| size.try_into().ok()).unwrap_or(0),
            ports,
            // What an engine cannot name, such as `<none>@<none>`, is no name.
            repo_digests: digests.iter().filter_map(|text| text.parse().ok()).collect(),
        })
    }
}

/// The port in `8080/tcp` or `8080`.
fn tcp(port: &str) -> Option<u16> {
    port.strip_suffix("/tcp").unwrap_or(port).parse().ok()
}

impl Engine {
    /// The image, if the engine has it. Asks no registry.
    ///
    /// # Errors
    /// As [`Engine::call`].
    pub async fn image(&self, wanted: &Wanted) -> Result<Option<Image>> {
        self.named(&wanted.name()).await
    }

    /// The same, if it can run here.
    ///
    /// # Errors
    /// As [`image`](Self::image); [`Kind::NotHere`] if it is for other machines.
    pub async fn present(&self, wanted: &Wanted) -> Result<Option<Image>> {
        let image = self.image(wanted).await?;
        image.iter().try_for_each(|image| self.check_platform(wanted, image))?;
        Ok(image)
    }

    /// The image the engine has under a name of any kind.
    pub(crate) async fn named(&self, name: &str) -> Result<Option<Image>> {
        let what = format!("look for image {name}");
        let found = async {
            match self.docker().inspect_image(name).await {
                Err(Bollard::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
                found => found.map(Some),
            }
        };
        let Some(found) = self.call(&what, found).await? else { return Ok(None) };
        let odd = || Error::new(Kind::Internal, format!("cannot {what}: it has no image ID"));
        Image::new(found).map(Some).ok_or_else(odd)
    }

    /// Removes a name of an image, and the image if it has no other. Without force: what a
    /// container was made from stays. One that is not there is no error.
    ///
    /// # Errors
    /// [`Kind::Conflict`] if a container uses it; else as [`Engine::call`].
    pub async fn remove_image(&self, wanted: &Wanted) -> Result<()> {
        let name = wanted.name();
        let what = format!("remove image {name}");
        let options = RemoveImageOptionsBuilder::new().force(false).build();
        let removed = self.docker().remove_image(&name, Some(options), None);
        match self.call_within(&what, crate::pull::UNPACK, removed).await {
            Err(error) if error.kind() != Kind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Fails for an image that this machine's processor cannot run.
    ///
    /// # Errors
    /// [`Kind::NotHere`] with both.
    pub(crate) fn check_platform(&self, wanted: &Wanted, image: &Image) -> Result<()> {
        let about = self.about();
        let other = |one: &str, other: &str| !one.is_empty() && !other.is_empty() && one != other;
        if other(&image.os, &about.os) || other(&image.architecture, &about.architecture) {
            let name = wanted.name();
            return Err(Error::new(
                Kind::NotHere,
                format!(
                    "image {name} is for {}/{}, and this machine is {}/{}",
                    image.os, image.architecture, about.os, about.architecture
                ),
            ));
        }
        Ok(())
    }
}

/// What `failed` makes of a failure about an image, for calls that are streams.
pub(crate) fn about(name: &str, error: Bollard) -> Error {
    failed(&format!("pull image {name}"), error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Fake, Reply, whole};

    const ID: &str = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    #[tokio::test]
    async fn what_an_image_is_and_whether_it_is_there() {
        let fake = Fake::start(|head| match head.target() {
            "/images/docker.io/library/app:1/json" => Reply::json(&format!(
                r#"{{"Id":"{ID}","Os":"linux","Architecture":"arm64","Size":77,
                    "RepoDigests":["app@{ID}","<none>@<none>"],
                    "Config":{{"ExposedPorts":{{"9000/tcp":{{}},"53/udp":{{}},"80/tcp":{{}}}}}}}}"#
            )),
            _ => whole(head),
        });
        let engine = fake.engine().await;
        let app = Wanted::Pinned("app:1".parse().unwrap());
        let image = engine.image(&app).await.unwrap().unwrap();
        assert_eq!((image.id.to_string().as_str(), image.size), (ID, 77));
        assert_eq!(image.ports, [80, 9000]);
        assert_eq!(image.repo_digests, [format!("app@{ID}").parse().unwrap()]);
        let error = engine.check_platform(&app, &image).unwrap_err();
        assert_eq!(
            error.public(),
            "image docker.io/library/app:1 is for linux/arm64, and this machine is linux/amd64"
        );
        assert_eq!(engine.image(&Wanted::Local(Digest::of(b"x"))).await.unwrap(), None);
    }
}
