//! Services for tests: the demo program with some arguments, or any other program.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use lca::{
    Digest,
    api::proto::{self, registry_client::RegistryClient},
};
use tonic::transport::Channel;

/// What to register.
#[derive(Clone, Debug)]
pub struct Service {
    /// The bytes of its program; `None` for an external service.
    pub program: Option<Vec<u8>>,
    /// Its spec, without the artifact.
    pub spec: proto::ServiceSpec,
}

impl Service {
    /// The demo under this name, ready when it answers `/hello`.
    pub fn demo(name: &str) -> Self {
        Self::demo_of(&demo_program(), name)
    }

    /// The demo under this name, from an executable that is, or carries, the demo.
    ///
    /// # Panics
    /// If it cannot be read.
    pub fn demo_of(executable: &Path, name: &str) -> Self {
        let program = std::fs::read(executable).expect("the demo is built with the tests");
        let readiness = proto::Readiness { http_path: "/hello".into(), ..Default::default() };
        Self {
            program: Some(program),
            spec: proto::ServiceSpec {
                name: name.into(),
                readiness: Some(readiness),
                ..Default::default()
            },
        }
    }

    /// A service that runs outside of the fleet, ready when it answers `/hello`.
    pub fn external(name: &str) -> Self {
        let readiness = proto::Readiness { http_path: "/hello".into(), ..Default::default() };
        let readiness = Some(readiness);
        let spec = proto::ServiceSpec { name: name.into(), readiness, ..Default::default() };
        Self { program: None, spec }
    }

    /// A shell script under this name, ready when its port accepts.
    pub fn script(name: &str, script: &str) -> Self {
        let program = Some(format!("#!/bin/sh\n{script}\n").into_bytes());
        Self { program, spec: proto::ServiceSpec { name: name.into(), ..Default::default() } }
    }

    /// With these arguments.
    #[must_use]
    pub fn args<const N: usize>(mut self, arguments: [&str; N]) -> Self {
        self.spec.arguments = arguments.map(str::to_owned).to_vec();
        self
    }

    /// Stopped after so many milliseconds without a request.
    #[must_use]
    pub fn idle_timeout_ms(mut self, ms: u64) -> Self {
        self.spec.idle_timeout_ms = ms;
        self
    }

    /// Reported failed when it is not ready after so many milliseconds.
    #[must_use]
    pub fn start_timeout_ms(mut self, ms: u64) -> Self {
        self.spec.readiness.get_or_insert_default().start_timeout_ms = ms;
        self
    }

    /// Registers it, replacing what has its name, and returns what was stored.
    ///
    /// # Errors
    /// What the registry says.
    pub async fn register(
        &self,
        registry: &mut RegistryClient<Channel>,
    ) -> anyhow::Result<proto::ServiceSpec> {
        let mut spec = self.spec.clone();
        if let Some(program) = &self.program {
            spec.artifact = Digest::of(program).to_string();
            registry.put_artifact(futures::stream::iter(upload(&spec.artifact, program))).await?;
        }
        let present =
            registry.get_service(proto::GetServiceRequest { name: spec.name.clone() }).await;
        let if_revision =
            present.ok().and_then(|present| Some(present.into_inner().spec?.revision));
        let stored = registry
            .put_service(proto::PutServiceRequest { spec: Some(spec), if_revision })
            .await?;
        stored.into_inner().spec.context("the registry answers with what it stored")
    }

    /// Moved nearer for clients further away than so many milliseconds.
    #[must_use]
    pub fn soft_rtt_ms(mut self, ms: u32) -> Self {
        self.spec.requirements.get_or_insert_default().soft_rtt_ms = ms;
        self
    }

    /// Not used by clients further away than so many milliseconds.
    #[must_use]
    pub fn hard_rtt_ms(mut self, ms: u32) -> Self {
        self.spec.requirements.get_or_insert_default().hard_rtt_ms = ms;
        self
    }
}

/// The parts of an upload.
fn upload(digest: &str, program: &[u8]) -> Vec<proto::PutArtifactRequest> {
    use proto::put_artifact_request::Part;
    let header = proto::ArtifactHeader { digest: digest.to_owned(), size: program.len() as u64 };
    let chunks = program.chunks(512 << 10).map(|chunk| Part::Data(chunk.to_vec()));
    let parts = std::iter::once(Part::Header(header)).chain(chunks);
    parts.map(|part| proto::PutArtifactRequest { part: Some(part) }).collect()
}

/// The demo program, built beside this test.
///
/// # Panics
/// If it is not there; `cargo test` at the root builds it.
pub fn demo_program() -> PathBuf {
    program("hello-world-server")
}

/// A program of the workspace, from the folder above the running executable's (or
/// beside it).
///
/// # Panics
/// If it is not there; `cargo test` at the root builds it.
pub fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a running program has a file");
    let mut folders = own.ancestors().skip(1).take(2).map(|folder| folder.join(name));
    folders
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("{name} is not built; run `cargo test` at the root"))
}
