//! Programs that keep passwords: `docker-credential-NAME`, as `credsStore` and `credHelpers`
//! name them. They are somebody else's, so they get a deadline, and as much output as a
//! password needs.

use std::{process::Stdio, time::Duration};

use bollard::auth::DockerCredentials;
use lca::{Error, Kind, Result};
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
    time::timeout,
};

use super::Credentials;

/// A helper asks a key chain, some a service of a cloud; nobody is there to type anything.
const WITHIN: Duration = Duration::from_secs(10);
/// Most that is read of its answer: tokens of clouds have some kilobytes.
const MAX_ANSWER: u64 = 64 << 10;
/// How a helper says that it knows nothing.
const NOT_FOUND: &str = "credentials not found";
/// The user of what is a token and not a password.
const TOKEN: &str = "<token>";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Asks the helper of this name for the credentials for `server`.
pub(super) async fn ask(name: &str, server: &str) -> Result<Option<Credentials>> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if !name.bytes().all(plain) {
        return Err(Error::new(
            Kind::FailedPrecondition,
            "Docker's configuration names a credential helper that is no program",
        ));
    }
    run(&format!("docker-credential-{name}"), server, WITHIN).await
}

async fn run(program: &str, server: &str, within: Duration) -> Result<Option<Credentials>> {
    let failed = |reason: &str| {
        let what = format!("{program} gives no credentials for {server}: {reason}");
        Error::new(Kind::FailedPrecondition, what)
    };
    let mut command = Command::new(program);
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command
        .kill_on_drop(true) // when it is late, too
        .spawn()
        .map_err(|error| failed(&format!("it cannot be run: {error}")))?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let asked = async {
        if let Some(mut stdin) = stdin {
            // One that does not read what it is asked says why in its answer.
            let _unread = stdin.write_all(server.as_bytes()).await;
        }
        let mut answer = Vec::new();
        if let Some(stdout) = stdout {
            stdout.take(MAX_ANSWER).read_to_end(&mut answer).await?;
        }
        Ok::<_, std::io::Error>((child.wait().await?, answer))
    };
    let (status, answer) = match timeout(within, asked).await {
        Ok(asked) => asked.map_err(|error| failed("it broke off").because(error))?,
        Err(_) => return Err(failed(&format!("it did not answer within {within:?}"))),
    };
    if status.code().is_none() {
        return Err(failed("it was killed, or said too much"));
    }
    if !status.success() {
        let said = String::from_utf8_lossy(&answer);
        if said.contains(NOT_FOUND) {
            return Ok(None);
        }
        return Err(failed(&crate::failure::plain(&said)));
    }
    // What cannot be read is not shown: it may hold the secret.
    let Ok(Answer { username, secret }) = serde_json::from_slice(&answer) else {
        return Err(failed("its answer is not of the known form"));
    };
    let mut credentials =
        DockerCredentials { serveraddress: Some(server.to_owned()), ..Default::default() };
    if username == TOKEN {
        credentials.identitytoken = Some(secret);
    } else {
        (credentials.username, credentials.password) = (Some(username), Some(secret));
    }
    Ok(Some(Credentials(credentials)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// What a helper with this script gives for `reg.example`.
    async fn helper(script: &str, within: Duration) -> Result<Option<DockerCredentials>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("helper");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
        // Another test's fork may hold the file open for writing for a moment.
        for _ in 0..100 {
            match run(path.to_str().unwrap(), "reg.example", within).await {
                Err(error) if error.public().contains("busy") => tokio::task::yield_now().await,
                answer => return answer.map(|found| found.map(Into::into)),
            }
        }
        panic!("the script stayed busy");
    }

    #[tokio::test]
    async fn a_helper_is_told_the_registry_and_gives_a_password_a_token_or_nothing() {
        let script = r#"read -r server; echo "{\"ServerURL\":\"$server\",\"Username\":\"u-$1-$server\",\"Secret\":\"s\"}""#;
        let found = helper(script, WITHIN).await.unwrap().unwrap();
        assert_eq!(found.username.as_deref(), Some("u-get-reg.example"));
        assert_eq!(found.password.as_deref(), Some("s"));
        let token = r#"echo '{"Username":"<token>","Secret":"t"}'"#;
        let found = helper(token, WITHIN).await.unwrap().unwrap();
        assert_eq!((found.username, found.identitytoken.as_deref()), (None, Some("t")));
        let nothing = "echo 'credentials not found in native keychain'; exit 1";
        assert_eq!(helper(nothing, WITHIN).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_helper_that_fails_hangs_or_talks_without_end_is_an_error_and_shows_no_secret() {
        let short = Duration::from_millis(200);
        for (script, within, reason) in [
            ("echo 'the key chain is locked'; exit 1", WITHIN, "the key chain is locked"),
            ("exec sleep 60", short, "did not answer within"),
            ("echo hunter2", WITHIN, "not of the known form"),
            ("exec yes hunter2", WITHIN, "said too much"),
        ] {
            let error = helper(script, within).await.unwrap_err();
            assert_eq!(error.kind(), Kind::FailedPrecondition, "{script}");
            assert!(error.public().contains(reason), "{script}: {error}");
            assert!(!error.chain().contains("hunter2"), "{script}: {}", error.chain());
        }
        let error = run("docker-credential-of-nobody", "reg.example", WITHIN).await.unwrap_err();
        assert!(error.public().contains("cannot be run"), "{error}");
        assert!(ask("../x", "reg.example").await.is_err(), "a path is no helper");
    }
}
