//! From what a person calls an image to the one image that is meant, once, at registration.
//!
//! A tag is a name that its owner moves; a spec holds a digest, so that every machine runs the
//! same. The newest word is the registry's, and the engine asks it. What was built here and
//! never pushed is what `docker run` would take here, and not what a registry happens to have
//! under the same name: it is registered by its ID and runs only where that is.

use std::time::Duration;

use lca::{Digest, Error, ImageRef, Kind, Pin, Result};

use crate::{Address, Engine, Image, Keyring, trouble::Trouble};

/// For a registry to say what a tag is: it is asked by the engine, which tries TLS first, and a
/// second time after logging in.
const REGISTRY: Duration = Duration::from_secs(20);

/// An image as a spec has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// What a person wrote, in full; the ID of an image that was named by nothing else.
    pub reference: String,
    /// Which image it is.
    pub pin: Pin,
    /// What whoever registers it should know, in sentences.
    pub notes: Vec<String>,
}

/// Finds out which image `text` is: a reference with a digest by itself, one without by
/// asking the engine at `address`, and `sha256:...` among the images of that engine.
///
/// # Errors
/// [`Kind::InvalidArgument`] if it is no reference; [`Kind::Unavailable`] if neither the
/// engine nor the registry can be asked and they would have to; [`Kind::NotFound`] if there is
/// no such image; each with what can be done.
pub async fn resolve(text: &str, address: &Address, keys: &Keyring) -> Result<Resolved> {
    let connect = async || {
        Engine::connect(address).await.map_err(|error| {
            let what = format!("cannot find out which image {text} is: {}", error.public());
            Error::new(Kind::Unavailable, what)
                .because(error)
                .hint("an engine must be asked for a tag or an ID; NAME@sha256:DIGEST needs none")
        })
    };
    if text.parse::<Digest>().is_ok() {
        let engine = connect().await?;
        let found = engine.named(text).await?.ok_or_else(|| {
            let what = format!("the Docker Engine has no image {text}");
            Error::new(Kind::NotFound, what).hint("`docker images --no-trunc` lists what it has")
        })?;
        return Ok(by_id(text.to_owned(), found.id, &found));
    }
    let image: ImageRef = text.parse()?;
    if let Some(digest) = image.digest() {
        let notes = Vec::new();
        return Ok(Resolved { reference: image.to_string(), pin: Pin::Digest(digest), notes });
    }
    let engine = connect().await?;
    let here = engine.named(&image.to_string()).await?;
    match here {
        Some(here) if digest_of(&image, &here).is_none() => {
            Ok(by_id(image.to_string(), here.id, &here))
        }
        here => {
            let told = engine.ask_registry(&image, keys).await;
            settle(&image, told, here.as_ref())
        }
    }
}

/// An image without a repository digest under the name it was asked for by.
fn by_id(reference: String, id: Digest, found: &Image) -> Resolved {
    let only =
        format!("{reference} is registered by its ID {id}: it runs only where that image is");
    let elsewhere = match found.repo_digests.first() {
        Some(name) => format!("a registry has it as {name}; registered by that it can be pulled"),
        None => "push it to a registry and register it by that name to run it elsewhere".to_owned(),
    };
    Resolved { reference, pin: Pin::Id(id), notes: vec![only, elsewhere] }
}

/// The digest that the repository of `image` has for one that is here.
fn digest_of(image: &ImageRef, here: &Image) -> Option<Digest> {
    let same = here.repo_digests.iter().find(|known| known.name() == image.name());
    same.and_then(ImageRef::digest)
}

/// The registry's word, or, where there is none to be had, that of the last pull.
fn settle(image: &ImageRef, told: Result<Digest>, here: Option<&Image>) -> Result<Resolved> {
    let resolved = |digest, notes| {
        let (reference, pin) = (image.to_string(), Pin::Digest(digest));
        Ok(Resolved { reference, pin, notes })
    };
    match (told, here.and_then(|here| digest_of(image, here))) {
        (Ok(digest), _) => resolved(digest, Vec::new()),
        (Err(error), Some(digest)) => {
            let note = format!("{}; the digest is that of the image here", error.public());
            resolved(digest, vec![note])
        }
        (Err(error), None) => Err(error),
    }
}

