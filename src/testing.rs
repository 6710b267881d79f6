//! How tests wait, in every crate: for something to become true, never for time to pass;
//! and how they read what was logged.
//!
//! Only tests and the suites call this. A wait that is over too soon makes a busy machine
//! look like a defect, so there is one patience for all.

use std::{
    cell::RefCell,
    fmt, io,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use tokio::time::{sleep, timeout};
use tracing_subscriber::{
    Layer as _, Registry,
    filter::{LevelFilter, dynamic_filter_fn},
    layer::SubscriberExt as _,
};

/// Far above what anything awaited takes: unoptimised handshakes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks: short beside what is awaited, and no busy loop.
const PAUSE: Duration = Duration::from_millis(5);

/// What one look brings: whether what is awaited is there, and if not, what is.
pub trait Look {
    /// What is awaited.
    type Found;

    /// What was awaited, or what was seen in its place.
    ///
    /// # Errors
    /// What was seen, for the message of a test that fails.
    fn found(self) -> Result<Self::Found, String>;
}

impl Look for bool {
    type Found = ();

    fn found(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("that it is not so".into()) }
    }
}

impl<T> Look for Option<T> {
    type Found = T;

    fn found(self) -> Result<T, String> {
        self.ok_or_else(|| "nothing".into())
    }
}

impl<T, E: fmt::Debug> Look for Result<T, E> {
    type Found = T;

    fn found(self) -> Result<T, String> {
        self.map_err(|seen| format!("{seen:?}"))
    }
}

/// Looks again and again until what is awaited is there, and returns it.
///
/// # Panics
/// After a minute, saying what was awaited and what was seen last.
pub async fn eventually<L: Look>(what: &str, mut look: impl AsyncFnMut() -> L) -> L::Found {
    let mut last = "no look come to its end".to_owned();
    let looking = async {
        loop {
            match look().await.found() {
                Ok(found) => return found,
                Err(seen) => last = seen,
            }
            sleep(PAUSE).await;
        }
    };
    let found = timeout(PATIENCE, looking).await;
    found.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for {what}; last saw {last}"))
}

/// What this thread logs while it lives, in full detail.
///
/// One subscriber serves the whole process and looks up the thread's log for each event.
/// A subscriber per capture would lose lines: `tracing` remembers once for all threads
/// whether anybody listens at a place in the code, and asks only the thread that comes by
/// first, which may be another test's.
#[derive(Debug)]
pub struct Log {
    written: Written,
}

#[derive(Clone, Debug, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

thread_local! {
    static CAPTURED: RefCell<Option<Written>> = const { RefCell::new(None) };
}

impl Log {
    /// Takes down what is logged from now on by the tasks of this thread.
    ///
    /// # Panics
    /// When the process logs elsewhere already.
    pub fn capture() -> Self {
        static LISTENING: OnceLock<()> = OnceLock::new();
        LISTENING.get_or_init(listen);
        // What was come by before anybody listened is asked again.
        tracing::callsite::rebuild_interest_cache();
        let written = Written::default();
        CAPTURED.set(Some(written.clone()));
        Self { written }
    }

    /// The lines so far.
    pub fn lines(&self) -> Vec<String> {
        let written = self.written.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&written).lines().map(str::to_owned).collect()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        CAPTURED.set(None);
    }
}

fn listen() {
    let captured = || CAPTURED.with_borrow(Option::clone).unwrap_or_default();
    let here = dynamic_filter_fn(|_, _| CAPTURED.with_borrow(Option::is_some));
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(captured);
    let subscriber = Registry::default().with(lines.with_filter(here)).with(LevelFilter::DEBUG);
    tracing::subscriber::set_global_default(subscriber).expect("the only one of a test process");
}

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What `metrics` say of one series, as it stands in a scrape without its value; 0 if it
/// has not begun.
pub fn counted(metrics: &crate::metrics::Metrics, series: &str) -> f64 {
    let text = metrics.text();
    let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value.map_or(0.0, |value| value.parse().expect("a scrape holds numbers"))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_becomes_true_is_returned() {
        let mut looks = 0;
        let third = async || {
            looks += 1;
            (looks == 3).then_some(looks)
        };
        assert_eq!(eventually("the third look", third).await, 3);
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "waited 60s for the end; last saw 7")]
    async fn what_never_does_is_named_with_what_was_seen() {
        eventually("the end", async || Err::<(), _>(7)).await;
    }

    #[test]
    fn a_line_is_taken_down_though_another_thread_came_by_unheard_before() {
        let note = || tracing::info!("a place in the code");
        thread::spawn(note).join().expect("nothing to panic");
        let log = Log::capture();
        thread::spawn(note).join().expect("nothing to panic");
        note();
        assert_eq!(log.lines().len(), 1, "{:?}", log.lines());
        drop(log);
        let next = Log::capture();
        thread::spawn(note).join().expect("nothing to panic");
        note();
        assert_eq!(next.lines().len(), 1, "{:?}", next.lines());
    }
}
