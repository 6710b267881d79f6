//! What a stock keeps and what it removes.

use std::{fs, path::Path};

use lca::ImageRef;
use lca_engine::{Stock, Terms, Wanted, bollard::query_parameters::RemoveContainerOptions};

use crate::{bundle::Bundle, means::Bench};

const SIZE: usize = 1 << 20;

async fn have(stock: &Stock, bench: &Bench, image: &ImageRef) {
    let mut told = |_| {};
    stock.have(&bench.engine, &Wanted::Pinned(image.clone()), &mut told).await.unwrap();
}

/// Makes everything the book names so many hours old.
fn age(folder: &Path, image: &ImageRef, hours: u64) {
    let file = folder.join("images.json");
    let mut book: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let entry = &mut book[image.to_string()]["used_ms"];
    *entry = (entry.as_u64().unwrap() - hours * 3_600_000).into();
    fs::write(file, book.to_string()).unwrap();
}

#[tokio::test]
async fn the_least_recently_used_goes_and_never_what_is_in_use_or_was_there_before() {
    let Some(mut bench) = Bench::set_up().await else { return };
    let architecture = bench.engine.about().architecture.clone();
    let host = bench.registry.host();
    let mut images = Vec::new();
    for _ in 0..4 {
        images.push(bench.publish(&host, &Bundle::of(SIZE, &architecture)).await);
    }
    let [theirs, used, old, older] = &images[..] else { panic!() };
    // One that somebody pulled, and that is needed here, too.
    let mut told = |_| {};
    let (wanted, keys) = (Wanted::Pinned(theirs.clone()), lca_engine::Keyring::none());
    bench.engine.fetch(&wanted, &keys, lca_engine::PATIENCE, &mut told).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let terms = |room| Terms { room, ..Terms::default() };
    let stock = Stock::open(folder.path(), terms(u64::MAX));
    for image in [theirs, used, old, older] {
        have(&stock, &bench, image).await;
    }
    // A container that has never run is a use, too.
    let container = bench.container(used).await;
    for (image, hours) in [(used, 3), (old, 1), (older, 2)] {
        age(folder.path(), image, hours);
    }

    // After a restart, with room for two of the three that were pulled.
    let stock = Stock::open(folder.path(), terms(2 * SIZE as u64 + SIZE as u64 / 2));
    assert_eq!(stock.tidy(&bench.engine).await.unwrap(), 1);
    assert!(!bench.is_here(older).await, "the least recently used one stays");
    for image in [theirs, used, old] {
        assert!(bench.is_here(image).await, "{image} was removed");
    }
    let stock = Stock::open(folder.path(), terms(0));
    assert_eq!(stock.tidy(&bench.engine).await.unwrap(), 1);
    assert!(bench.is_here(theirs).await && bench.is_here(used).await && !bench.is_here(old).await);

    // Given free, it may still be needed at once; later it goes as well.
    bench
        .engine
        .docker()
        .remove_container(&container, None::<RemoveContainerOptions>)
        .await
        .unwrap();
    assert_eq!(stock.tidy(&bench.engine).await.unwrap(), 0);
    age(folder.path(), used, 1);
    let stock = Stock::open(folder.path(), terms(0));
    assert_eq!(stock.tidy(&bench.engine).await.unwrap(), 1);
    assert!(bench.is_here(theirs).await && !bench.is_here(used).await);
}
