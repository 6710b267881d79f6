//! What every node knows of the registry: specs by name, kept current without asking, and
//! artifacts by digest, fetched when they are needed.
//!
//! The request path asks here for every request, so the rule is: an entry that is
//! current costs no I/O, and a registry that is away costs a known name nothing. One
//! watch on the nearest registry keeps entries current; while there is none, an entry is
//! good for its time to live and is then refreshed on use; when no registry answers it is
//! served as it is, marked stale. A name that is not known then is asked of other nodes.
//! Only what every registry that can be reached denies is [`Kind::NotFound`].
//!
//! | file | what |
//! |---|---|
//! | `cache` | what is known, and whether it may be used: no I/O, no clock |
//! | `registries` | which registries there are, nearest first, and asking them |
//! | `watch` | the task that follows one of them |
//! | `hearsay` | what other nodes know, for when no registry can be reached |
//! | `flights` | one question at a time for each name |
//! | `fetch` | artifacts |
//! | `file` | what is remembered over a restart |

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};
use tonic::transport::Channel;

use crate::{
    Digest, Error, Kind, Result, ServiceHash, ServiceName, Spec,
    api::proto::registry_client::RegistryClient,
    artifact,
    discovery::Discovery,
    endpoint::Endpoint,
    mesh::Mesh,
    metrics::{self, Metrics},
    shutdown::Spawner,
};

use cache::{Cache, Verdict};
use flights::Flights;
use hearsay::Hearsay;
use registries::{Answer, Registries};

mod cache;
mod fetch;
mod file;
mod flights;
mod hearsay;
mod registries;
mod watch;

/// How long a request waits for news of a name it knows already: a registry in the same
/// country answers in less, and what is known is almost always still right.
const PATIENCE: Duration = Duration::from_millis(100);
/// When somebody who found no registry may try again: a lost one is looked for about as
/// often.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How specs are kept.
#[derive(Clone, Debug)]
pub struct Config {
    /// How old an entry may be, while no registry tells of changes, before it is asked
    /// for again.
    pub ttl: Duration,
    /// Where to remember specs over a restart; `None`: nowhere.
    pub file: Option<PathBuf>,
    /// Where the bytes of artifacts are counted.
    pub metrics: Metrics,
}

impl Default for Config {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(2), file: None, metrics: Metrics::default() }
    }
}

/// A spec as far as this node knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cached {
    /// What the registry said last.
    pub spec: Spec,
    /// [`Spec::hash`] of it.
    pub hash: ServiceHash,
    /// True if no registry has confirmed it lately.
    pub stale: bool,
    /// True if no registry has told this node, but another node while none could be
    /// reached: good to look for the service and to ask for it, not to run it.
    pub hearsay: bool,
    /// What requests for it are counted under.
    pub counted: metrics::Slot,
}

impl Cached {
    /// `spec` as it was learnt.
    pub fn new(spec: Spec, stale: bool) -> Self {
        let hash = spec.hash();
        Self { spec, hash, stale, hearsay: false, counted: metrics::Slot::default() }
    }
}

/// The specs this node knows, and the way to the registries. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Specs {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    cache: Mutex<Cache>,
    /// Told when what is to be remembered has changed.
    changed: Notify,
    registries: Registries,
    hearsay: Hearsay,
    questions: Flights<ServiceName, Arc<Cached>>,
    fetches: Flights<(Digest, PathBuf), PathBuf>,
    spawner: Spawner,
    metrics: Metrics,
}

