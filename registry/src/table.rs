//! Which change of the specs is allowed, and what it makes of them: decided here without
//! touching anything, carried out by the stores.
//!
//! The invariant: the revision of a name only ever grows, also when the name is deleted
//! and put again, so that a cache that holds the greater revision holds the later spec.
//! For this a deleted name leaves its last revision behind. Those are bounded too: when
//! there are too many, all are forgotten and [`Table::floor`], above which every new name
//! begins, rises to the greatest of them.

use std::{collections::BTreeMap, sync::Arc};

use lca::{Error, Kind, Result, ServiceName, Spec, api::proto};
use prost::Message as _;

use crate::store::{Change, Put};

/// Most names one registry keeps, so that every node of the network can hold all of them.
pub(crate) const MAX_SERVICES: usize = 10_000;
/// Most bytes all specs take together, as they are sent: every watcher is sent all of
/// them, and a list is one message.
pub(crate) const MAX_BYTES: usize = 32 << 20;
/// Most last revisions of deleted names; some ten bytes each beside the name.
const MAX_GONE: usize = 10_000;

/// All specs of a registry.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Table {
    specs: BTreeMap<ServiceName, Arc<Spec>>,
    /// Last revision of names that were deleted.
    gone: BTreeMap<ServiceName, u64>,
    floor: u64,
    /// Of all specs, encoded.
    bytes: usize,
}

/// A change that is allowed, ready to be written and applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) change: Change,
    /// Raises the floor to this and forgets the revisions of deleted names.
    pub(crate) floor: Option<u64>,
}

impl Table {
    /// Puts together what a store has read.
    pub(crate) fn new(
        specs: impl IntoIterator<Item = Spec>,
        gone: impl IntoIterator<Item = (ServiceName, u64)>,
        floor: u64,
    ) -> Self {
        let mut table = Self { gone: gone.into_iter().collect(), floor, ..Self::default() };
        for spec in specs {
            table.insert(Arc::new(spec));
        }
        table
    }

    pub(crate) fn get(&self, name: &ServiceName) -> Option<Arc<Spec>> {
        self.specs.get(name).cloned()
    }

    /// Every spec, by name.
    pub(crate) fn list(&self) -> Vec<Arc<Spec>> {
        self.specs.values().cloned().collect()
    }

    /// Decides on storing `spec`. The same content as before needs no step: it was put
    /// already, perhaps by this very caller before it lost the answer.
    pub(crate) fn put(&self, spec: &Spec, if_revision: Option<u64>) -> Result<(Put, Option<Step>)> {
        let name = &spec.name;
        let current = self.specs.get(name);
        if let Some(current) = current
            && current.same_content(spec)
        {
            return Ok((Put { spec: current.clone(), changed: false }, None));
        }
        match (current.map(|current| current.revision), if_revision) {
            (None, None | Some(0)) => {}
            (Some(current), Some(wanted)) if current == wanted => {}
            (Some(current), None) => {
                return Err(conflict(format!(
                    "`{name}` exists with another content (revision {current})"
                ))
                .hint(format!("to replace it, name revision {current}")));
            }
            (Some(current), Some(wanted)) => {
                return Err(conflict(format!("`{name}` has revision {current}, not {wanted}")));
            }
            (None, Some(wanted)) => {
                return Err(conflict(format!(
                    "`{name}` has no revision {wanted}: it is not there"
                )));
            }
        }
        let last = current.map(|current| current.revision).or_else(|| self.gone.get(name).copied());
        let revision = last.unwrap_or(0).max(self.floor) + 1;
        let spec = Arc::new(Spec { revision, ..spec.clone() });
        let before = current.map_or(0, |current| encoded_len(current));
        if current.is_none() && self.specs.len() >= MAX_SERVICES {
            return Err(full(format!("the registry holds {MAX_SERVICES} services, its limit")));
        }
        if self.bytes - before + encoded_len(&spec) > MAX_BYTES {
            return Err(full(format!("all specs together would be more than {MAX_BYTES} bytes")));
        }
        let step = Step { change: Change::Put(spec.clone()), floor: None };
        Ok((Put { spec, changed: true }, Some(step)))
    }

    /// Decides on removing `name`.
    pub(crate) fn delete(&self, name: &ServiceName, if_revision: Option<u64>) -> Result<Step> {
        let Some(current) = self.specs.get(name) else {
            return Err(not_found(name));
        };
        let revision = current.revision;
        if let Some(wanted) = if_revision
            && wanted != revision
        {
            return Err(conflict(format!("`{name}` has revision {revision}, not {wanted}")));
        }
        let floor = (self.gone.len() >= MAX_GONE)
            .then(|| self.gone.values().copied().fold(self.floor, u64::max));
        Ok(Step { change: Change::Deleted { name: name.clone(), revision }, floor })
    }

