//! An image made of nothing but a file: as `docker load` takes it.

use lca::Digest;

/// The bytes of a block of a tar archive.
const BLOCK: usize = 512;

/// What an image is made of.
pub(crate) struct Bundle {
    pub(crate) architecture: String,
    /// The ports it says it listens on.
    pub(crate) ports: Vec<u16>,
    /// The only file in it.
    pub(crate) bytes: Vec<u8>,
}

impl Bundle {
    /// One of so many bytes that do not compress and are like no other's, for the
    /// processors of this engine.
    pub(crate) fn of(size: usize, architecture: &str) -> Self {
        let mut bytes = Vec::with_capacity(size + 32);
        let mut next = Digest::of(&rand::random::<[u8; 16]>());
        while bytes.len() < size {
            bytes.extend_from_slice(next.as_bytes());
            next = Digest::of(next.as_bytes());
        }
        Self { architecture: architecture.to_owned(), ports: Vec::new(), bytes }
    }

    /// As an archive with this name.
    pub(crate) fn archive(&self, name: &str) -> Vec<u8> {
        let layer = tar(&[("data", &self.bytes)]);
        let ports: Vec<_> = self.ports.iter().map(|port| format!("\"{port}/tcp\":{{}}")).collect();
        let config = format!(
            r#"{{"architecture":"{}","os":"linux","config":{{"Cmd":["/data"],"ExposedPorts":{{{}}}}},"rootfs":{{"type":"layers","diff_ids":["{}"]}},"history":[{{"created":"2026-01-01T00:00:00Z"}}],"created":"2026-01-01T00:00:00Z"}}"#,
            self.architecture,
            ports.join(","),
            Digest::of(&layer)
        );
        let file = format!("{}.json", Digest::of(config.as_bytes()).hex());
        let manifest =
            format!(r#"[{{"Config":"{file}","RepoTags":["{name}"],"Layers":["layer.tar"]}}]"#);
        tar(&[
            ("manifest.json", manifest.as_bytes()),
            (&file, config.as_bytes()),
            ("layer.tar", &layer),
        ])
    }
}

/// A tar archive in the ustar format.
fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, bytes) in files {
        let mut head = [0u8; BLOCK];
        let mut put =
            |at: usize, text: &str| head[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(0, name);
        put(100, "0000755\0");
        put(108, "0000000\0");
        put(116, "0000000\0");
        put(124, &format!("{:011o}\0", bytes.len()));
        put(136, "00000000000\0");
        put(148, "        ");
        put(156, "0");
        put(257, "ustar\x0000");
        let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
        head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        archive.extend_from_slice(&head);
        archive.extend_from_slice(bytes);
        archive.resize(archive.len().next_multiple_of(BLOCK), 0);
    }
    archive.resize(archive.len() + 2 * BLOCK, 0);
    archive
}