impl Engine {
    /// The digest that the registry has for a tag now.
    async fn ask_registry(&self, image: &ImageRef, keys: &Keyring) -> Result<Digest> {
        let credentials = keys.get(image).await?;
        let name = image.to_string();
        let what = format!("ask the registry for image {image}");
        let asked = self.docker().inspect_registry_image(&name, credentials.map(Into::into));
        let answer = self.call_within(&what, REGISTRY, asked).await.map_err(|error| {
            match Trouble::of(error.public()) {
                Some(Trouble::Missing) => {
                    let known = Trouble::Missing.error(image);
                    Error::new(Kind::NotFound, known.public()).because(error)
                }
                Some(trouble) => trouble.error(image).because(error),
                None => Error::new(Kind::Unavailable, error.public()).because(error),
            }
            .hint("`docker pull` shows what the engine meets; NAME@sha256:DIGEST asks nobody")
        })?;
        let digest = answer.descriptor.digest.unwrap_or_default();
        digest.parse().map_err(|error| {
            let what = format!("registry {} answered with no digest", image.registry());
            Error::new(Kind::BadGateway, what).because(error)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Fake, Head, Reply, whole};

    const ID: &str = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
    const OLD: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const NEW: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000001";

    /// An engine with this image, if any, under every name, whose registry says this.
    async fn asked(
        text: &str,
        repo_digest: Option<&'static str>,
        registry: impl Fn() -> Reply + Send + Sync + 'static,
    ) -> Result<Resolved> {
        let fake = Fake::start(move |head: &Head| match (head.target(), repo_digest) {
            (target, _) if target.starts_with("/distribution/") => registry(),
            (target, Some(digests)) if target.starts_with("/images/") => {
                Reply::json(&format!(r#"{{"Id":"{ID}","RepoDigests":[{digests}]}}"#))
            }
            _ => whole(head),
        });
        resolve(text, fake.address(), &Keyring::none()).await
    }

    fn new() -> Reply {
        Reply::json(&format!(r#"{{"Descriptor":{{"digest":"{NEW}"}},"Platforms":[]}}"#))
    }

    fn down() -> Reply {
        Reply::error(500, "dial tcp 10.0.0.1:443: connect: connection refused")
    }

    #[tokio::test]
    async fn a_tag_is_what_its_registry_says_now() {
        for here in [
            None,
            Some(
                r#""reg.example/app@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855""#,
            ),
        ] {
            let resolved = asked("reg.example/app:1", here, new).await.unwrap();
            assert_eq!(resolved.pin, Pin::Digest(NEW.parse().unwrap()));
            assert_eq!(
                (resolved.reference.as_str(), resolved.notes.len()),
                ("reg.example/app:1", 0)
            );
        }
    }

    #[tokio::test]
    async fn without_its_registry_it_is_what_was_pulled_last_and_that_is_said() {
        let here = Some(
            r#""reg.example/app@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855""#,
        );
        let resolved = asked("reg.example/app:1", here, down).await.unwrap();
        assert_eq!(resolved.pin, Pin::Digest(OLD.parse().unwrap()));
        assert!(resolved.notes[0].contains("cannot be reached"), "{:?}", resolved.notes);
        let error = asked("reg.example/app:1", None, down).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.hint_text().is_some());
    }

    #[tokio::test]
    async fn what_was_built_here_is_itself_whatever_a_registry_has_under_the_name() {
        let other = Some(
            r#""mirror.example/app@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855""#,
        );
        for (here, elsewhere) in [(Some(""), "push it"), (other, "mirror.example/app@")] {
            let resolved = asked("app:1", here, new).await.unwrap();
            assert_eq!(resolved.pin, Pin::Id(ID.parse().unwrap()));
            assert!(resolved.notes[0].contains("runs only where that image is"));
            assert!(resolved.notes[1].contains(elsewhere), "{:?}", resolved.notes);
        }
        let resolved = asked(ID, Some(""), down).await.unwrap();
        assert_eq!((resolved.reference.as_str(), resolved.pin), (ID, Pin::Id(ID.parse().unwrap())));
    }

    #[tokio::test]
    async fn what_cannot_be_found_out_says_why() {
        let nobody = Address::Unix("/nowhere/engine.sock".into());
        let error = resolve("app", &nobody, &Keyring::none()).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.hint_text().unwrap().contains("NAME@sha256:DIGEST"));
        // A digest needs nobody.
        let pinned = format!("app@{NEW}");
        let resolved = resolve(&pinned, &nobody, &Keyring::none()).await.unwrap();
        assert_eq!(resolved.pin, Pin::Digest(NEW.parse().unwrap()));

        let missing = || Reply::error(404, "manifest unknown: manifest unknown");
        let error = asked("reg.example/app:2", None, missing).await.unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        let denied = || Reply::error(403, "denied: requested access to the resource is denied");
        let error = asked("owner/app", None, denied).await.unwrap_err();
        assert!(error.public().contains("does not give image"), "{error}");
        assert_eq!(asked(ID, None, down).await.unwrap_err().kind(), Kind::NotFound);
        assert_eq!(asked("A/b/C", None, down).await.unwrap_err().kind(), Kind::InvalidArgument);
    }
}
