//! Whether an instance that takes requests still answers, where its spec wants it asked.
//!
//! A program can hang while its port accepts and its process lives; only an answer says
//! that it does not. One question may fall into a pause of the machine, so several in a row
//! decide, and a question that could not be asked decides nothing.

use std::net::SocketAddr;

use lca::{Liveness, Protocol};
use tokio::time::sleep;

use crate::readiness::{Obstacle, Probe};

/// Resolves with the reason once it hangs; never, if it is not to be asked.
pub(super) async fn hangs(
    liveness: Option<Liveness>,
    address: SocketAddr,
    protocol: Protocol,
) -> String {
    let Some(liveness) = liveness else { return std::future::pending().await };
    let Liveness { http_path, interval, timeout, failures } = liveness;
    let probe = Probe::new(address, protocol, Some(http_path)).answered_within(timeout);
    let mut in_vain = 0;
    loop {
        sleep(interval).await;
        let looked = probe.look().await;
        in_vain = after(in_vain, looked.as_ref().copied());
        if let Err(obstacle) = looked
            && in_vain >= failures
        {
            return format!("hangs: {obstacle}, {in_vain} times in a row");
        }
    }
}

/// Questions in a row that were in vain, after one more.
fn after(in_vain: u32, looked: Result<(), &Obstacle>) -> u32 {
    match looked {
        Ok(()) => 0,
        Err(Obstacle::Program(_)) => in_vain.saturating_add(1),
        Err(Obstacle::NoDescriptor) => in_vain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_begins_anew_and_what_could_not_be_asked_counts_nothing() {
        let program = Obstacle::Program("GET / answers 503".into());
        let looks = [
            (Err(&program), 1),
            (Err(&program), 2),
            (Err(&Obstacle::NoDescriptor), 2),
            (Ok(()), 0),
            (Err(&program), 1),
        ];
        let mut in_vain = 0;
        for (looked, expected) in looks {
            in_vain = after(in_vain, looked);
            assert_eq!(in_vain, expected);
        }
    }
}
