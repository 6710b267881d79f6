//! What a manager does while nobody asks it for anything.

use std::time::Duration;

use lca::{discovery::Key, endpoint::Role};

use super::world::{HELLO, World, wish};
use crate::Config;

#[tokio::test(start_paused = true)]
async fn a_node_that_nobody_uses_looks_for_others_once_a_minute() {
    const MINUTES: u64 = 30;
    let world = World::new();
    let _allocator = world.allocator();
    let client = world.client();
    let finds = |role| world.network.finds(Key::Role(role));
    tokio::time::sleep(Duration::from_secs(MINUTES * 60)).await;
    for role in [Role::Allocator, Role::Registry] {
        let idle = finds(role);
        assert!((MINUTES..MINUTES + 5).contains(&idle), "{idle} finds of {role:?}");
    }
    // Whoever needs an allocator has them looked for often again.
    let before = finds(Role::Allocator);
    let _target = client.manager.pick(wish(HELLO)).await.unwrap();
    tokio::time::sleep(Config::default().allocators_every * 2).await;
    assert!(finds(Role::Allocator) > before, "it was told that it is needed");
}
