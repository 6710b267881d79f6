//! The handle to an engine that has answered once.

use std::{sync::Arc, time::Duration};

use bollard::{API_DEFAULT_VERSION, BollardRequest, Docker, errors::Error as Bollard};
use http::HeaderValue;
use lca::{Error, Kind, Result, units::show_duration};
use tokio::time::timeout;

use crate::{About, Address, failure::failed};

/// Within this an engine says what it is: it asks nobody for that. One that is busy with a
/// hundred starts takes a fraction of it.
const GREETING: Duration = Duration::from_secs(5);
/// Within this an engine answers an ordinary call, which at most writes a few files.
const CALL: Duration = Duration::from_secs(10);
/// Until the head of a streamed answer, in seconds, beside the deadlines of whoever reads
/// it: an engine sends heads at once, but before a pull has asked the registry.
const HEAD: u64 = 120;
/// How credentials go to the engine.
const AUTH: &str = "x-registry-auth";

/// An engine that has said what it is. A handle: clones are the same engine.
#[derive(Clone, Debug)]
pub struct Engine {
    docker: Docker,
    address: Arc<Address>,
    about: Arc<About>,
}

impl Engine {
    /// Asks the engine at `address` what it is. A connection is made for each call, so an
    /// engine that is started anew is reached by the same handle.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] within five seconds, with a hint, if there is none, it does
    /// not answer, or we may not talk to it.
    pub async fn connect(address: &Address) -> Result<Self> {
        let absent = |error: Error| {
            let said = error.public();
            let why = said.split_once(": ").map_or(said, |(_, why)| why);
            let what = format!("no Docker Engine answers at {address}: {why}");
            let hint = error.hint_text().map(str::to_owned);
            Error::new(Kind::Unavailable, what).because(error).hint(hint.unwrap_or_else(|| {
                "start it, or say where it is with DOCKER_HOST; `docker info` asks it, too".into()
            }))
        };
        let docker = client(address).map_err(|error| absent(failed("reach it", error)))?;
        let asked = async { tokio::try_join!(docker.version(), docker.info()) };
        let (version, info) = within("ask what it is", GREETING, asked).await.map_err(absent)?;
        let about = About::new(version, info);
        Ok(Self { docker, address: Arc::new(address.clone()), about: Arc::new(about) })
    }

    /// What it said of itself when it was first asked.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// Where it is.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The client beneath, for calls to be made with [`call`](Self::call), and for streams,
    /// which whoever reads them gives up in time.
    pub fn docker(&self) -> &Docker {
        &self.docker
    }

    /// Waits for a call of [`docker`](Self::docker) to be answered, ten seconds at most.
    /// `what` is what it does, as in "start the container".
    ///
    /// # Errors
    /// [`Kind::Unavailable`] if the engine does not answer in time; else as [`failed`].
    pub async fn call<T>(
        &self,
        what: &str,
        call: impl Future<Output = Result<T, Bollard>>,
    ) -> Result<T> {
        within(what, CALL, call).await
    }

    /// The same for a call that takes longer by its nature, such as a stop with a grace.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub async fn call_within<T>(
        &self,
        what: &str,
        deadline: Duration,
        call: impl Future<Output = Result<T, Bollard>>,
    ) -> Result<T> {
        within(what, deadline, call).await
    }
}

async fn within<T>(
    what: &str,
    deadline: Duration,
    call: impl Future<Output = Result<T, Bollard>>,
) -> Result<T> {
    match timeout(deadline, call).await {
        Ok(answer) => answer.map_err(|error| failed(what, error)),
        Err(_) => {
            let waited = show_duration(deadline);
            let what = format!("cannot {what}: the Docker Engine did not answer within {waited}");
            Err(Error::new(Kind::Unavailable, what))
        }
    }
}