impl Specs {
    /// Reads what was remembered and begins to follow a registry, as soon as there is
    /// one. Reading blocks; meant for the start of a daemon.
    ///
    /// # Errors
    /// [`Kind::FailedPrecondition`] if the folder of the file cannot be created. A file
    /// that is damaged is only warned of: it is a cache.
    pub fn start(
        config: Config,
        discovery: Arc<dyn Discovery>,
        mesh: Arc<dyn Mesh>,
        spawner: &Spawner,
    ) -> Result<Self> {
        let mut cache = Cache::new(config.ttl);
        if let Some(path) = &config.file {
            file::prepare(path)?;
            file::read(path).into_iter().for_each(|(spec, from)| cache.remember(spec, from));
        }
        let specs = Self {
            shared: Arc::new(Shared {
                cache: Mutex::new(cache),
                changed: Notify::new(),
                registries: Registries::new(discovery.clone(), mesh.clone()),
                hearsay: Hearsay::new(discovery, mesh),
                questions: Flights::default(),
                fetches: Flights::default(),
                spawner: spawner.clone(),
                metrics: config.metrics,
            }),
        };
        spawner.spawn("spec watch", watch::run(specs.clone(), spawner.stopping()));
        spawner.spawn("registry search", watch::search(specs.clone(), spawner.stopping()));
        if let Some(path) = config.file {
            spawner.spawn("spec file", file::keep(specs.clone(), path, spawner.stopping()));
        }
        Ok(specs)
    }

    /// The spec of a name. What is current is answered without I/O, what is known within
    /// 100 ms; a name that is not known is asked for, within some eight seconds, where
    /// the last three are for other nodes if no registry can be reached. Cancel
    /// safe: a question that has begun goes on for the others who wait.
    ///
    /// # Errors
    /// [`Kind::NotFound`] naming it, if every registry that can be reached says so;
    /// [`Kind::Unavailable`] if none can be and no node in reach knows it; [`Kind::NoCapacity`]
    /// under a flood of unknown names.
    pub async fn get(&self, name: &ServiceName) -> Result<Arc<Cached>> {
        let known = match self.cache().judge(name, Instant::now()) {
            Verdict::Current(cached) | Verdict::Stale(cached) => return Ok(cached),
            Verdict::Absent => return Err(not_found(name)),
            Verdict::Old(stale) => Some(stale),
            Verdict::Unknown => None,
        };
        let (question, stale) = match (self.question(name), known) {
            (Ok(question), Some(stale)) => (question, stale),
            (Ok(question), None) => return question.await,
            (Err(_too_many), Some(stale)) => return Ok(stale),
            (Err(too_many), None) => return Err(too_many),
        };
        match timeout(PATIENCE, question).await {
            Ok(Err(error)) if error.kind() != Kind::NotFound => Ok(stale),
            Ok(answer) => answer,
            Err(_still_asking) => Ok(stale),
        }
    }

