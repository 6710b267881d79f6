//! Tells the code which commit it was built from, where there is a repository to ask.
//!
//! Here and not at the root: whoever depends on this is built again at every commit.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let version = env!("CARGO_PKG_VERSION");
    match commit() {
        Some(commit) => println!("cargo:rustc-env=LCA_VERSION={version} ({commit})"),
        None => println!("cargo:rustc-env=LCA_VERSION={version}"),
    }
}

/// The short name of the commit, unless this is a copy of the sources inside some other
/// repository, or none at all.
fn commit() -> Option<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?.canonicalize().ok()?;
    let top = PathBuf::from(git(&root, &["rev-parse", "--show-toplevel"])?);
    if top.canonicalize().ok()? != root {
        return None;
    }
    // Written by every commit and check-out. Cargo takes a path that is not there for
    // one that has changed.
    let log = root.join(git(&root, &["rev-parse", "--git-path", "logs/HEAD"])?);
    if log.exists() {
        println!("cargo:rerun-if-changed={}", log.display());
    }
    git(&root, &["rev-parse", "--short=10", "HEAD"])
}

fn git(dir: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").current_dir(dir).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
