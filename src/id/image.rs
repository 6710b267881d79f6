//! The name of a container image, read as Docker reads it and written in full.
//!
//! `nginx`, `library/nginx` and `docker.io/library/nginx:latest` are one image; it is
//! compared, hashed and stored as the last of these only. What Docker's engine would refuse
//! is refused here already, with the reason, before anything is asked of anybody.

use std::{fmt, net::Ipv6Addr, str::FromStr};

use super::{Digest, ParseError};

/// The registry that names without one mean.
const DOCKER_HUB: &str = "docker.io";
/// What Docker Hub was called once, and what configuration files still call it.
const DOCKER_HUB_OF_OLD: &str = "index.docker.io";
/// The repositories of Docker Hub that are written without an owner.
const LIBRARY: &str = "library";
/// The tag that is meant where neither a tag nor a digest is given.
const LATEST: &str = "latest";
/// Longest registry and repository together, as in Docker's own grammar.
const MAX_NAME: usize = 255;
/// Longest tag, as in Docker's own grammar.
const MAX_TAG: usize = 128;

/// Where an image is found: `[registry[:port]/]repository[:tag][@digest]`, as people write
/// it, and in full once it is read. With neither tag nor digest the tag is `latest`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageRef {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl ImageRef {
    /// The longest one as text: a name, a tag and a digest.
    pub const MAX_LEN: usize = MAX_NAME + 1 + MAX_TAG + 1 + 71;

    /// The registry, `docker.io` or `HOST[:PORT]`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Whether it is an image of Docker Hub, which has ways of its own to be written.
    pub fn is_of_docker_hub(&self) -> bool {
        self.registry == DOCKER_HUB
    }

    /// Registry and repository, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The tag, if it has one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of the manifest, if it has one.
    pub const fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Exactly the image of this digest, under the same name and without the tag: what is
    /// pulled, and what the engine lists as a repository digest.
    #[must_use]
    pub fn at(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// The name as Docker shows it to people: without `docker.io/library/`.
    pub fn familiar_name(&self) -> String {
        match self.registry.as_str() {
            DOCKER_HUB => match self.repository.strip_prefix(LIBRARY) {
                Some(rest) if rest.starts_with('/') => rest[1..].to_owned(),
                _ => self.repository.clone(),
            },
            _ => self.name(),
        }
    }

    fn suffix(&self, f: &mut impl fmt::Write) -> fmt::Result {
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }

    /// As Docker shows it to people, tag and digest included.
    pub fn familiar(&self) -> String {
        let mut text = self.familiar_name();
        self.suffix(&mut text).expect("writing to a string cannot fail");
        text
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        self.suffix(f)
    }
}

impl fmt::Debug for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ImageRef({self})")
    }
}

impl FromStr for ImageRef {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text.is_empty() {
            return bad("is empty");
        }
        if text.len() > Self::MAX_LEN {
            return bad(format!("is longer than {} characters", Self::MAX_LEN));
        }
        if text.contains("://") {
            return bad("must be written without a scheme such as https://");
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse()?)),
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            // Else it is the port of a registry, and what follows belongs to the name.
            Some((name, tag)) if !tag.contains('/') => (name, Some(checked_tag(tag)?)),
            _ => (rest, None),
        };
        let (registry, repository) = split(name);
        check_registry(&registry)?;
        check_repository(&repository)?;
        if registry.len() + 1 + repository.len() > MAX_NAME {
            return bad(format!("has a name of more than {MAX_NAME} characters"));
        }
        let hexadecimal = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if name.len() == 64 && name.bytes().all(hexadecimal) {
            return bad("is an image ID: write it as sha256:ID");
        }
        let tag = match (tag, digest) {
            (None, None) => Some(LATEST.to_owned()),
            (tag, _) => tag,
        };
        Ok(Self { registry, repository, tag, digest })
    }
}

fn bad<T>(reason: impl Into<String>) -> Result<T, ParseError> {
    Err(ParseError::new("image reference", reason))
}

/// The registry and the repository in it. What stands before the first slash is a registry
/// if it can be told from an owner at Docker Hub: by a dot, a port, capitals, or as `localhost`.
fn split(name: &str) -> (String, String) {
    let hub = |repository: &str| {
        let whole = if repository.contains('/') {
            repository.to_owned()
        } else {
            format!("{LIBRARY}/{repository}")
        };
        (DOCKER_HUB.to_owned(), whole)
    };
    let tells = |first: &str| {
        first.contains(['.', ':'])
            || first == "localhost"
            || first.bytes().any(|b| b.is_ascii_uppercase())
    };
    match name.split_once('/') {
        Some((DOCKER_HUB | DOCKER_HUB_OF_OLD, repository)) => hub(repository),
        Some((first, repository)) if tells(first) => (first.to_owned(), repository.to_owned()),
        _ => hub(name),
    }
}

fn checked_tag(tag: &str) -> Result<String, ParseError> {
    let inside = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    match tag.as_bytes() {
        [] => bad("has an empty tag"),
        bytes if bytes.len() > MAX_TAG => {
            bad(format!("has a tag of more than {MAX_TAG} characters"))
        }
        [b'.' | b'-', ..] => bad("has a tag that begins with '.' or '-'"),
        bytes if bytes.iter().all(|b| inside(*b)) => Ok(tag.to_owned()),
        _ => bad("has a tag that is not of letters, digits, '_', '.' and '-'"),
    }
}

