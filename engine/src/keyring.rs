//! What Docker's own configuration says of who we are to a registry.
//!
//! `docker login` writes `config.json`: passwords in it, or the name of a helper program that
//! has them. Whoever runs an allocator logs in as its user and is done. A password is never
//! part of an error, a log line or the `Debug` of anything here.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use base64::{
    Engine as _,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bollard::auth::DockerCredentials;
use lca::{Error, ImageRef, Kind, Result};
use serde::Deserialize;
use std::collections::HashMap;

mod helper;

/// The variable that names the folder of the configuration.
const DOCKER_CONFIG: &str = "DOCKER_CONFIG";
/// Largest configuration that is read: hundreds of registries.
const MAX_FILE: u64 = 1 << 20;
/// How Docker Hub is called in configurations.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// Who we are to one registry.
#[derive(Clone, PartialEq)]
pub struct Credentials(DockerCredentials);

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

impl From<Credentials> for DockerCredentials {
    fn from(credentials: Credentials) -> Self {
        credentials.0
    }
}

/// Where credentials are looked for. They are read anew each time: somebody may log in
/// while an allocator runs.
#[derive(Clone, Debug)]
pub struct Keyring {
    file: Option<PathBuf>,
}

impl Keyring {
    /// The configuration of the user this runs as: in `$DOCKER_CONFIG`, else in
    /// `~/.docker`.
    pub fn of_the_environment() -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let folder = set(DOCKER_CONFIG).map(PathBuf::from);
        let home = || set("HOME").map(|home| Path::new(&home).join(".docker"));
        Self { file: folder.or_else(home).map(|folder| folder.join("config.json")) }
    }

    /// The configuration in this folder.
    pub fn in_folder(folder: &Path) -> Self {
        Self { file: Some(folder.join("config.json")) }
    }

    /// No configuration: nobody to every registry.
    pub const fn none() -> Self {
        Self { file: None }
    }

    /// What to show the registry of an image; `None`: nothing.
    ///
    /// # Errors
    /// [`Kind::FailedPrecondition`] if the configuration cannot be read, or its helper
    /// fails or does not answer within ten seconds.
    pub async fn get(&self, image: &ImageRef) -> Result<Option<Credentials>> {
        let Some(file) = self.file.clone() else { return Ok(None) };
        let read = tokio::task::spawn_blocking(move || read(&file)).await;
        let config = read.map_err(|error| {
            Error::new(Kind::Internal, "cannot read Docker's configuration").because(error)
        })??;
        let server = if image.is_of_docker_hub() { DOCKER_HUB } else { image.registry() };
        match config.who(server) {
            Who::Nobody => Ok(None),
            Who::Known(credentials) => Ok(Some(credentials)),
            Who::Ask(helper) => helper::ask(&helper, server).await,
        }
    }
}

/// Reads a configuration; one that is not there says nothing. Blocks.
fn read(file: &Path) -> Result<Config> {
    use std::io::Read as _;
    let refused = |reason: String| {
        let what = format!("cannot use Docker's configuration {}: {reason}", file.display());
        Error::new(Kind::FailedPrecondition, what).hint("mend it, or move it away")
    };
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file);
    match opened.and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes)) {
        Ok(_) if bytes.len() as u64 > MAX_FILE => Err(refused("it is larger than 1 MiB".into())),
        // Where it is wrong, and not what stands there.
        Ok(_) => serde_json::from_slice(&bytes).map_err(|error| {
            refused(format!("line {}, column {} is wrong", error.line(), error.column()))
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Config::default()),
        Err(error) => Err(refused(error.to_string())),
    }
}

/// What we read of `config.json`.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    auths: HashMap<String, Entry>,
    cred_helpers: HashMap<String, String>,
    creds_store: String,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

/// What a configuration says of one registry.
#[derive(Debug, PartialEq)]
enum Who {
    Nobody,
    Known(Credentials),
    /// The helper of this name knows.
    Ask(String),
}

impl Config {
    /// A helper for this registry before one for all before what stands in the file.
    fn who(&self, server: &str) -> Who {
        let helper = find(&self.cred_helpers, server).unwrap_or(&self.creds_store);
        if !helper.is_empty() {
            return Who::Ask(helper.clone());
        }
        let entry = find(&self.auths, server).cloned().unwrap_or_default();
        let (username, password) = match entry.split() {
            Some(pair) => pair,
            None => (entry.username, entry.password),
        };
        if entry.identitytoken.is_empty() && (username.is_empty() || password.is_empty()) {
            return Who::Nobody;
        }
        let some = |text: String| Some(text).filter(|text| !text.is_empty());
        Who::Known(Credentials(DockerCredentials {
            username: some(username),
            password: some(password),
            identitytoken: some(entry.identitytoken),
            serveraddress: Some(server.to_owned()),
            ..Default::default()
        }))
    }
}

