//! What the engine is told to make: one container, with everything it may and may not do.
//! Pure, so that each limit is tested without an engine.

use std::collections::HashMap;

use lca::{Allowance, PeerId};
use lca_engine::bollard::models::{
    ContainerCreateBody, HostConfig, HostConfigLogConfig, PortBinding, ResourcesUlimits,
    RestartPolicy, RestartPolicyNameEnum,
};

use super::labels;
use crate::driver::{Container, Launch};

/// Shares of a whole core: what the kernel's scheduler counts in.
const SHARES_PER_CORE: u64 = 1024;
/// The least the kernel takes.
const LEAST_SHARES: u64 = 2;

/// The container of `launch`. `network` is the bridge it is put on, unless it has none of
/// its own.
pub(super) fn of(
    launch: &Launch,
    container: &Container,
    node: PeerId,
    network: &str,
) -> ContainerCreateBody {
    let environment = launch.environment.iter().map(|(name, value)| format!("{name}={value}"));
    let port = format!("{}/tcp", container.port);
    let has_network = !container.host_network;
    ContainerCreateBody {
        image: Some(container.image.to_string()),
        env: Some(environment.collect()),
        // Without arguments it is started as its image says.
        cmd: (!launch.arguments.is_empty()).then(|| launch.arguments.clone()),
        labels: Some(labels::of(launch, node)),
        exposed_ports: has_network.then(|| vec![port.clone()]),
        host_config: Some(HostConfig {
            port_bindings: has_network.then(|| HashMap::from([(port, Some(vec![loopback()]))])),
            network_mode: Some(if has_network { network } else { "host" }.to_owned()),
            ..host(launch, container)
        }),
        ..Default::default()
    }
}

/// On this machine alone, on a port that the engine chooses.
fn loopback() -> PortBinding {
    PortBinding { host_ip: Some("127.0.0.1".into()), host_port: Some(String::new()) }
}

fn host(launch: &Launch, container: &Container) -> HostConfig {
    let allowance = &launch.allowance;
    let shares = u64::from(launch.resources.cpu_millis) * SHARES_PER_CORE / 1000;
    let memory = signed(allowance.memory_bytes);
    HostConfig {
        cpu_shares: Some(signed(shares.max(LEAST_SHARES))),
        nano_cpus: allowance.cpu_millis.map(|millis| i64::from(millis.get()) * 1_000_000),
        memory: Some(memory),
        // Of memory and swap together: no swap.
        memory_swap: Some(memory),
        pids_limit: Some(i64::from(allowance.processes)),
        ulimits: Some(limits(allowance)),
        log_config: Some(log(allowance)),
        readonly_rootfs: Some(container.read_only_root),
        cap_drop: Some(vec!["ALL".into()]),
        cap_add: Some(container.capabilities.iter().map(ToString::to_string).collect()),
        security_opt: Some(vec!["no-new-privileges".into()]),
        // As the first process of its network, a program would be deaf to SIGTERM that does
        // not handle it, and would have to reap what others leave.
        init: Some(true),
        // The supervisor decides what becomes of one that ended.
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        auto_remove: Some(false),
        ..Default::default()
    }
}

fn limits(allowance: &Allowance) -> Vec<ResourcesUlimits> {
    let limit = |name: &str, value: i64| ResourcesUlimits {
        name: Some(name.to_owned()),
        soft: Some(value),
        hard: Some(value),
    };
    let files = allowance.open_files.map(|files| limit("nofile", files.get().into()));
    let disk = limit("fsize", signed(allowance.disk_bytes));
    [limit("core", 0), disk].into_iter().chain(files).collect()
}

/// Two files of half the size: what is kept is never less than half of what may be.
fn log(allowance: &Allowance) -> HostConfigLogConfig {
    let half = (allowance.log_bytes / 2).max(1);
    let config = [("max-size", format!("{half}b")), ("max-file", "2".to_owned())];
    let config = config.map(|(key, value)| (key.to_owned(), value));
    HostConfigLogConfig { typ: Some("json-file".into()), config: Some(config.into()) }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use lca::{Digest, InstanceId, Resources, ServiceHash};

    use super::*;
    use crate::driver::Runnable;

    fn launch() -> Launch {
        Launch {
            id: InstanceId::random(),
            service: "web".parse().unwrap(),
            hash: ServiceHash::from_sha256([7; 32]),
            program: Runnable::Image(container()),
            arguments: vec!["--fast".into()],
            environment: [("SERVICE_PORT".to_owned(), "80".to_owned())].into(),
            port: 4242,
            listener: None,
            resources: Resources { cpu_millis: 500, memory_bytes: 64 << 20 },
            allowance: Allowance {
                cpu_millis: NonZeroU32::new(500),
                open_files: NonZeroU32::new(100),
                ..Allowance::default()
            },
        }
    }

    fn container() -> Container {
        Container {
            image: Digest::of(b"image"),
            port: 80,
            read_only_root: true,
            capabilities: ["KILL".parse().unwrap()].into(),
            host_network: false,
        }
    }

    #[test]
    fn a_container_gets_its_limits_and_no_right_beyond_what_is_listed() {
        let launch = launch();
        let node = PeerId::from_public_key([5; 32]);
        let body = of(&launch, &container(), node, "lca-1");
        assert_eq!(body.image.unwrap(), Digest::of(b"image").to_string());
        assert_eq!(body.env.unwrap(), ["SERVICE_PORT=80"]);
        assert_eq!(body.cmd.unwrap(), ["--fast"]);
        let labels = body.labels.unwrap();
        assert_eq!(labels["lca.instance"], launch.id.to_string());
        assert_eq!(labels["lca.node"], node.to_string());
        assert_eq!((labels["lca.service"].as_str(), labels["lca.hash"].len()), ("web", 64));

        let host = body.host_config.unwrap();
        assert_eq!((host.memory, host.memory_swap), (Some(64 << 20), Some(64 << 20)));
        assert_eq!((host.nano_cpus, host.cpu_shares), (Some(500_000_000), Some(512)));
        assert_eq!(host.pids_limit, Some(512));
        assert_eq!((host.readonly_rootfs, host.privileged), (Some(true), None));
        assert_eq!(host.cap_drop.unwrap(), ["ALL"]);
        assert_eq!(host.cap_add.unwrap(), ["KILL"]);
        assert_eq!(host.security_opt.unwrap(), ["no-new-privileges"]);
        let ulimits: Vec<_> = host.ulimits.unwrap().into_iter().map(|l| (l.name, l.hard)).collect();
        let expected = [("core", 0), ("fsize", 1 << 30), ("nofile", 100)];
        assert_eq!(ulimits, expected.map(|(name, value)| (Some(name.into()), Some(value))));
        let log = host.log_config.unwrap();
        assert_eq!(log.config.unwrap()["max-size"], format!("{}b", 8 << 20));
        let published = &host.port_bindings.unwrap()["80/tcp"];
        let published = &published.as_ref().unwrap()[0];
        assert_eq!(published.host_ip.as_deref(), Some("127.0.0.1"), "nobody else's machine");
        assert_eq!(host.network_mode.as_deref(), Some("lca-1"));
    }

    #[test]
    fn on_the_network_of_the_machine_nothing_is_published() {
        let shared = Container { host_network: true, ..container() };
        let node = PeerId::from_public_key([5; 32]);
        let body = of(&launch(), &shared, node, "lca-1");
        let host = body.host_config.unwrap();
        assert_eq!(host.network_mode.as_deref(), Some("host"));
        assert!(host.port_bindings.is_none() && body.exposed_ports.is_none());
    }
}
