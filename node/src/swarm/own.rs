//! What this node says about itself, always signed and ready to be handed out.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use lca::endpoint::{Endpoint, Role};

use crate::{identity::Identity, record};

/// This node's endpoint, as handles read it. Cheap to clone; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct OwnEndpoint(Arc<Mutex<Arc<Endpoint>>>);

impl OwnEndpoint {
    pub(crate) fn get(&self) -> Arc<Endpoint> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, endpoint: Endpoint) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(endpoint);
    }
}

/// Signs what the node says. Every record it makes is later than all before.
#[derive(Debug)]
pub(crate) struct Own {
    identity: Identity,
    shared: OwnEndpoint,
    signed: Option<Vec<u8>>,
}

impl Own {
    /// Says nothing until it knows where the mesh listener can be reached.
    pub(crate) fn new(identity: Identity, roles: Vec<Role>, boot: u64, ttl: Duration) -> Self {
        let endpoint = Endpoint {
            peer: identity.peer_id(),
            roles,
            mesh: Vec::new(),
            boot,
            sequence: 0,
            ttl,
            version: lca::VERSION.to_owned(),
        };
        let shared = OwnEndpoint(Arc::new(Mutex::new(Arc::new(endpoint))));
        Self { identity, shared, signed: None }
    }

    /// For handles.
    pub(crate) fn shared(&self) -> OwnEndpoint {
        self.shared.clone()
    }

    /// The signed record, if there is something to say.
    pub(crate) fn signed(&self) -> Option<&[u8]> {
        self.signed.as_deref()
    }

    /// The mesh listener can now be reached here. True if that is news.
    pub(crate) fn moved(&mut self, mesh: Vec<SocketAddr>) -> bool {
        let endpoint = self.shared.get();
        if endpoint.mesh == mesh {
            return false;
        }
        self.shared.set(Endpoint { mesh, ..(*endpoint).clone() });
        self.renew();
        true
    }

    /// Says the same again, later: whoever has the last record has an older one now.
    pub(crate) fn renew(&mut self) {
        let endpoint = self.shared.get();
        let endpoint = Endpoint { sequence: endpoint.sequence + 1, ..(*endpoint).clone() };
        self.signed = None;
        if !endpoint.mesh.is_empty() {
            match record::sign(&self.identity, &endpoint) {
                Ok(signed) => self.signed = Some(signed),
                Err(error) => {
                    tracing::error!(error = error.chain(), "this node cannot say where it is");
                }
            }
        }
        self.shared.set(endpoint);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_is_later_than_the_one_before() {
        let identity = Identity::ephemeral();
        let peer = identity.peer_id();
        let mut own = Own::new(identity, vec![Role::Registry], 7, Duration::from_secs(600));
        assert!(own.signed().is_none(), "there is nothing to say yet");
        assert!(own.moved(vec![([127, 0, 0, 1], 1).into()]));
        let first = record::verify(peer, own.signed().unwrap()).unwrap();
        assert!(!own.moved(first.mesh.clone()), "it is where it was");
        own.renew();
        let second = record::verify(peer, own.signed().unwrap()).unwrap();
        assert!(second.supersedes(&first));
        assert_eq!(*own.shared().get(), second);
    }
}
