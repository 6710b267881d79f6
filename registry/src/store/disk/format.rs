//! What is inside `registry.redb`, and what is said when it is something else.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | `format` | [`FORMAT`] |
//! | `meta` | `floor` | above which revisions of new names begin |
//! | `specs` | name | `lca.v1.ServiceSpec`, encoded |
//! | `gone` | deleted name | the last revision it had |

use std::{
    io,
    panic::{self, AssertUnwindSafe},
    path::Path,
};

use lca::{Error, Kind, Result, ServiceName, Spec, api::proto};
use prost::Message as _;
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, StorageError,
    TableDefinition,
};

use crate::{
    store::Change,
    table::{Step, Table},
};

/// Version of all this. A change that older programs would misread raises it.
const FORMAT: u64 = 1;
/// Everything is read once and then kept by us; redb's own default is 1 GiB.
const CACHE: usize = 1 << 20;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const SPECS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("specs");
const GONE: TableDefinition<'_, &str, u64> = TableDefinition::new("gone");

fn builder() -> Builder {
    let mut builder = Builder::new();
    // Otherwise a damaged file is trusted after a clean stop, and may panic later.
    builder.set_cache_size(CACHE).set_check_integrity_on_open(true);
    builder
}

/// Makes an empty store.
pub(super) fn create(path: &Path) -> Result<()> {
    let made = || -> Result<(), redb::Error> {
        let database = builder().create(path)?;
        let transaction = database.begin_write()?;
        transaction.open_table(META)?.insert("format", FORMAT)?;
        transaction.open_table(SPECS)?;
        transaction.open_table(GONE)?;
        transaction.commit()?;
        Ok(database.close()?)
    };
    made().map_err(|error| {
        let what = format!("cannot create {}: {error}", path.display());
        Error::new(Kind::FailedPrecondition, what).because(error)
    })
}

/// Opens and checks a store that exists, and reads all of it.
pub(super) fn open(path: &Path) -> Result<(Database, Table)> {
    let opened = panic::catch_unwind(AssertUnwindSafe(|| {
        let database = open_checked(path)?;
        let table = read(&database, path)?;
        Ok((database, table))
    }));
    // With debug assertions redb panics at damage that it otherwise reports. Nothing of
    // what it held is used afterwards.
    opened.unwrap_or_else(|_| Err(unusable(path, "is damaged: it contradicts itself")))
}

/// What is wrong if there is no file where one was.
pub(super) fn missing(path: &Path, begun: &Path) -> Error {
    let (file, begun) = (path.display(), begun.display());
    let what = format!("{file} is missing, and {begun} says that it was there before");
    Error::new(Kind::FailedPrecondition, what).hint(format!(
        "restore it from a backup, or delete {begun} to begin with an empty registry"
    ))
}

fn open_checked(path: &Path) -> Result<Database> {
    let file = path.display();
    let metadata = std::fs::metadata(path).map_err(|error| cannot(path, "be read", &error))?;
    if metadata.len() == 0 {
        // redb would make a new store of it, and everything would seem deleted.
        return Err(unusable(path, "is empty"));
    }
    builder().open(path).map_err(|error| match &error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            Error::new(Kind::Conflict, format!("another process has {file} open"))
                .hint("stop the other registry, or give this one a --data-dir of its own")
                .because(error)
        }
        DatabaseError::UpgradeRequired(version) => {
            newer_or_older(path, format!("has redb format {version}")).because(error)
        }
        DatabaseError::Storage(StorageError::Io(io)) if io.raw_os_error().is_some() => {
            cannot(path, "be opened for writing", io)
        }
        _ => unusable(path, format!("is damaged: {error}")).because(error),
    })
}