    /// The spec of a name as a registry has it now, asked after this call began. Falls
    /// back to what is known, marked stale, if no registry answers. Cancel safe, within
    /// some ten seconds.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn refresh(&self, name: &ServiceName) -> Result<Arc<Cached>> {
        // A question asked before may have been answered before, too.
        if let Some(earlier) = self.shared.questions.current(name) {
            let _for_others = earlier.await;
        }
        self.question(name)?.await
    }

    /// What is known of a name, without asking anybody.
    pub fn known(&self, name: &ServiceName) -> Option<Arc<Cached>> {
        match self.cache().judge(name, Instant::now()) {
            Verdict::Current(cached) | Verdict::Stale(cached) | Verdict::Old(cached) => {
                Some(cached)
            }
            Verdict::Absent | Verdict::Unknown => None,
        }
    }

    /// All that are known, whether or not somebody has asked for them here.
    pub fn all(&self) -> Vec<Arc<Cached>> {
        self.cache().all().into_iter().map(|(cached, _)| cached).collect()
    }

    /// A client of the nearest registry that can be reached. Cancel safe, within some
    /// seconds.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] if none can be reached.
    pub async fn registry(&self) -> Result<RegistryClient<Channel>> {
        let registries = &self.shared.registries;
        let mut candidates = registries.candidates();
        while let Some(registry) = candidates.next().await {
            if let Ok(client) = registries.client(&registry).await {
                return Ok(client);
            }
            if candidates.is_exhausted() {
                candidates.search();
            }
        }
        Err(Error::new(Kind::Unavailable, "no registry can be reached").retry_after(RETRY_AFTER))
    }

    /// The registries this node knows, itself included if it is one, in no order; asks
    /// nobody. One that died may still be among them.
    pub fn registries(&self) -> Vec<Arc<Endpoint>> {
        self.shared.registries.known()
    }

    /// Where the artifact is in `store`, after fetching it from a registry if it is not
    /// there yet. One fetch at a time for each; it goes on if the caller does not wait.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if every registry that can be reached lacks it,
    /// [`Kind::StartFailed`], naming digest and registry, if what came had another digest; [`Kind::Unavailable`] if none can be reached; as [`artifact::Store::begin`]
    /// if there is no room.
    pub async fn fetch_artifact(&self, digest: Digest, store: &artifact::Store) -> Result<PathBuf> {
        if let Some(path) = store.get(digest) {
            return Ok(path);
        }
        let (specs, store) = (self.clone(), store.clone());
        let key = (digest, store.path(digest));
        let shared = &self.shared;
        let fetch = move || async move {
            fetch::fetch(&specs.shared.registries, &specs.shared.metrics, digest, &store).await
        };
        shared.fetches.join(key, &shared.spawner, fetch)?.await
    }

    /// Joins the question for a name, or asks it.
    fn question(&self, name: &ServiceName) -> Result<flights::Flight<Arc<Cached>>> {
        let (specs, asked) = (self.clone(), name.clone());
        let shared = &self.shared;
        shared
            .questions
            .join(name.clone(), &shared.spawner, move || async move { specs.ask(&asked).await })
    }

    /// Asks the registries, and learns from what they say.
    async fn ask(&self, name: &ServiceName) -> Result<Arc<Cached>> {
        let asked = Instant::now();
        let least = self.cache().revision(name);
        let answer = self.shared.registries.ask(name, least).await;
        let now = Instant::now();
        match answer {
            Answer::Spec { spec, from } => {
                let mut cache = self.cache();
                cache.reached();
                let cached = cache.answered(*spec, from, asked, now);
                drop(cache);
                self.shared.changed.notify_one();
                Ok(cached)
            }
            Answer::Denied { silent } => {
                let mut cache = self.cache();
                cache.reached();
                let kept = cache.denied(name, &silent, asked, now);
                drop(cache);
                self.shared.changed.notify_one();
                kept.ok_or_else(|| not_found(name))
            }
            Answer::Silence => self.ask_others(name).await,
        }
    }

    /// No registry can be reached: what this node knows, or else what others do.
    async fn ask_others(&self, name: &ServiceName) -> Result<Arc<Cached>> {
        {
            let (mut cache, now) = (self.cache(), Instant::now());
            cache.unreached(now);
            if let Some(known) = cache.stale(name) {
                return Ok(known);
            }
            if cache.is_denied(name, now) {
                return Err(unreachable(name));
            }
        }
        let told = self.shared.hearsay.ask(name).await;
        let mut cache = self.cache();
        if let Some(known) = cache.stale(name) {
            // A registry has come back meanwhile.
            return Ok(known);
        }
        let (spec, from) = told.ok_or_else(|| unreachable(name))?;
        tracing::info!(%name, revision = spec.revision, from = from.short(), "heard of");
        Ok(cache.heard(spec, from))
    }

    /// What is known; held for a few instructions, never across an await.
    fn cache(&self) -> MutexGuard<'_, Cache> {
        // Nothing panics while holding it, and after a panic in a test it is whole.
        self.shared.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn not_found(name: &ServiceName) -> Error {
    Error::new(Kind::NotFound, format!("there is no service `{name}`"))
}

fn unreachable(name: &ServiceName) -> Error {
    let what = format!("no registry can be reached and `{name}` is not cached");
    Error::new(Kind::Unavailable, what).retry_after(RETRY_AFTER)
}
