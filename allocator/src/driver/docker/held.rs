//! One instance of the driver, as far as it has come.

use std::{
    net::SocketAddr,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use lca::{Allowance, InstanceId};
use tokio::sync::watch;

use super::{found::Found, labels};
use crate::driver::Exit;

/// How far an instance has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// Its container is being made: nobody else knows of it.
    Starting,
    Running,
    Ended(Exit),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) id: InstanceId,
    pub(super) allowance: Allowance,
    address: OnceLock<SocketAddr>,
    /// Somebody wants it to end: whenever the engine answers, it is to.
    unwanted: AtomicBool,
    life: watch::Sender<Life>,
}

impl Held {
    /// One whose container is being made.
    pub(super) fn starting(id: InstanceId, allowance: Allowance) -> Self {
        let life = watch::Sender::new(Life::Starting);
        Self { id, allowance, address: OnceLock::new(), unwanted: AtomicBool::new(false), life }
    }

    /// What its container is called.
    pub(super) fn container(&self) -> String {
        labels::name(self.id)
    }

    /// The container is there, as it was `found`, and listens at `address` if it has one of
    /// its own.
    pub(super) fn is_there(&self, found: &Found, address: Option<SocketAddr>) {
        if let Some(address) = address {
            let _was_told_before = self.address.set(address);
        }
        match found.exit {
            Some(exit) => self.end(exit),
            None => {
                self.life.send_if_modified(|life| {
                    let first = *life == Life::Starting;
                    if first {
                        *life = Life::Running;
                    }
                    first
                });
            }
        }
    }

    /// It has ended; what is said first, counts.
    pub(super) fn end(&self, exit: Exit) {
        self.life.send_if_modified(|life| {
            let first = !matches!(life, Life::Ended(_));
            if first {
                *life = Life::Ended(exit);
            }
            first
        });
    }

    /// Resolves when it has ended.
    pub(super) async fn ended(&self) -> Exit {
        let mut life = self.life.subscribe();
        match life.wait_for(|life| matches!(life, Life::Ended(_))).await.as_deref() {
            Ok(Life::Ended(exit)) => *exit,
            // Cannot be: the sender is ours.
            Ok(_) | Err(_) => Exit::Unwatched,
        }
    }

    pub(super) fn is_starting(&self) -> bool {
        *self.life.borrow() == Life::Starting
    }

    pub(super) fn is_running(&self) -> bool {
        *self.life.borrow() == Life::Running
    }

    /// How it ended, if it has.
    pub(super) fn exit(&self) -> Option<Exit> {
        match *self.life.borrow() {
            Life::Ended(exit) => Some(exit),
            Life::Starting | Life::Running => None,
        }
    }

    /// Where it takes requests, if it has a network of its own.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.address.get().copied()
    }

    /// Notes that it is to end.
    pub(super) fn unwant(&self) {
        self.unwanted.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_unwanted(&self) -> bool {
        self.unwanted.load(Ordering::Relaxed)
    }
}
