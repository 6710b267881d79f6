//! What an instance is told of the world: its environment, and the arguments with the
//! same values filled in. Never a secret.

use std::{collections::BTreeMap, net::SocketAddr};

use lca::{InstanceId, PeerId, Spec, config::BOOTSTRAPS_ENV};

use crate::driver::{INSTANCE_ENV, Launch, NODE_ENV, Runnable};

/// What every instance of an allocator is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Bootstrap multiaddrs, given to instances as `P2P_BOOTSTRAPS`, space-separated,
    /// for programs that join the network themselves.
    pub bootstraps: Vec<String>,
}

/// Everything needed to start an instance. `node` is who starts it, `front` where it can
/// call other services.
pub(crate) fn launch(
    told: &Told,
    node: PeerId,
    spec: &Spec,
    id: InstanceId,
    program: Runnable,
    port: u16,
    front: Option<SocketAddr>,
) -> Launch {
    let mut world = BTreeMap::from([
        ("SERVICE_PORT".to_owned(), program.listens_on(port).to_string()),
        ("LCA_SERVICE".to_owned(), spec.name.to_string()),
        (INSTANCE_ENV.to_owned(), id.to_string()),
        (NODE_ENV.to_owned(), node.to_string()),
    ]);
    if let Some(front) = front {
        world.insert("PROXY_IP".to_owned(), front.ip().to_string());
        world.insert("PROXY_PORT".to_owned(), front.port().to_string());
    }
    if !told.bootstraps.is_empty() {
        world.insert(BOOTSTRAPS_ENV.to_owned(), told.bootstraps.join(" "));
    }
    let arguments = spec.arguments.iter().map(|argument| fill(argument, &world)).collect();
    let mut environment = spec.environment.clone();
    environment.extend(world);
    Launch {
        id,
        service: spec.name.clone(),
        hash: spec.hash(),
        program,
        arguments,
        environment,
        port,
        listener: None,
        resources: spec.resources,
        allowance: spec.allowance,
    }
}

/// Replaces `${NAME}` by the value of NAME. What has no value stays as it is: it may
/// mean something to the program.
fn fill(text: &str, world: &BTreeMap<String, String>) -> String {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        filled.push_str(before);
        match after.split_once('}').and_then(|(name, tail)| Some((world.get(name)?, tail))) {
            Some((value, tail)) => {
                filled.push_str(value);
                rest = tail;
            }
            None => {
                filled.push_str("${");
                rest = after;
            }
        }
    }
    filled.push_str(rest);
    filled
}

#[cfg(test)]
mod tests {
    use lca::{Digest, api::proto};

    use super::*;

    #[test]
    fn an_instance_is_told_who_it_is_and_whom_to_ask() {
        let spec = Spec::try_from(proto::ServiceSpec {
            name: "hello".into(),
            artifact: Digest::of(b"x").to_string(),
            arguments: vec!["--port=${SERVICE_PORT}".into(), "${LCA_SERVICE}-${HOME}${".into()],
            environment: [("MODE".to_owned(), "fast".to_owned())].into(),
            ..Default::default()
        })
        .unwrap();
        let id = InstanceId::random();
        let told = Told { bootstraps: vec!["/ip4/1.2.3.4/tcp/1/p2p/a".into(), "b".into()] };
        let front = "127.0.0.1:99".parse().unwrap();
        let node = PeerId::from_public_key([5; 32]);
        let program = Runnable::File("/bin/true".into());
        let launch = launch(&told, node, &spec, id, program, 4242, Some(front));
        assert_eq!(launch.arguments, ["--port=4242", "hello-${HOME}${"]);
        let expected = [
            ("LCA_INSTANCE_ID", id.to_string()),
            ("LCA_NODE", node.to_string()),
            ("LCA_SERVICE", "hello".into()),
            ("MODE", "fast".into()),
            ("P2P_BOOTSTRAPS", "/ip4/1.2.3.4/tcp/1/p2p/a b".into()),
            ("PROXY_IP", "127.0.0.1".into()),
            ("PROXY_PORT", "99".into()),
            ("SERVICE_PORT", "4242".into()),
        ];
        let expected: BTreeMap<_, _> =
            expected.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        assert_eq!(launch.environment, expected);
    }
}
