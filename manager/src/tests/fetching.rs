//! How far an image is, for a person who waits for it.

use std::{sync::Arc, time::Duration};

use lca::{
    Digest, InstanceId,
    api::proto::{
        self, Fetching, Image, InstanceState, allocate_progress::Progress, instance_event::Event,
        manager_client::ManagerClient,
    },
};
use tokio::{sync::Semaphore, time::interval};

use super::{
    relaying::local_api,
    world::{Behaviour, HELLO, World, hash_of, spec},
};

/// A service that runs an image.
fn image() -> proto::ServiceSpec {
    let image = Image {
        reference: "reg.example/web:1".into(),
        digest: Digest::of(b"manifest").to_string(),
        ..Default::default()
    };
    proto::ServiceSpec { artifact: String::new(), image: Some(image), ..spec(HELLO) }
}

#[tokio::test(start_paused = true)]
async fn how_far_an_image_is_reaches_who_waits_and_nothing_of_others_does() {
    let world = World::with([image()]);
    let permits = Arc::new(Semaphore::new(0));
    let allocator = world.allocator_that(Behaviour::Waits(permits.clone()));
    allocator.runs_images();
    let client = world.client();
    let mut api = ManagerClient::new(local_api(&world, &client).await);
    let request = proto::AllocateServiceRequest { service: HELLO.into(), ..Default::default() };
    let mut said = api.allocate(request).await.unwrap().into_inner();

    let at = |bytes| Fetching { bytes, total_bytes: 100, layers: 1, total_layers: 3 };
    let put = |hash: String, state: InstanceState, bytes| {
        Some(Event::Put(proto::Instance {
            id: InstanceId::random().to_string(),
            service: HELLO.into(),
            service_hash: hash,
            peer: allocator.id().to_string(),
            state: state.into(),
            fetching: Some(at(bytes)),
            ..Default::default()
        }))
    };
    let (ours, other) = (hash_of(&image()).to_string(), hash_of(&spec("other")).to_string());
    // Told again and again: nobody knows when it is listened to.
    let mut again = interval(Duration::from_millis(100));
    let mut heard = Vec::new();
    while heard.len() < 2 {
        tokio::select! {
            next = said.message() => match next.unwrap().unwrap().progress.unwrap() {
                Progress::Fetching(fetching) => heard.push(fetching),
                Progress::Step(_) => {}
                Progress::Done(done) => panic!("it is not done: {done:?}"),
            },
            _ = again.tick() => if allocator.is_watched() {
                allocator.tell(put(other.clone(), InstanceState::Fetching, 1));
                allocator.tell(put(ours.clone(), InstanceState::Starting, 2));
                allocator.tell(put(ours.clone(), InstanceState::Fetching, 40 + heard.len() as u64));
            },
        }
    }
    assert_eq!(heard, [at(40), at(41)]);
    permits.add_permits(1);
    loop {
        match said.message().await.unwrap().unwrap().progress.unwrap() {
            Progress::Done(done) => break assert!(done.instance.is_some()),
            Progress::Step(_) | Progress::Fetching(_) => {}
        }
    }
}
