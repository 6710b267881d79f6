//! Who this node is: one Ed25519 key, kept in a file that only its owner can read.
//!
//! The file is libp2p's protobuf form of the key, so that other libp2p tools can read
//! it. An absent file is created whole or not at all; a file that somebody else could
//! have read or written is refused, because whoever has the key is this node.

use std::{
    fmt,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use lca::{Error, Kind, PeerId, Result};
use libp2p::identity::{KeyType, Keypair};

/// Longest key file read: the key itself is 68 bytes.
const MAX_FILE: u64 = 4096;

/// The key of a node. Cheap to clone; never prints the key.
#[derive(Clone)]
pub struct Identity {
    keypair: Keypair,
    peer: PeerId,
}

impl Identity {
    /// A new identity that is kept nowhere.
    pub fn ephemeral() -> Self {
        let keypair = Keypair::generate_ed25519();
        let peer = peer_of(&keypair).expect("the key just made is Ed25519");
        Self { keypair, peer }
    }

    /// The identity in the file at `path`; made, with its folder, if there is none.
    ///
    /// # Errors
    /// [`Kind::FailedPrecondition`] with the remedy as a hint if the file is not this
    /// user's own, is open to others, or holds no Ed25519 key.
    pub fn load_or_create(path: &Path) -> Result<Self> {
        match load(path)? {
            Some(identity) => Ok(identity),
            None => create(path),
        }
    }

    /// The identity in the file at `path`; `None` if there is no file. Nothing is made.
    ///
    /// # Errors
    /// As [`load_or_create`](Self::load_or_create).
    pub fn load(path: &Path) -> Result<Option<Self>> {
        load(path)
    }

    /// Who the holder of this key is.
    pub const fn peer_id(&self) -> PeerId {
        self.peer
    }

    /// The key, for libp2p and TLS.
    pub(crate) const fn keypair(&self) -> &Keypair {
        &self.keypair
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.peer).finish()
    }
}

/// Counts a start of the node whose key is at `key`, in the file `key` + `.boot`, and
/// returns the count: greater than every earlier one.
///
/// A count that is lost starts again from the wall clock in seconds, which is beyond
/// any count, so that records of earlier starts stay older.
///
/// # Errors
/// [`Kind::FailedPrecondition`] if the file cannot be written.
pub fn next_boot(key: &Path) -> Result<u64> {
    let path = beside(key, "boot");
    let last = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_secs());
    let next = last.map_or_else(clock, |last| last.saturating_add(1));
    let temporary = beside(key, &format!("boot.{:08x}", rand::random::<u32>()));
    write_new(&temporary, next.to_string().as_bytes())
        .and_then(|()| fs::rename(&temporary, &path))
        .map_err(|error| {
            let _perhaps_never_made = fs::remove_file(&temporary);
            refused(&path, "cannot be written").because(error)
        })?;
    Ok(next)
}

/// This peer as libp2p knows it.
pub(crate) fn to_libp2p(peer: PeerId) -> libp2p::PeerId {
    libp2p::PeerId::from_bytes(&peer.to_bytes()).expect("our ids are valid libp2p ids")
}

/// A peer of libp2p as we know it; `None` if its key is not Ed25519.
pub(crate) fn from_libp2p(peer: &libp2p::PeerId) -> Option<PeerId> {
    PeerId::from_bytes(&peer.to_bytes()).ok()
}

fn peer_of(keypair: &Keypair) -> Option<PeerId> {
    from_libp2p(&keypair.public().to_peer_id())
}

/// The identity in the file; `None` if there is no file.
fn load(path: &Path) -> Result<Option<Identity>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(refused(path, "cannot be read").because(error)),
    };
    // Asked of the open file: between two looks by name it could be another one.
    let about = file.metadata().map_err(|error| refused(path, "cannot be read").because(error))?;
    let show = path.display();
    if !about.is_file() {
        return Err(refused(path, "is not a file").hint("name a file, not its folder"));
    }
    if about.uid() != rustix::process::geteuid().as_raw() {
        return Err(refused(path, "belongs to another user")
            .hint(format!("take it over with `chown`, or use a key file of your own: {show}")));
    }
    if about.mode() & 0o077 != 0 {
        return Err(refused(path, "can be read by others, so the key may be known to them").hint(
            format!("run `chmod 600 {show}` if it never left this machine, else remove it"),
        ));
    }
    if about.len() == 0 {
        return Err(refused(path, "is empty").hint("remove it and a new key is made"));
    }
    let mut bytes = Vec::new();
    let read = file.take(MAX_FILE).read_to_end(&mut bytes);
    read.map_err(|error| refused(path, "cannot be read").because(error))?;
    let no_key = || {
        refused(path, "holds no libp2p Ed25519 private key")
            .hint("RSA and other kinds are not supported; move the file away to have one made")
    };
    let keypair = Keypair::from_protobuf_encoding(&bytes).map_err(|e| no_key().because(e))?;
    if keypair.key_type() != KeyType::Ed25519 {
        return Err(no_key());
    }
    let peer = peer_of(&keypair).ok_or_else(no_key)?;
    Ok(Some(Identity { keypair, peer }))
}

