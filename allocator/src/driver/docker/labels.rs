//! By what our containers are known: labels, which survive us, the engine's restarts and
//! whatever we forget.

use std::collections::HashMap;

use lca::{InstanceId, PeerId};

use crate::driver::Launch;

/// Which instance it is.
pub(super) const INSTANCE: &str = "lca.instance";
/// Which node started it.
pub(super) const NODE: &str = "lca.node";
/// The service it is an instance of, and its hash.
const SERVICE: &str = "lca.service";
const HASH: &str = "lca.hash";

/// The labels of one container.
pub(super) fn of(launch: &Launch, node: PeerId) -> HashMap<String, String> {
    let all = [
        (INSTANCE, launch.id.to_string()),
        (NODE, node.to_string()),
        (SERVICE, launch.service.to_string()),
        (HASH, launch.hash.to_string()),
    ];
    all.map(|(name, value)| (name.to_owned(), value)).into()
}

/// What a container is called: `docker ps` says whose it is.
pub(super) fn name(id: InstanceId) -> String {
    format!("lca-{id}")
}

/// Only containers, or their events, that have this label.
pub(super) fn filter(label: &str) -> (String, Vec<String>) {
    ("label".to_owned(), vec![label.to_owned()])
}

/// The label of everything that `node` has made.
pub(super) fn of_node(node: PeerId) -> String {
    format!("{NODE}={node}")
}

/// Which instance labels name.
pub(super) fn instance(labels: Option<&HashMap<String, String>>) -> Option<InstanceId> {
    labels?.get(INSTANCE)?.parse().ok()
}