    pub(crate) fn apply(&mut self, step: &Step) {
        if let Some(floor) = step.floor {
            self.floor = floor;
            self.gone.clear();
        }
        match &step.change {
            Change::Put(spec) => {
                self.gone.remove(&spec.name);
                self.insert(spec.clone());
            }
            Change::Deleted { name, revision } => {
                self.gone.insert(name.clone(), *revision);
                let removed = self.specs.remove(name);
                self.bytes -= removed.map_or(0, |spec| encoded_len(&spec));
            }
        }
    }

    /// What leads from this table to `other`.
    pub(crate) fn changes_to(&self, other: &Self) -> Vec<Change> {
        let put = other.specs.iter().filter(|(name, spec)| self.specs.get(*name) != Some(*spec));
        let put = put.map(|(_, spec)| Change::Put(spec.clone()));
        let deleted = self.specs.values().filter(|spec| !other.specs.contains_key(&spec.name));
        let deleted = deleted
            .map(|spec| Change::Deleted { name: spec.name.clone(), revision: spec.revision });
        deleted.chain(put).collect()
    }

    fn insert(&mut self, spec: Arc<Spec>) {
        self.bytes += encoded_len(&spec);
        let replaced = self.specs.insert(spec.name.clone(), spec);
        self.bytes -= replaced.map_or(0, |spec| encoded_len(&spec));
    }
}

fn encoded_len(spec: &Spec) -> usize {
    proto::ServiceSpec::from(spec).encoded_len()
}

pub(crate) fn not_found(name: &ServiceName) -> Error {
    Error::new(Kind::NotFound, format!("there is no service `{name}`"))
}

fn conflict(reason: String) -> Error {
    Error::new(Kind::Conflict, reason)
}

fn full(reason: String) -> Error {
    Error::new(Kind::NoCapacity, reason)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::suite::spec;

    fn put(table: &mut Table, spec: &Spec, if_revision: Option<u64>) -> Result<u64> {
        let (put, step) = table.put(spec, if_revision)?;
        step.into_iter().for_each(|step| table.apply(&step));
        assert_eq!(table.get(&spec.name), Some(put.spec.clone()));
        Ok(put.spec.revision)
    }

    fn delete(table: &mut Table, name: &str) {
        let step = table.delete(&name.parse().unwrap(), None).unwrap();
        table.apply(&step);
    }

    #[test]
    fn forgetting_deleted_names_never_lets_a_revision_fall() {
        let mut table = Table::default();
        put(&mut table, &spec("a", "1"), None).unwrap();
        assert_eq!(put(&mut table, &spec("a", "2"), Some(1)).unwrap(), 2);
        delete(&mut table, "a");
        for n in 0..=MAX_GONE {
            let name = format!("n{n}");
            put(&mut table, &spec(&name, ""), None).unwrap();
            delete(&mut table, &name);
        }
        assert!(table.gone.len() <= MAX_GONE, "what is kept of deleted names is bounded");
        assert_eq!(put(&mut table, &spec("a", "3"), None).unwrap(), 3);
    }

    #[test]
    fn more_services_than_the_limit_are_refused_and_the_rest_can_still_change() {
        let mut table = Table::default();
        for n in 0..MAX_SERVICES {
            put(&mut table, &spec(&format!("n{n}"), ""), None).unwrap();
        }
        let error = table.put(&spec("one-more", ""), None).unwrap_err();
        assert_eq!(error.kind(), Kind::NoCapacity);
        assert_eq!(put(&mut table, &spec("n0", "changed"), Some(1)).unwrap(), 2);
    }

    #[test]
    fn the_bytes_of_all_specs_are_bounded() {
        let mut table = Table::default();
        let large = "x".repeat(60 << 10);
        let refused = (0..MAX_SERVICES)
            .find_map(|n| put(&mut table, &spec(&format!("n{n}"), &large), None).err())
            .expect("the limit is reached");
        assert_eq!(refused.kind(), Kind::NoCapacity);
        assert!(table.bytes <= MAX_BYTES);
        delete(&mut table, "n0");
        put(&mut table, &spec("n0", &large), None).unwrap();
    }

    proptest! {
        #[test]
        fn revisions_grow_and_bytes_are_counted_right(
            steps in proptest::collection::vec((0u8..3, 0u8..4, any::<bool>()), 0..60)
        ) {
            let mut table = Table::default();
            let mut last = BTreeMap::new();
            for (name, content, remove) in steps {
                let name = format!("n{name}");
                let before = table.get(&name.parse().unwrap());
                if remove {
                    if before.is_some() { delete(&mut table, &name); }
                    continue;
                }
                let next = spec(&name, &content.to_string());
                let revision =
                    put(&mut table, &next, before.as_ref().map(|spec| spec.revision)).unwrap();
                let seen = last.insert(name, revision).unwrap_or(0);
                if before.is_some_and(|before| before.same_content(&next)) {
                    prop_assert_eq!(revision, seen);
                } else {
                    prop_assert_eq!(revision, seen + 1);
                }
            }
            let bytes: usize = table.list().iter().map(|spec| encoded_len(spec)).sum();
            prop_assert_eq!(table.bytes, bytes);
        }
    }
}
