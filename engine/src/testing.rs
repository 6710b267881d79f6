//! An engine and an image for the tests of every crate.
//!
//! An image is built from nothing but a static binary, which `rustc` makes of one file here:
//! nothing is pulled from anywhere. A machine without an engine skips such a test and says
//! so, unless `LCA_DOCKER=required` is set: then the test fails.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use bollard::query_parameters::CreateImageOptionsBuilder;
use futures::TryStreamExt as _;
use lca::Digest;

use crate::{Address, Engine};

/// Set to `required` where a machine is known to have an engine.
const DEMAND: &str = "LCA_DOCKER";
/// What runs in the containers.
const PROGRAM: &str = include_str!("testing/program.rs");
/// Where that is in the image.
const PATH: &str = "program";

/// The engine of this machine, or `None`, having said why `test` is skipped.
///
/// # Panics
/// If there is none although there must be.
pub async fn engine(test: &str) -> Option<Engine> {
    let engine = match Address::of_the_environment() {
        Ok(address) => Engine::connect(&address).await,
        Err(error) => Err(error),
    };
    match engine {
        Ok(engine) => Some(engine),
        Err(error) => {
            let required = std::env::var(DEMAND).is_ok_and(|value| value == "required");
            assert!(!required, "{DEMAND}=required, but {error}");
            eprintln!("SKIPPED: {test}: {error}");
            None
        }
    }
}

/// An image of our own, gone when this is dropped.
#[derive(Debug)]
pub struct TestImage {
    /// Its ID, which is all it has: no repository has it.
    pub id: Digest,
    tag: String,
    address: Address,
}

impl TestImage {
    /// Makes one. Its containers write three lines, then serve HTTP on `SERVICE_PORT`, unless
    /// their first argument says otherwise: `run`, `deaf`, `exit CODE`, `die`, `hog`, `fork`.
    /// It exposes port 8000.
    ///
    /// # Panics
    /// If it cannot be made.
    pub async fn make(engine: &Engine) -> Self {
        Self::starting(engine, PATH).await
    }

    /// The same, where its containers start what is at this path in it.
    ///
    /// # Panics
    /// As [`make`](Self::make).
    pub async fn starting(engine: &Engine, path: &str) -> Self {
        let archive = archive(&compiled());
        let tag = format!("lca-test-{}", lca::InstanceId::random());
        let options = CreateImageOptionsBuilder::new()
            .from_src("-")
            .repo(&tag)
            .tag("1")
            .changes(vec![format!("ENTRYPOINT [\"/{path}\"]"), "EXPOSE 8000".to_owned()])
            .build();
        let root = bollard::body_full(archive.into());
        let made: Vec<_> = engine
            .docker()
            .create_image(Some(options), Some(root), None)
            .try_collect()
            .await
            .expect("importing the image of tests");
        drop(made);
        let said = engine.docker().inspect_image(&format!("{tag}:1")).await;
        let id = said.expect("the image is there").id.expect("it has an ID");
        let id = id.parse().expect("an ID is a digest");
        Self { id, tag, address: engine.address().clone() }
    }

    /// What it is called.
    pub fn reference(&self) -> String {
        format!("docker.io/library/{}:1", self.tag)
    }
}

impl Drop for TestImage {
    fn drop(&mut self) {
        // The runtime may be going: the engine's own program does it.
        let removed = Command::new("docker")
            .env(crate::DOCKER_HOST, self.address.to_string())
            .args(["image", "rm", "--force", &format!("{}:1", self.tag)])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if !removed.is_ok_and(|status| status.success()) {
            eprintln!("the image {} stays", self.tag);
        }
    }
}

/// Removes all containers and networks of a label by force: what a test that fails leaves.
/// Blocks.
pub fn clear(address: &Address, label: &str) {
    let docker = |arguments: &[&str]| {
        let mut docker = Command::new("docker");
        docker.env(crate::DOCKER_HOST, address.to_string()).args(arguments);
        docker.stderr(Stdio::null()).output().map(|output| output.stdout).unwrap_or_default()
    };
    let filter = format!("label={label}");
    for (list, remove) in [
        (&["ps", "--all", "--quiet", "--filter", &filter][..], &["rm", "--force"][..]),
        (&["network", "ls", "--quiet", "--filter", &filter], &["network", "rm"]),
    ] {
        let listed = String::from_utf8_lossy(&docker(list)).into_owned();
        let found: Vec<_> = listed.split_whitespace().collect();
        if !found.is_empty() {
            docker(&[remove, &found].concat());
        }
    }
}

/// The program as a static binary, compiled once and kept beside the other build results.
fn compiled() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace's folder");
    let dir = workspace.join("target/container-program");
    fs::create_dir_all(&dir).expect("making a folder under target/");
    let program = dir.join(&Digest::of(PROGRAM.as_bytes()).hex()[..16]);
    if program.exists() {
        return program;
    }
    // Other tests may do the same at the same moment: each has a name of its own until it is whole.
    let own = dir.join(lca::InstanceId::random().to_string());
    let source = own.with_extension("rs");
    fs::write(&source, PROGRAM).expect("writing the source");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let status = Command::new(rustc)
        .args([
            "--edition",
            "2024",
            "-O",
            "-C",
            "target-feature=+crt-static",
            "-C",
            "strip=symbols",
        ])
        .arg("-o")
        .args([&own, &source])
        .status()
        .expect("running rustc");
    assert!(status.success(), "the program of the containers does not compile");
    fs::rename(&own, &program).expect("keeping the program");
    let _only_in_the_way = fs::remove_file(&source);
    program
}

/// A tar archive with the program alone.
fn archive(program: &Path) -> Vec<u8> {
    let bytes = fs::read(program).expect("reading the program");
    let mut header = [0u8; 512];
    let mut put =
        |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, PATH);
    put(100, "0000755\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{:011o}\0", bytes.len()));
    put(136, "00000000000\0");
    put(148, "        "); // what its sum is taken with
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let padding = bytes.len().next_multiple_of(512) - bytes.len() + 1024;
    [&header[..], &bytes, &vec![0; padding]].concat()
}