/// Writes the key aside and links it into place, so that of two who do this at once
/// one wins and both use its key.
fn create(path: &Path) -> Result<Identity> {
    let fails = |error: io::Error| {
        refused(path, "cannot be created")
            .because(error)
            .hint("name a file in a folder you may write to, or use an ephemeral key")
    };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(fails)?;
    }
    let identity = Identity::ephemeral();
    let bytes = identity.keypair.to_protobuf_encoding().map_err(|e| fails(io::Error::other(e)))?;
    let temporary = beside(path, &format!("{:08x}", rand::random::<u32>()));
    let linked = write_new(&temporary, &bytes).and_then(|()| fs::hard_link(&temporary, path));
    let _perhaps_never_made = fs::remove_file(&temporary);
    match linked {
        Ok(()) => Ok(identity),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            load(path)?.ok_or_else(|| fails(error))
        }
        Err(error) => Err(fails(error)),
    }
}

/// Writes a file that nobody else can read, and that must not exist.
fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn beside(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(extension);
    name.into()
}

fn refused(path: &Path, why: &str) -> Error {
    Error::new(Kind::FailedPrecondition, format!("the key file {} {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn an_absent_key_is_made_for_its_owner_alone_and_stays() {
        let folder = folder();
        let path = folder.path().join("deep/er/key");
        let made = Identity::load_or_create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(Identity::load_or_create(&path).unwrap().peer_id(), made.peer_id());
        let left = fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(left, 1, "nothing temporary stays");
    }

    #[test]
    fn of_many_who_make_the_same_key_all_get_the_same() {
        let folder = folder();
        let path = folder.path().join("key");
        let peers: Vec<_> = std::thread::scope(|scope| {
            let tries: Vec<_> =
                (0..8).map(|_| scope.spawn(|| Identity::load_or_create(&path))).collect();
            tries.into_iter().map(|one| one.join().unwrap().unwrap()).collect()
        });
        assert!(peers.iter().all(|one| one.peer_id() == peers[0].peer_id()));
    }

    #[test]
    fn a_key_that_is_not_safe_is_refused_with_the_remedy() {
        let folder = folder();
        let path = folder.path().join("key");
        Identity::load_or_create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = Identity::load_or_create(&path).unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        assert!(error.hint_text().unwrap().contains("chmod 600"), "{error:?}");
    }

    #[test]
    fn what_is_no_key_is_refused_and_left_alone() {
        let folder = folder();
        let private = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            write_new(&path, bytes).unwrap();
            path
        };
        for path in [
            private("empty", b""),
            private("junk", b"not a key"),
            private("long", &[8; 10_000]),
            folder.path().to_owned(),
        ] {
            let error = Identity::load_or_create(&path).unwrap_err();
            assert_eq!(error.kind(), Kind::FailedPrecondition);
            assert!(error.hint_text().is_some(), "{error} has no remedy");
            assert!(path.exists());
        }
    }

    #[test]
    fn every_start_counts_on() {
        let folder = folder();
        let key = folder.path().join("key");
        let first = next_boot(&key).unwrap();
        assert!(first > 1_600_000_000, "a lost count is beyond every count");
        assert_eq!(next_boot(&key).unwrap(), first + 1);
        fs::write(beside(&key, "boot"), "7\n").unwrap();
        assert_eq!(next_boot(&key).unwrap(), 8);
    }

    #[test]
    fn ids_survive_libp2p() {
        let identity = Identity::ephemeral();
        assert_eq!(from_libp2p(&to_libp2p(identity.peer_id())), Some(identity.peer_id()));
        assert_eq!(from_libp2p(&libp2p::PeerId::random()), None);
        assert!(!format!("{identity:?}").contains("keypair"));
    }
}