fn client(address: &Address) -> Result<Docker, Bollard> {
    let docker = match address {
        Address::Unix(path) => {
            Docker::connect_with_unix(&path.to_string_lossy(), HEAD, API_DEFAULT_VERSION)
        }
        Address::Tcp(host) => Docker::connect_with_http(host, HEAD, API_DEFAULT_VERSION),
    };
    Ok(docker?.with_request_modifier(url_safe))
}

/// The engine reads credentials in the alphabet of base64 that is meant for URLs; the client
/// writes the other one. They differ where a password has `~`, `?` or `>` in some places, and an
/// engine silently pulls without credentials that it cannot read.
fn url_safe(mut request: BollardRequest) -> BollardRequest {
    if let Some(auth) = request.headers_mut().get_mut(AUTH)
        && let Ok(text) = auth.to_str()
        && let Ok(safe) = HeaderValue::from_str(&text.replace('+', "-").replace('/', "_"))
    {
        *auth = safe;
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Fake, Reply, whole};

    #[tokio::test]
    async fn an_engine_says_what_it_is() {
        let fake = Fake::start(|head| match head.target() {
            "/version" => Reply::json(
                r#"{"Version":"20.10.24","ApiVersion":"1.41","Os":"linux","Arch":"amd64"}"#,
            ),
            "/info" => Reply::json(r#"{"ID":"UJ4P","CgroupVersion":"2"}"#),
            _ => Reply::error(404, "page not found"),
        });
        let engine = fake.engine().await;
        let expected = About {
            version: "20.10.24".into(),
            api: "1.41".into(),
            os: "linux".into(),
            architecture: "amd64".into(),
            cgroup: 2,
            id: "UJ4P".into(),
        };
        assert_eq!(*engine.about(), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn an_engine_that_hangs_is_unavailable_within_seconds() {
        let fake = Fake::start(|_| Reply::hang(""));
        let begun = tokio::time::Instant::now();
        let error = Engine::connect(fake.address()).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.public().contains("within 5.0 s"), "{error}");
        assert_eq!(begun.elapsed(), GREETING);

        // One that hangs later, in the middle of an answer.
        let fake = Fake::start(|head| match head.target() {
            "/containers/json" => Reply::hang("[{"),
            _ => whole(head),
        });
        let engine = fake.engine().await;
        let begun = tokio::time::Instant::now();
        let listing = engine
            .docker()
            .list_containers(None::<bollard::query_parameters::ListContainersOptions>);
        let error = engine.call("list the containers", listing).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.public().starts_with("cannot list the containers: "), "{error}");
        assert_eq!(begun.elapsed(), CALL);
    }

    #[tokio::test]
    async fn no_engine_is_said_with_where_it_was_looked_for() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("none.sock");
        let error = Engine::connect(&Address::Unix(gone.clone())).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        let said = format!("unix://{}: there is no such socket", gone.display());
        assert!(error.public().ends_with(&said), "{error}");
        assert!(error.hint_text().unwrap().contains("DOCKER_HOST"));

        // One that was there: the socket stays when its daemon was killed.
        drop(std::os::unix::net::UnixListener::bind(&gone).unwrap());
        let error = Engine::connect(&Address::Unix(gone)).await.unwrap_err();
        assert!(error.public().ends_with(": nobody listens there"), "{error}");
    }

    #[tokio::test]
    async fn credentials_go_in_the_alphabet_that_engines_read() {
        let fake = Fake::start(|head| match head.target() {
            "/distribution/x/json" => Reply::error(500, head.header(AUTH).unwrap_or("none")),
            _ => whole(head),
        });
        let engine = fake.engine().await;
        let credentials = bollard::auth::DockerCredentials {
            // Every place of three, so that one meets each of both letters.
            password: Some("~~~???".into()),
            ..Default::default()
        };
        let asked = engine.docker().inspect_registry_image("x", Some(credentials));
        let said = engine.call("ask", asked).await.unwrap_err();
        let said = said.public().rsplit(' ').next().unwrap().to_owned();
        assert!(said.len() > 20 && !said.contains(['+', '/']), "{said}");
        assert!(said.contains('-') && said.contains('_'), "{said}");
    }
}