impl Entry {
    /// User and password in `auth`.
    fn split(&self) -> Option<(String, String)> {
        // Both ways to end are met in files.
        let config =
            GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
        let decoded = GeneralPurpose::new(&base64::alphabet::STANDARD, config).decode(&self.auth);
        let text = String::from_utf8(decoded.ok()?).ok()?;
        let (user, password) = text.split_once(':')?;
        Some((user.to_owned(), password.trim_end_matches('\0').to_owned()))
    }
}

/// What is filed under a registry, by its name or by a URL of it as older files have it.
fn find<'a, T>(filed: &'a HashMap<String, T>, server: &str) -> Option<&'a T> {
    filed.get(server).or_else(|| {
        let mut others: Vec<_> = filed.iter().collect();
        others.sort_unstable_by_key(|(key, _)| *key);
        let same = |key: &str| {
            host(key) == host(server) || (server == DOCKER_HUB && host(key) == "docker.io")
        };
        others.into_iter().find(|(key, _)| same(key)).map(|(_, value)| value)
    })
}

/// `HOST[:PORT]` of a URL, or of what is none.
fn host(key: &str) -> &str {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    rest.split('/').next().unwrap_or(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        serde_json::from_str(text).unwrap()
    }

    fn known(who: Who) -> (String, String) {
        let Who::Known(Credentials(known)) = who else { panic!("{who:?}") };
        (
            known.username.unwrap_or_default(),
            known.password.or(known.identitytoken).unwrap_or_default(),
        )
    }

    #[test]
    fn a_registry_is_found_however_the_file_calls_it() {
        // user:pass~?> in base64, with and without its end.
        let config = config(
            r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dXNlcjpwYXNzfj8+"},
                "https://reg.example:5000/v2/":{"auth":"YTpiYw=="}, "ghcr.io":{"auth":"YTpiYw"},
                "token.example":{"identitytoken":"t"}, "plain.example":{"username":"u","password":"p"},
                "empty.example":{}}, "HttpHeaders":{"x":"y"}}"#,
        );
        let pair = |user: &str, password: &str| (user.to_owned(), password.to_owned());
        assert_eq!(known(config.who(DOCKER_HUB)), pair("user", "pass~?>"));
        assert_eq!(known(config.who("reg.example:5000")), pair("a", "bc"));
        assert_eq!(known(config.who("ghcr.io")), pair("a", "bc"));
        assert_eq!(known(config.who("token.example")), pair("", "t"));
        assert_eq!(known(config.who("plain.example")), pair("u", "p"));
        for server in ["empty.example", "reg.example", "reg.example:5001", "example"] {
            assert_eq!(config.who(server), Who::Nobody, "{server}");
        }
    }

    #[test]
    fn a_helper_counts_more_than_the_file_and_one_for_the_registry_most() {
        let config = config(
            r#"{"auths":{"a.example":{"auth":"YTpiYw=="}}, "credsStore":"all",
                "credHelpers":{"b.example":"one"}}"#,
        );
        assert_eq!(config.who("a.example"), Who::Ask("all".into()));
        assert_eq!(config.who("b.example"), Who::Ask("one".into()));
    }

    #[tokio::test]
    async fn a_file_that_is_wrong_is_named_and_shows_no_secret() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keyring::in_folder(dir.path());
        let image = "ghcr.io/a/b".parse().unwrap();
        assert_eq!(keys.get(&image).await.unwrap(), None, "no file says nothing");
        let text = r#"{"auths":{"ghcr.io":{"auth":"c2VjcmV0","password":7}}}"#;
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        let error = keys.get(&image).await.unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        assert!(error.public().contains("config.json: line 1, column"), "{error}");
        assert!(!error.chain().contains("c2VjcmV0"), "{}", error.chain());
    }

    #[test]
    fn a_password_is_not_shown_by_debug() {
        let known = config(r#"{"auths":{"a.b":{"username":"u","password":"hunter2"}}}"#).who("a.b");
        assert!(!format!("{known:?}").contains("hunter2"));
    }
}
