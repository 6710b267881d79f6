//! Getting an image by its digest.
//!
//! What is there is not asked for again, so a registry that is down stops nobody who has the
//! image. A pull ends when it is done, fails, or makes no progress: a large image on a thin
//! line may take an hour, a registry that says nothing for a minute does not get another.
//! The engine checks that what comes is what the digest says, layer by layer.

use std::{pin::pin, time::Duration};

use bollard::query_parameters::CreateImageOptionsBuilder;
use futures::StreamExt as _;
use lca::{Error, ImageRef, Kind, Result, units::show_duration};
use tokio::time::{Instant, timeout_at};

use crate::{
    Engine, Image, Keyring, Progress, Wanted,
    image::about,
    progress::Layers,
    trouble::{self, Trouble},
};

/// Unpacking, and removing, what may be gigabytes of files on a slow disk.
pub(crate) const UNPACK: Duration = Duration::from_secs(60);
/// A registry that says nothing for so long is given up: several times what a lost
/// connection, or a registry that starts anew, takes to come back.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// An image that is here now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// The image.
    pub image: Image,
    /// It was not here before.
    pub pulled: bool,
}

impl Engine {
    /// Makes sure that the image is here and can run here. `told` hears how far it is, each
    /// time it is further. Dropping the future ends the pull.
    ///
    /// # Errors
    /// [`Kind::FailedPrecondition`] if the registry does not have it, or what comes is not what
    /// the digest says; [`Kind::NotHere`] if the registry does not give it to us, it is for
    /// other machines, or it has no registry and is not here; [`Kind::NoCapacity`] if the disk is full;
    /// [`Kind::Unavailable`] if the engine or the registry cannot be reached;
    /// [`Kind::Timeout`] after `patience` without progress.
    pub async fn fetch(
        &self,
        wanted: &Wanted,
        keys: &Keyring,
        patience: Duration,
        told: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Fetched> {
        if let Some(image) = self.present(wanted).await? {
            return Ok(Fetched { image, pulled: false });
        }
        let image = match wanted {
            Wanted::Pinned(image) => image,
            Wanted::Local(id) => {
                let what = format!("image {id} is not on this machine, and no registry has it");
                return Err(Error::new(Kind::NotHere, what)
                    .hint("push it to a registry and register it by that name, or load it here"));
            }
        };
        self.pull(image, keys, patience, told).await?;
        let gone = || {
            let what = format!("image {image} was pulled and is gone again");
            Error::new(Kind::Unavailable, what)
        };
        let here = self.image(wanted).await?.ok_or_else(gone)?;
        if let Err(error) = self.check_platform(wanted, &here) {
            // Of no use to anybody here.
            if let Err(left) = self.remove_image(wanted).await {
                tracing::warn!(%image, error = left.chain(), "an image of no use stays");
            }
            return Err(error);
        }
        Ok(Fetched { image: here, pulled: true })
    }

    async fn pull(
        &self,
        image: &ImageRef,
        keys: &Keyring,
        patience: Duration,
        told: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<()> {
        let name = Wanted::Pinned(image.clone()).name();
        let credentials = keys.get(image).await?;
        // The digest is part of the name: without one, every tag there is would be pulled.
        let options = CreateImageOptionsBuilder::new().from_image(&name).build();
        let said = self.docker().create_image(Some(options), None, credentials.map(Into::into));
        let mut said = pin!(said);
        let mut layers = Layers::default();
        let mut until = Instant::now() + patience;
        loop {
            let next = match timeout_at(until, said.next()).await {
                Ok(None) => return Ok(()),
                Ok(Some(next)) => next,
                Err(_) => return Err(stalled(image, patience)),
            };
            match next {
                Ok(line) if layers.take(&line) => {
                    until = Instant::now() + patience;
                    told(layers.progress());
                }
                Ok(_) => {}
                Err(error) => return Err(self.not_pulled(image, about(&name, error))),
            }
        }
    }

    /// What it means that the engine did not get it.
    fn not_pulled(&self, image: &ImageRef, error: Error) -> Error {
        if error.kind() == Kind::Unavailable {
            return error; // the engine itself
        }
        match Trouble::of(error.public()) {
            Some(Trouble::Platform) => {
                let about = self.about();
                let what = format!(
                    "image {image} is not made for this machine, which is {}/{}",
                    about.os, about.architecture
                );
                Error::new(Kind::NotHere, what).because(error)
            }
            Some(trouble) => trouble.error(image).because(error),
            None => Error::new(trouble::OTHER, error.public()).because(error),
        }
    }
}

fn stalled(image: &ImageRef, patience: Duration) -> Error {
    let (registry, waited) = (image.registry(), show_duration(patience));
    let what = format!("registry {registry} sent nothing of image {image} for {waited}");
    Error::new(Kind::Timeout, what)
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;
    use crate::fake::{Fake, Head, Reply, whole};

    const ID: &str = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    fn app() -> Wanted {
        Wanted::Pinned(format!("reg.example:5000/app:1@{ID}").parse().unwrap())
    }

    /// An engine that has not got the image and says this when it is to pull it.
    async fn pull_meets(
        said: impl Fn() -> Reply + Send + Sync + 'static,
    ) -> (Error, Vec<Progress>) {
        let fake = Fake::start(move |head| match pulls(head) {
            true => said(),
            false => whole(head),
        });
        let engine = fake.engine().await;
        let mut heard = Vec::new();
        let mut told = |progress| heard.push(progress);
        let error = engine.fetch(&app(), &Keyring::none(), PATIENCE, &mut told).await.unwrap_err();
        (error, heard)
    }

    fn pulls(head: &Head) -> bool {
        // By digest, and never by tag, which may have moved.
        let target =
            format!("/images/create?fromImage=reg.example%3A5000%2Fapp%40sha256%3A{}", &ID[7..]);
        head.target().starts_with(&target)
    }

    #[tokio::test(start_paused = true)]
    async fn a_pull_without_progress_is_given_up_and_one_that_moves_is_not() {
        let begun = Instant::now();
        let (error, heard) = pull_meets(|| {
            Reply::hang(concat!(
                r#"{"status":"Pulling fs layer","progressDetail":{},"id":"a"}"#,
                "\n",
                r#"{"status":"Downloading","progressDetail":{"current":5,"total":9},"id":"a"}"#,
                "\n",
            ))
        })
        .await;
        assert_eq!(error.kind(), Kind::Timeout);
        let expected = format!(
            "registry reg.example:5000 sent nothing of image reg.example:5000/app:1@{ID} for 1 m 0 s"
        );
        assert_eq!(error.public(), expected);
        assert_eq!(
            heard.last().map(|progress| (progress.bytes, progress.total_bytes)),
            Some((5, 9))
        );
        assert_eq!(begun.elapsed(), PATIENCE);
    }

    #[tokio::test]
    async fn each_way_a_pull_fails_is_told_apart() {
        for (said, kind, sentence) in [
            (
                "manifest for app not found: manifest unknown: manifest unknown",
                Kind::FailedPrecondition,
                "does not have image",
            ),
            (
                "filesystem layer verification failed for digest sha256:12",
                Kind::FailedPrecondition,
                "is not what its digest says",
            ),
            (
                "no matching manifest for linux/amd64 in the manifest list entries",
                Kind::NotHere,
                "not made for this machine, which is linux/amd64",
            ),
            (
                "write /x: no space left on device",
                Kind::NoCapacity,
                "disk of the Docker Engine is full",
            ),
            (
                "dial tcp 10.0.0.1:5000: connect: connection refused",
                Kind::Unavailable,
                "cannot be reached",
            ),
            ("unauthorized: authentication required", Kind::NotHere, "does not give image"),
            ("something never heard of", Kind::Internal, "something never heard of"),
        ] {
            let in_stream = format!(r#"{{"errorDetail":{{"message":"{said}"}},"error":"{said}"}}"#);
            let (error, _) = pull_meets(move || Reply::json(&in_stream)).await;
            assert_eq!(error.kind(), kind, "{said}: {error}");
            assert!(error.public().contains(sentence), "{said}: {error}");
            // Some are known before anything is streamed.
            let (error, _) = pull_meets(move || Reply::error(500, said)).await;
            assert_eq!(error.kind(), kind, "{said}: {error}");
        }
    }

    #[tokio::test]
    async fn what_is_there_is_not_pulled_and_what_is_only_local_never() {
        let pulled = Arc::new(AtomicUsize::new(0));
        let counted = pulled.clone();
        let fake = Fake::start(move |head| match head.target() {
            target if target.starts_with("/images/reg.example:5000/app@") => {
                Reply::json(&format!(r#"{{"Id":"{ID}","Os":"linux","Architecture":"amd64"}}"#))
            }
            target if target.starts_with("/images/create") => {
                counted.fetch_add(1, Ordering::Relaxed);
                Reply::error(500, "not to be asked")
            }
            _ => whole(head),
        });
        let engine = fake.engine().await;
        let mut told = |_| {};
        let fetched = engine.fetch(&app(), &Keyring::none(), PATIENCE, &mut told).await.unwrap();
        assert!(!fetched.pulled);
        let local = Wanted::Local(ID.parse().unwrap());
        let error = engine.fetch(&local, &Keyring::none(), PATIENCE, &mut told).await.unwrap_err();
        assert_eq!(error.kind(), Kind::NotHere);
        assert!(error.public().contains("is not on this machine"), "{error}");
        assert_eq!(pulled.load(Ordering::Relaxed), 0);
    }
}
