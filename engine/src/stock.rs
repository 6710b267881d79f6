//! The images of one allocator: fetched when they are needed, kept warm afterwards, and
//! removed, the least recently used first, when they take more of the disk than they may.
//!
//! Only what this allocator pulled is removed, never what any container on the engine was
//! made from, whoever's it is, and never by force.

use std::{
    collections::HashSet,
    io,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bollard::query_parameters::ListContainersOptionsBuilder;
use lca::{Digest, Error, Kind, Result};
use tokio::sync::Mutex;

use crate::{Engine, Fetched, Image, Keyring, Progress, Wanted, pull::PATIENCE};
use book::Book;
use surplus::surplus;

mod book;
mod surplus;

/// What a pull that nobody heard of again may take; then it is over, however it ended.
const UNHEARD_MS: u64 = 24 * 60 * 60 * 1000;

/// How a stock behaves.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Bytes that what was pulled may take, unpacked, each as if it shared nothing.
    pub room: u64,
    /// Who we are to registries.
    pub keys: Keyring,
    /// A pull without progress for so long is given up.
    pub patience: Duration,
}

impl Terms {
    /// Room where nobody says how much: some forty images of ordinary size.
    pub const DEFAULT_ROOM: u64 = 20 << 30;
}

impl Default for Terms {
    /// [`Self::DEFAULT_ROOM`], a minute's patience, and nobody to every registry.
    fn default() -> Self {
        Self { room: Self::DEFAULT_ROOM, keys: Keyring::none(), patience: PATIENCE }
    }
}

/// See the module. A handle: clones are the same stock.
#[derive(Clone, Debug)]
pub struct Stock {
    terms: Arc<Terms>,
    book: Arc<Mutex<Book>>,
    /// One at a time tidies.
    tidying: Arc<Mutex<()>>,
}

impl Stock {
    /// What `folder`, which is there, says was pulled before; `images.json` in it is this
    /// stock's own. Blocks on a small file.
    pub fn open(folder: &Path, terms: Terms) -> Self {
        let book = Book::open(folder.join("images.json"));
        let (book, tidying) = (Arc::new(Mutex::new(book)), Arc::default());
        Self { terms: Arc::new(terms), book, tidying }
    }

    /// Has an image where containers can be made of it, and in use from now on as far as
    /// removing goes: make the container within minutes. `told` hears how far its pull is.
    /// Dropping the future ends the pull.
    ///
    /// # Errors
    /// As [`Engine::fetch`]; [`Kind::Internal`] if it cannot be written down.
    pub async fn have(
        &self,
        engine: &Engine,
        wanted: &Wanted,
        told: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Image> {
        let name = wanted.name();
        let Terms { keys, patience, .. } = &*self.terms;
        let is_here = engine.image(wanted).await?.is_some();
        let pulls = !is_here && matches!(wanted, Wanted::Pinned(_));
        if pulls {
            self.begin(&name).await?;
        }
        let fetched = engine.fetch(wanted, keys, *patience, told).await;
        match fetched {
            Ok(Fetched { image, pulled }) => {
                self.used(&name, image.id, image.size, now_ms()).await?;
                if pulled {
                    tracing::info!(image = name, bytes = image.size, "image pulled");
                    self.tidy_over(engine).await;
                }
                Ok(image)
            }
            Err(error) => {
                // Nothing of it is here, unless the engine broke off just at its end.
                if pulls && error.kind() != Kind::Unavailable {
                    self.forget(&name).await?;
                }
                Err(error)
            }
        }
    }

    /// Tidies, and says in the log what did not work: whoever wanted an image has it.
    pub async fn tidy_over(&self, engine: &Engine) {
        match self.tidy(engine).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "images removed, to make room"),
            Err(error) => tracing::warn!(error = error.chain(), "images could not be tidied"),
        }
    }

    /// Brings what is kept down to its room, as far as may be, and says how many images
    /// went. What somebody else has removed is forgotten. At once if another is at it.
    ///
    /// # Errors
    /// If the engine does not answer, or what has changed cannot be written down.
    pub async fn tidy(&self, engine: &Engine) -> Result<usize> {
        let Ok(_turn) = self.tidying.try_lock() else { return Ok(0) };
        self.settle(engine).await?;
        let in_use = in_use(engine).await?;
        let (kept, now) = (self.book.lock().await.kept(), now_ms());
        for kept in kept.iter().filter(|kept| in_use.contains(&kept.id)) {
            self.used(&kept.name, kept.id, kept.size, now).await?;
        }
        let gone = surplus(&kept, &in_use, self.terms.room, now);
        let mut removed = 0;
        for id in gone {
            let mut all = true;
            for kept in kept.iter().filter(|kept| kept.id == id) {
                let Ok(image) = kept.name.parse() else { continue };
                match engine.remove_image(&Wanted::Pinned(image)).await {
                    Ok(()) => self.forget(&kept.name).await?,
                    // A container was made of it a moment ago: it is in use.
                    Err(error) if error.kind() == Kind::Conflict => all = false,
                    Err(error) => return Err(error),
                }
            }
            removed += usize::from(all);
        }
        Ok(removed)
    }

    /// Finds out what became of what the book says: pulls that were cut off, and images that
    /// somebody else removed.
    async fn settle(&self, engine: &Engine) -> Result<()> {
        let (unsettled, kept) = {
            let book = self.book.lock().await;
            (book.unsettled(), book.kept())
        };
        for (name, since) in unsettled {
            let Ok(image) = name.parse() else { continue };
            match engine.image(&Wanted::Pinned(image)).await? {
                Some(found) => self.used(&name, found.id, found.size, since).await?,
                None if now_ms().saturating_sub(since) > UNHEARD_MS => {
                    self.forget(&name).await?;
                }
                None => {} // somebody may be pulling it
            }
        }
        for kept in kept {
            let Ok(image) = kept.name.parse() else { continue };
            if engine.image(&Wanted::Pinned(image)).await?.is_none() {
                self.forget(&kept.name).await?;
            }
        }
        Ok(())
    }

    /// Changes the book, off the runtime, and to its end once it has begun.
    async fn note(
        &self,
        change: impl FnOnce(&mut Book) -> io::Result<()> + Send + 'static,
    ) -> Result<()> {
        let mut book = self.book.clone().lock_owned().await;
        let noted = tokio::task::spawn_blocking(move || change(&mut book)).await;
        noted.map_err(io::Error::other).flatten().map_err(|error| {
            let what = format!("cannot write down which images were pulled: {error}");
            Error::new(Kind::Internal, what).because(error)
        })
    }

    async fn begin(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        self.note(move |book| book.begin(&name, now_ms())).await
    }

    async fn used(&self, name: &str, id: Digest, size: u64, now_ms: u64) -> Result<()> {
        let name = name.to_owned();
        self.note(move |book| book.used(&name, id, size, now_ms)).await
    }

    async fn forget(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        self.note(move |book| book.forget(&name)).await
    }
}

/// The images that containers were made of, whoever's they are and whether or not they run.
async fn in_use(engine: &Engine) -> Result<HashSet<Digest>> {
    let all = ListContainersOptionsBuilder::new().all(true).build();
    let listed = engine.docker().list_containers(Some(all));
    let listed = engine.call("list what containers were made of", listed).await?;
    Ok(listed.into_iter().filter_map(|one| one.image_id?.parse().ok()).collect())
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as u64
}
