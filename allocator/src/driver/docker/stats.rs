//! What a container uses, as the engine counts it.

use std::time::Duration;

use futures::StreamExt as _;
use lca::{Error, Kind, Result};
use lca_engine::{
    Engine,
    bollard::{models::ContainerStatsResponse, query_parameters::StatsOptionsBuilder},
    failed,
};
use tokio::time::timeout;

use crate::driver::Stats;

/// Within this the engine reads a few files.
const READ: Duration = Duration::from_secs(5);

pub(super) async fn of(engine: &Engine, name: &str) -> Result<Stats> {
    let options = StatsOptionsBuilder::new().stream(false).one_shot(true).build();
    let mut said = std::pin::pin!(engine.docker().stats(name, Some(options)));
    match timeout(READ, said.next()).await {
        Ok(Some(said)) => {
            Ok(read(&said.map_err(|error| failed("read what a container uses", error))?))
        }
        Ok(None) => Ok(Stats::default()), // it has just ended
        Err(_) => Err(Error::new(Kind::Unavailable, "the Docker Engine does not answer")),
    }
}

/// Memory without what the kernel keeps of files and can drop, as `docker stats` has it.
fn read(said: &ContainerStatsResponse) -> Stats {
    let memory = said.memory_stats.clone().unwrap_or_default();
    let detail = |name: &str| memory.stats.as_ref().and_then(|all| all.get(name)).copied();
    let cache = detail("total_inactive_file").or_else(|| detail("inactive_file")).unwrap_or(0);
    let cpu = said.cpu_stats.as_ref().and_then(|cpu| cpu.cpu_usage.as_ref()?.total_usage);
    Stats {
        memory_bytes: memory.usage.unwrap_or(0).saturating_sub(cache),
        cpu: Duration::from_nanos(cpu.unwrap_or(0)),
    }
}