fn read(database: &Database, path: &Path) -> Result<Table> {
    let format = format_of(database)
        .map_err(|error| unusable(path, format!("is damaged: {error}")).because(error))?;
    match format {
        Some(FORMAT) => {}
        Some(other) => return Err(newer_or_older(path, format!("has format {other}"))),
        None => return Err(unusable(path, "is not a registry's store")),
    }
    let (specs, gone, floor) = everything(database)
        .map_err(|error| unusable(path, format!("is damaged: {error}")).because(error))?;
    let damaged = |name: &str| unusable(path, format!("is damaged: what it says of `{name}`"));
    let specs = specs.into_iter().map(|(name, bytes)| {
        let message = proto::ServiceSpec::decode(&*bytes).map_err(|_| damaged(&name))?;
        let spec = Spec::try_from(message).map_err(|error| damaged(&name).because(error))?;
        if spec.name.as_str() == name { Ok(spec) } else { Err(damaged(&name)) }
    });
    let specs: Vec<Spec> = specs.collect::<Result<_>>()?;
    let gone = gone.into_iter().map(|(name, revision)| {
        let parsed: ServiceName = name.parse().map_err(|_| damaged(&name))?;
        Ok((parsed, revision))
    });
    let gone: Vec<_> = gone.collect::<Result<_>>()?;
    Ok(Table::new(specs, gone, floor))
}

/// Writes one step; it is on disk when this returns.
pub(super) fn write(database: &Database, step: &Step) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut specs = transaction.open_table(SPECS)?;
        let mut gone = transaction.open_table(GONE)?;
        if let Some(floor) = step.floor {
            transaction.open_table(META)?.insert("floor", floor)?;
            gone.retain(|_, _| false)?;
        }
        match &step.change {
            Change::Put(spec) => {
                let bytes = proto::ServiceSpec::from(&**spec).encode_to_vec();
                specs.insert(spec.name.as_str(), &*bytes)?;
                gone.remove(spec.name.as_str())?;
            }
            Change::Deleted { name, revision } => {
                specs.remove(name.as_str())?;
                gone.insert(name.as_str(), revision)?;
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

fn format_of(database: &Database) -> Result<Option<u64>, redb::Error> {
    let transaction = database.begin_read()?;
    let meta = match transaction.open_table(META) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        meta => meta?,
    };
    Ok(meta.get("format")?.map(|value| value.value()))
}

type Raw = (Vec<(String, Vec<u8>)>, Vec<(String, u64)>, u64);

fn everything(database: &Database) -> Result<Raw, redb::Error> {
    let transaction = database.begin_read()?;
    let mut specs = Vec::new();
    for entry in transaction.open_table(SPECS)?.iter()? {
        let (name, bytes) = entry?;
        specs.push((name.value().to_owned(), bytes.value().to_owned()));
    }
    let mut gone = Vec::new();
    for entry in transaction.open_table(GONE)?.iter()? {
        let (name, revision) = entry?;
        gone.push((name.value().to_owned(), revision.value()));
    }
    let floor = transaction.open_table(META)?.get("floor")?.map_or(0, |value| value.value());
    Ok((specs, gone, floor))
}

/// The system does not let us, whatever the file is. Its error becomes the cause.
fn cannot(path: &Path, what: &str, error: &io::Error) -> Error {
    let kind = if super::is_full(error) { Kind::NoCapacity } else { Kind::FailedPrecondition };
    let copy = error.raw_os_error().map_or(error.kind().into(), io::Error::from_raw_os_error);
    Error::new(kind, format!("{} cannot {what}: {error}", path.display())).because(copy)
}

fn unusable(path: &Path, reason: impl std::fmt::Display) -> Error {
    Error::new(Kind::FailedPrecondition, format!("{} {reason}", path.display()))
        .hint(format!("restore it from a backup, or {}", to_begin_anew(path)))
}

fn newer_or_older(path: &Path, reason: impl std::fmt::Display) -> Error {
    let what = format!("{} {reason}, this program reads {FORMAT}", path.display());
    Error::new(Kind::FailedPrecondition, what)
        .hint(format!("run the version that wrote it, or {}", to_begin_anew(path)))
}

fn to_begin_anew(path: &Path) -> String {
    let begun = super::begun(path);
    let begun = begun.file_name().unwrap_or_default().display();
    format!("move it and {begun} away to begin with an empty registry")
}
