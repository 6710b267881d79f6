//! When an instance that nobody uses is closed: in one step with letting requests in, so that
//! none is lost to it.

use std::time::Duration;

use tokio::time::sleep;

use super::Owner;
use crate::outside::Door;

/// How often one that is kept though nobody uses it looks whether it still is.
const KEPT_AGAIN: Duration = Duration::from_secs(1);
/// How long before its idle time-out an instance is withdrawn: who has just been told of it
/// asks it within two seconds, the deadline of a manager's probe.
const FAREWELL: Duration = Duration::from_secs(2);

impl Owner {
    /// Resolves when it has been idle for its time-out and is closed for it. A while before
    /// it is withdrawn, so that nobody is sent there who did not know it; whoever comes all
    /// the same is served, and brings it back.
    pub(super) async fn idle(&mut self, door: &dyn Door) {
        let after = self.entry.spec.idle_timeout;
        let quiet = after - FAREWELL.min(after / 4);
        loop {
            door.idle_for(quiet).await;
            if self.supervisor.is_kept(&self.entry) {
                sleep(KEPT_AGAIN).await;
                continue;
            }
            self.withdraw(true);
            let used = tokio::select! {
                biased;
                () = door.used_within(quiet) => true,
                () = door.idle_for(after) => !self.close_if_idle(door, after),
            };
            if !used {
                return;
            }
            self.withdraw(false);
        }
    }

    fn withdraw(&mut self, withdrawn: bool) {
        self.withdrawn = withdrawn;
        self.publish();
    }

    /// Closes it to requests, unless one came or somebody was sent here: one step for
    /// those requests, and for those who ask for an instance.
    fn close_if_idle(&mut self, door: &dyn Door, after: Duration) -> bool {
        let supervisor = self.supervisor.clone();
        let _nobody_joins = supervisor.lock();
        let closed = door.drain_if_idle(after);
        if closed {
            self.reason = format!("idle for {after:?}");
            self.publish();
        }
        closed
    }
}
