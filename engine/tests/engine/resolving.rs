//! What a name is found to mean.

use lca::{Kind, Pin};
use lca_engine::{Address, Keyring, Wanted, resolve};

use crate::{
    bundle::Bundle,
    means::{Bench, digest},
};

#[tokio::test]
async fn a_tag_is_its_digest_at_the_registry_and_what_was_only_built_is_its_id() {
    let Some(mut bench) = Bench::set_up().await else { return };
    let (address, keys) = (Address::of_the_environment().unwrap(), Keyring::none());
    let architecture = bench.engine.about().architecture.clone();
    let host = bench.registry.host();
    let pinned = bench.publish(&host, &Bundle::of(1000, &architecture)).await;
    let tag = format!("{}:1", pinned.name());
    let resolved = resolve(&tag, &address, &keys).await.unwrap();
    assert_eq!((resolved.reference.as_str(), resolved.pin), (&*tag, Pin::Digest(digest(&pinned))));
    // Asking is not pulling.
    assert!(!bench.is_here(&pinned).await);
    let missing = resolve(&format!("{}:2", pinned.name()), &address, &keys).await.unwrap_err();
    assert_eq!(missing.kind(), Kind::NotFound, "{}", missing.chain());

    // Pulled, tagged, and the registry gone: what was pulled counts.
    let wanted = Wanted::Pinned(pinned.clone());
    let mut told = |_| {};
    bench.engine.fetch(&wanted, &keys, lca_engine::PATIENCE, &mut told).await.unwrap();
    bench.tag(&pinned, &pinned.name(), "1").await;

    let repository = bench.repository();
    let built = bench.load("localhost", &repository, &Bundle::of(1000, &architecture)).await;
    let resolved = resolve(&built.to_string(), &address, &keys).await.unwrap();
    let here = bench.engine.image(&Wanted::Pinned(built)).await.unwrap().unwrap();
    assert_eq!(resolved.pin, Pin::Id(here.id));
    assert!(resolved.notes[0].contains("runs only where that image is"), "{:?}", resolved.notes);
    let by_id = resolve(&here.id.to_string(), &address, &keys).await.unwrap();
    assert_eq!(by_id.pin, Pin::Id(here.id));

    bench.registry.stop();
    let resolved = resolve(&tag, &address, &keys).await.unwrap();
    assert_eq!(resolved.pin, Pin::Digest(digest(&pinned)));
    assert!(resolved.notes[0].contains("cannot be reached"), "{:?}", resolved.notes);
}