/// A host name, an IPv4 address or an IPv6 address in brackets, with or without a port.
fn check_registry(registry: &str) -> Result<(), ParseError> {
    let (host, port) = match registry.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (registry, None),
    };
    if port.is_some_and(|port| !port.bytes().all(|b| b.is_ascii_digit()) || !is_port(port)) {
        return bad("names a registry whose port is none");
    }
    let inside = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(inside)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let good = match bracketed {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => host.split('.').all(label),
    };
    if good { Ok(()) } else { bad("names a registry that is no host name or address") }
}

fn is_port(port: &str) -> bool {
    port.parse::<u16>().is_ok_and(|port| port > 0)
}

/// Parts of small letters and digits, with `.`, `_`, `__` or any number of `-` between them.
fn check_repository(repository: &str) -> Result<(), ParseError> {
    if repository.bytes().any(|b| b.is_ascii_uppercase()) {
        return bad("has a repository name with capital letters");
    }
    let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    for part in repository.split('/') {
        let separators = part.split(|c: char| c.is_ascii() && letter(c as u8));
        let known = |between: &str| {
            matches!(between, "" | "." | "_" | "__") || between.bytes().all(|b| b == b'-')
        };
        let edges = [part.bytes().next(), part.bytes().last()];
        if !edges.iter().all(|edge| edge.is_some_and(letter)) || !separators.clone().all(known) {
            return bad(
                "has a repository name that is not of a-z and 0-9, with '.', '_' or '-' between them",
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    fn read(text: &str) -> Result<String, String> {
        let read: Result<ImageRef, _> = text.parse();
        read.map(|image| image.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn short_names_mean_what_they_mean_to_docker() {
        for (short, full) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.25", "docker.io/library/nginx:1.25"),
            ("owner/app", "docker.io/owner/app:latest"),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
            ("docker.io/owner/app:x", "docker.io/owner/app:x"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app:v1", "localhost:5000/app:v1"),
            ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest"),
            ("[::1]:5000/app", "[::1]:5000/app:latest"),
            ("ghcr.io/a/b__c/d-e.f:T_1", "ghcr.io/a/b__c/d-e.f:T_1"),
            ("Registry/app", "Registry/app:latest"),
        ] {
            assert_eq!(read(short).as_deref(), Ok(full), "{short}");
        }
        let pinned = format!("app:v1@{DIGEST}");
        assert_eq!(read(&pinned).unwrap(), format!("docker.io/library/app:v1@{DIGEST}"));
        let bare = format!("app@{DIGEST}");
        assert_eq!(read(&bare).unwrap(), format!("docker.io/library/app@{DIGEST}"));
    }

    #[test]
    fn what_docker_would_refuse_is_refused_with_a_reason() {
        let (long_tag, long_name) = (format!("a:{}", "t".repeat(129)), "n".repeat(256));
        for (text, reason) in [
            ("", "is empty"),
            ("App", "capital letters"),
            ("a/B", "capital letters"),
            ("https://ghcr.io/a/b", "without a scheme"),
            ("a:", "empty tag"),
            ("a:-x", "begins with"),
            ("a:b c", "a tag that is not of"),
            ("a@sha256:12", "64 lower-case hex digits"),
            ("a@md5:12", "must begin with 'sha256:'"),
            ("a//b", "repository name"),
            ("/a", "repository name"),
            ("a/", "repository name"),
            ("a..b", "repository name"),
            ("a___b", "repository name"),
            ("-a", "repository name"),
            ("a b", "repository name"),
            ("a\nb", "repository name"),
            ("é", "repository name"),
            ("host:99999/a", "port"),
            ("host:0/a", "port"),
            ("ho_st.x/a", "host name"),
            ("-host.x/a", "host name"),
            ("[::1/a", "registry"),
            (&DIGEST[7..], "an image ID"),
            (&long_tag, "a tag of more than"),
            (&long_name, "a name of more than"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(reason), "{text:?}: {error}");
        }
    }

    #[test]
    fn people_are_shown_what_docker_shows_them() {
        for text in ["nginx:1", "owner/app:x", "localhost:5000/app:v1", "libraryx/app:1"] {
            assert_eq!(text.parse::<ImageRef>().unwrap().familiar(), text);
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_bounded_and_reads_the_same_again(text in anything()) {
            if let Ok(image) = text.parse::<ImageRef>() {
                let full = image.to_string();
                prop_assert!(full.len() <= ImageRef::MAX_LEN);
                prop_assert_eq!(full.parse::<ImageRef>(), Ok(image.clone()));
                prop_assert_eq!(image.familiar().parse::<ImageRef>(), Ok(image.clone()));
                prop_assert!(image.tag().is_some() || image.digest().is_some());
                prop_assert!(full.bytes().all(|b| b.is_ascii_graphic()));
                let pinned = image.at(Digest::of(b"x"));
                prop_assert_eq!(pinned.to_string().parse::<ImageRef>(), Ok(pinned));
            }
        }
    }

    /// Texts near what is taken, and any others.
    fn anything() -> impl Strategy<Value = String> {
        let word = || {
            proptest::sample::select(vec![
                "a",
                "b1",
                "library",
                "docker.io",
                "index.docker.io",
                "localhost",
                "127.0.0.1",
                "[::1]",
                "A",
                "x.y",
                "_",
                "__",
                "-",
                ".",
                "/",
                "/",
                ":",
                ":",
                "@",
                "5000",
                "0",
                " ",
                "é",
                DIGEST,
            ])
        };
        let words = proptest::collection::vec(word(), 0..9).prop_map(|words| words.concat());
        prop_oneof![4 => words, 1 => proptest::string::string_regex("\\PC{0,40}").expect("a pattern")]
    }
}
