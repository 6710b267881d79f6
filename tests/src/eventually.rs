//! Waiting for something that has to become true within a time that is part of the
//! promise. Without such a promise: [`lca::testing::eventually`].

use std::{fmt, time::Duration};

use tokio::time::{Instant, sleep};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Polls until `check` yields a value.
///
/// # Panics
/// After `promised`, saying what was awaited and what was seen last.
pub async fn eventually_within<T, E: fmt::Debug>(
    promised: Duration,
    what: &str,
    mut check: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let deadline = Instant::now() + promised;
    loop {
        match check().await {
            Ok(value) => return value,
            Err(last) if Instant::now() >= deadline => {
                panic!("waited {promised:?} for {what}; last saw {last:?}")
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}
