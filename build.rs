//! Turns `proto/` into Rust with protox, so that no protoc is needed on the machine.

use std::{error::Error, path::Path};

const FILES: [&str; 7] = [
    "lca/v1/spec.proto",
    "lca/v1/registry.proto",
    "lca/v1/instances.proto",
    "lca/v1/allocator.proto",
    "lca/v1/manager.proto",
    "lca/v1/node.proto",
    "lca/v1/endpoint.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_source_info(true).include_imports(true).open_files(FILES)?;
    let descriptors = Path::new(&std::env::var("OUT_DIR")?).join("descriptors.bin");
    std::fs::write(descriptors, compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure()
        .btree_map(".")
        .bytes(".lca.v1.ArtifactChunk.data")
        .bytes(".lca.v1.LogChunk.data")
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
