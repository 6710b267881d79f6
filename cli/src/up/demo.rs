//! Registers `hello-world-server` in a new network. The program is this very
//! executable with a hidden subcommand, because `cargo run --bin lcactl` builds nothing
//! else.

use lca::{
    Error, Kind, Result,
    api::{
        self,
        proto::{self, registry_client::RegistryClient},
    },
};

use super::Fleet;
use crate::{
    connect::{self, ANSWER, Api},
    upload,
};

/// What the demo is registered as.
pub(super) const NAME: &str = "hello-world-server";
/// Who is asked, as error messages name it.
const REGISTRY: &str = "the registry";
/// The hidden subcommand that is the demo.
pub(crate) const SUBCOMMAND: &str = "demo-hello-world-server";

/// Registers the demo, or brings an older registration of ours up to date. A service
/// that somebody else has put under the name is left alone.
pub(super) async fn register(fleet: &Fleet) -> Result<()> {
    register_at(RegistryClient::new(connect::socket(fleet.registry_socket()).await?)).await
}

async fn register_at(mut registry: RegistryClient<Api>) -> Result<()> {
    let wanted = proto::GetServiceRequest { name: NAME.into() };
    let asked = api::call(REGISTRY, ANSWER, wanted, |r| registry.get_service(r));
    let present = match asked.await {
        Ok(answer) => answer.spec,
        Err(error) if error.kind() == Kind::NotFound => None,
        Err(error) => return Err(error),
    };
    if present.as_ref().is_some_and(|spec| spec.arguments != [SUBCOMMAND]) {
        tracing::info!("{NAME} is registered already, as something else");
        return Ok(());
    }
    put(&mut registry, present.map(|spec| spec.revision)).await
}

async fn put(registry: &mut RegistryClient<Api>, if_revision: Option<u64>) -> Result<()> {
    let program = std::env::current_exe().map_err(|error| {
        Error::new(Kind::Internal, "cannot find this program's own file").because(error)
    })?;
    let artifact = upload::artifact(registry, &program).await?;
    let spec = proto::ServiceSpec {
        name: NAME.into(),
        artifact: artifact.to_string(),
        arguments: vec![SUBCOMMAND.into()],
        readiness: Some(proto::Readiness { http_path: "/hello".into(), ..Default::default() }),
        requirements: Some(proto::Requirements { soft_rtt_ms: 100, hard_rtt_ms: 1000 }),
        ..Default::default()
    };
    let wanted = proto::PutServiceRequest { spec: Some(spec), if_revision };
    api::call(REGISTRY, ANSWER, wanted, |r| registry.put_service(r)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_does_not_answer_is_not_waited_for_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("registry-1.sock");
        let _accepts_nobody = tokio::net::UnixListener::bind(&socket).unwrap();
        let deaf = RegistryClient::new(connect::socket(&socket).await.unwrap());
        let error = register_at(deaf).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Timeout);
    }
}
