//! Pulls as they go well and as they do not.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use lca::{ImageRef, Kind, Result};
use lca_engine::{Fetched, Keyring, PATIENCE, Progress, Wanted};

use crate::{
    between::{Between, Does},
    bundle::Bundle,
    means::{Bench, digest},
};

const MEGABYTE: usize = 1 << 20;
/// What a test waits for a registry that says nothing.
const SHORT: Duration = Duration::from_secs(2);

async fn fetch(
    bench: &Bench,
    image: &ImageRef,
    keys: &Keyring,
    patience: Duration,
) -> (Result<Fetched>, Vec<Progress>) {
    let mut heard = Vec::new();
    let mut told = |progress| heard.push(progress);
    let wanted = Wanted::Pinned(image.clone());
    let fetched = bench.engine.fetch(&wanted, keys, patience, &mut told).await;
    (fetched, heard)
}

async fn published(does: Does) -> Option<(Bench, Between, ImageRef)> {
    let mut bench = Bench::set_up().await?;
    let between = Between::start(bench.registry.address(), does).await;
    let bundle = Bundle::of(3 * MEGABYTE, &bench.engine.about().architecture);
    let image = bench.publish(&between.host(), &bundle).await;
    Some((bench, between, image))
}

#[tokio::test]
async fn an_image_is_pulled_by_its_digest_with_progress_and_then_never_again() {
    let Some((bench, between, image)) = published(Does::Pass).await else { return };
    let (fetched, heard) = fetch(&bench, &image, &Keyring::none(), PATIENCE).await;
    let fetched = fetched.unwrap();
    assert!(fetched.pulled && fetched.image.size >= 3 * MEGABYTE as u64);
    let last = *heard.last().unwrap();
    assert_eq!((last.layers, last.total_layers), (1, 1));
    assert!(last.bytes > MEGABYTE as u64 && last.bytes == last.total_bytes, "{last:?}");
    // It went by digest, and only so.
    let asked = between.seen();
    assert!(asked.iter().any(|line| line.contains(&format!("manifests/{}", digest(&image)))));
    assert!(!asked.iter().any(|line| line.ends_with("manifests/latest")), "{asked:?}");

    // The registry is gone, and nobody minds.
    between.now(Does::Close);
    let before = between.seen().len();
    let (again, heard) = fetch(&bench, &image, &Keyring::none(), PATIENCE).await;
    assert!(!again.unwrap().pulled);
    assert_eq!((heard.len(), between.seen().len()), (0, before));
}

#[tokio::test]
async fn a_registry_that_stalls_in_the_middle_is_given_up_and_the_pull_is_over() {
    let Some((bench, between, image)) = published(Does::StallAfter(MEGABYTE)).await else { return };
    let (fetched, heard) = fetch(&bench, &image, &Keyring::none(), SHORT).await;
    let error = fetched.unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout);
    let said = format!("registry {} sent nothing of image {image} for 2.0 s", between.host());
    assert_eq!(error.public(), said);
    assert!(heard.iter().any(|progress| progress.bytes > 0), "{heard:?}");
    assert!(!bench.is_here(&image).await);
    // The registry is well again: so is the next attempt.
    between.now(Does::Pass);
    let (fetched, _) = fetch(&bench, &image, &Keyring::none(), PATIENCE).await;
    assert!(fetched.unwrap().pulled);
}

#[tokio::test]
async fn bytes_that_are_not_what_the_digest_says_are_refused() {
    for does in [Does::FlipBlob, Does::FlipManifest] {
        let Some((bench, _between, image)) = published(does.clone()).await else { return };
        let (fetched, _) = fetch(&bench, &image, &Keyring::none(), PATIENCE).await;
        let error = fetched.unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition, "{does:?}: {}", error.chain());
        assert!(error.public().contains("is not what its digest says"), "{does:?}: {error}");
        assert!(!bench.is_here(&image).await);
    }
}

#[tokio::test]
async fn an_image_that_is_missing_and_a_registry_that_is_gone_are_told_apart() {
    let Some((bench, between, image)) = published(Does::NoManifest).await else { return };
    let (fetched, _) = fetch(&bench, &image, &Keyring::none(), PATIENCE).await;
    let error = fetched.unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition, "{}", error.chain());
    assert!(error.public().contains("does not have image"), "{error}");
    drop(between);
    let (fetched, _) = fetch(&bench, &image, &Keyring::none(), PATIENCE).await;
    let error = fetched.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{}", error.chain());
    assert!(error.public().contains("cannot be reached"), "{error}");
}

#[tokio::test]
async fn an_image_for_other_processors_is_refused_and_does_not_stay() {
    let Some(mut bench) = Bench::set_up().await else { return };
    let host = bench.registry.host();
    let image = bench.publish(&host, &Bundle::of(MEGABYTE, "s390x")).await;
    let (fetched, _) = fetch(&bench, &image, &Keyring::none(), PATIENCE).await;
    let error = fetched.unwrap_err();
    assert_eq!(error.kind(), Kind::NotHere, "{}", error.chain());
    assert!(error.public().contains("is for linux/s390x, and this machine is"), "{error}");
    assert!(!bench.is_here(&image).await);
}

#[tokio::test]
async fn who_has_logged_in_is_given_what_others_are_not() {
    // In both alphabets of base64 once it is part of what the engine is sent.
    let secret = format!("me:{}", "~?>".repeat(4));
    let basic = format!("Basic {}", STANDARD.encode(&secret));
    let Some((bench, between, image)) = published(Does::Ask(basic)).await else { return };
    let (fetched, _) = fetch(&bench, &image, &Keyring::none(), PATIENCE).await;
    let error = fetched.unwrap_err();
    assert_eq!(error.kind(), Kind::NotHere, "{}", error.chain());
    let hint = error.hint_text().unwrap().to_owned();
    assert!(hint.contains(&format!("docker login {}", between.host())), "{hint}");

    let folder = tempfile::tempdir().unwrap();
    let config = format!(
        r#"{{"auths":{{"{}":{{"auth":"{}"}}}}}}"#,
        between.host(),
        STANDARD.encode(&secret)
    );
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let keys = Keyring::in_folder(folder.path());
    let (fetched, _) = fetch(&bench, &image, &keys, PATIENCE).await;
    assert!(fetched.map_err(|error| error.chain()).unwrap().pulled);
}
