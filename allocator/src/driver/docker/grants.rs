//! What the operator of this machine allows containers beyond what every one may.

use std::collections::BTreeSet;

use lca::{Capability, Error, Image, Kind, Result};

use crate::driver::Container;

/// See the module. By default nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// Containers that ask for it have the network of the machine.
    pub host_network: bool,
    /// Containers that ask for them keep these capabilities.
    pub capabilities: BTreeSet<Capability>,
}

impl Grants {
    /// Whether containers of this image may be made here.
    ///
    /// # Errors
    /// [`Kind::NotHere`] naming what is not allowed; another allocator may allow it.
    pub(super) fn allow(&self, image: &Image) -> Result<()> {
        self.check_all(image.host_network, &image.capabilities)
    }

    /// The same for a container that is about to be made.
    ///
    /// # Errors
    /// As [`allow`](Self::allow).
    pub(super) fn check(&self, container: &Container) -> Result<()> {
        self.check_all(container.host_network, &container.capabilities)
    }

    fn check_all(&self, host_network: bool, capabilities: &BTreeSet<Capability>) -> Result<()> {
        if host_network && !self.host_network {
            let what = "this allocator does not allow containers the network of its machine";
            return Err(Error::new(Kind::NotHere, what).hint("allocator --allow-host-network"));
        }
        let missing: Vec<_> =
            capabilities.difference(&self.capabilities).map(ToString::to_string).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let what = format!("this allocator does not allow containers {}", missing.join(", "));
        let hint = format!("allocator --allow-capability {}", missing[0]);
        Err(Error::new(Kind::NotHere, what).hint(hint))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_allowed_is_named_with_the_flag_that_would() {
        let wants = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect();
        let grants = Grants { host_network: false, capabilities: wants(&["KILL"]) };
        grants.check_all(false, &wants(&["KILL"])).unwrap();
        let error = grants.check_all(false, &wants(&["KILL", "SYS_ADMIN"])).unwrap_err();
        assert_eq!(error.kind(), Kind::NotHere);
        assert!(error.public().ends_with("containers SYS_ADMIN"), "{error}");
        let error = grants.check_all(true, &wants(&[])).unwrap_err();
        assert_eq!(error.hint_text(), Some("allocator --allow-host-network"));
        Grants { host_network: true, ..grants }.check_all(true, &wants(&[])).unwrap();
    }
}
