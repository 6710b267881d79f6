//! The token by which gRPC over TCP knows that a program belongs to this user: whoever can
//! read the file may do what the daemon's user may do, exactly as with the unix socket.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use http::{HeaderMap, header};
use subtle::ConstantTimeEq as _;
use tonic::metadata::{Ascii, MetadataValue};

use crate::{Error, Kind, Result};

/// Random bytes of a token: nobody guesses 256 bits.
const RANDOM: usize = 32;
/// Longest token taken: ours has 64 characters.
const MAX_TOKEN: usize = 4096;
/// What stands before the token in `authorization`.
const SCHEME: &str = "Bearer ";

/// A token. Never printed.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// The file of a daemon's token.
    pub fn file(data_dir: &Path) -> PathBuf {
        data_dir.join("token")
    }

    /// The token in the file at `path`; a new one if there is no file.
    ///
    /// # Errors
    /// As [`load`](Self::load), and if the file cannot be made.
    pub fn load_or_create(path: &Path) -> Result<Self> {
        match read(path)? {
            Some(token) => Ok(token),
            None => create(path),
        }
    }

    /// The token in the file at `path`.
    ///
    /// # Errors
    /// [`Kind::FailedPrecondition`] with the remedy as a hint if there is none, if it is not
    /// this user's own, is open to others, or holds no token.
    pub fn load(path: &Path) -> Result<Self> {
        read(path)?.ok_or_else(|| {
            refused(path, "does not exist")
                .hint("a daemon with --grpc-listen makes it in its data folder")
        })
    }

    /// A token that somebody typed.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] if it cannot be one.
    pub fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        let plain = text.bytes().all(|byte| byte.is_ascii_graphic());
        if text.is_empty() || text.len() > MAX_TOKEN || !plain {
            return Err(Error::new(Kind::InvalidArgument, "this is not a token"));
        }
        Ok(Self(text.to_owned()))
    }

    /// The value of `authorization` that carries it.
    pub fn bearer(&self) -> MetadataValue<Ascii> {
        let text = format!("{SCHEME}{}", self.0);
        let mut value: MetadataValue<Ascii> = text.parse().expect("a token is printable ASCII");
        value.set_sensitive(true);
        value
    }

    /// Whether both are the same.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }

    /// Whether exactly one `authorization` is there and carries it. Takes the same time
    /// wherever a wrong token differs.
    pub(super) fn is_in(&self, headers: &HeaderMap) -> bool {
        let mut given = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(given), None) = (given.next(), given.next()) else { return false };
        let Some((scheme, token)) = given.as_bytes().split_at_checked(SCHEME.len()) else {
            return false;
        };
        scheme.eq_ignore_ascii_case(SCHEME.as_bytes()) && token.ct_eq(self.0.as_bytes()).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// `None` if there is no file.
fn read(path: &Path) -> Result<Option<Token>> {
    let cannot = |error: io::Error| refused(path, "cannot be read").because(error);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(cannot(error)),
    };
    // Asked of the open file: between two looks by name it could be another one.
    let about = file.metadata().map_err(cannot)?;
    if !about.is_file() {
        return Err(refused(path, "is not a file").hint("move it away to have one made"));
    }
    if about.uid() != rustix::process::geteuid().as_raw() {
        return Err(refused(path, "belongs to another user").hint("use a folder of your own"));
    }
    if about.mode() & 0o077 != 0 {
        let hint = format!(
            "if nobody has read it, chmod 600 {}; else remove the daemon's, which makes a new one \
             at a hangup or its next start",
            path.display()
        );
        return Err(refused(path, "is open to others, who may know the token").hint(hint));
    }
    let mut text = String::new();
    file.take(MAX_TOKEN as u64 + 1).read_to_string(&mut text).map_err(cannot)?;
    let token = Token::parse(&text);
    token.map(Some).map_err(|_| refused(path, "holds no token").hint("remove it to have one made"))
}

/// Writes a token aside and links it into place, so that of two who do this at once one wins
/// and both use its token.
fn create(path: &Path) -> Result<Token> {
    let fails = |error: io::Error| refused(path, "cannot be created").because(error);
    let token = Token(hex::encode(rand::random::<[u8; RANDOM]>()));
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{:08x}", rand::random::<u32>()));
    let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary);
    let linked = written
        .and_then(|mut file| {
            file.write_all(format!("{}\n", token.0).as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| fs::hard_link(&temporary, path));
    let _perhaps_never_made = fs::remove_file(&temporary);
    match linked {
        Ok(()) => Ok(token),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            read(path)?.ok_or_else(|| fails(error))
        }
        Err(error) => Err(fails(error)),
    }
}

fn refused(path: &Path, why: &str) -> Error {
    Error::new(Kind::FailedPrecondition, format!("the token file {} {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_token_is_made_once_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = Token::file(dir.path());
        let made = Token::load_or_create(&path).unwrap();
        assert_eq!(made.0.len(), 64);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(Token::load_or_create(&path).unwrap().0, made.0);
        assert_eq!(Token::load(&path).unwrap().0, made.0);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing temporary stays");
        assert!(!format!("{made:?}").contains(&made.0));
    }

    #[test]
    fn of_many_who_make_one_all_get_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = Token::file(dir.path());
        let tokens: Vec<_> = std::thread::scope(|scope| {
            let tries: Vec<_> =
                (0..8).map(|_| scope.spawn(|| Token::load_or_create(&path))).collect();
            tries.into_iter().map(|one| one.join().unwrap().unwrap().0).collect()
        });
        assert!(tokens.iter().all(|token| *token == tokens[0]));
    }

    #[test]
    fn a_file_that_others_may_know_or_that_is_none_is_refused_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = Token::file(dir.path());
        for (mode, content) in [
            (0o644, "abc"),
            (0o640, "abc"),
            (0o602, "abc"),
            (0o600, ""),
            (0o600, "a b"),
            (0o600, "\u{7f}"),
        ] {
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = Token::load_or_create(&path).unwrap_err();
            assert_eq!(error.kind(), Kind::FailedPrecondition, "{mode:o} {content:?}");
            assert!(error.hint_text().unwrap().contains("remove"), "{error}");
            fs::remove_file(&path).unwrap();
        }
        fs::create_dir(&path).unwrap();
        assert!(Token::load_or_create(&path).unwrap_err().public().contains("not a file"));
        let nowhere = Token::load(&dir.path().join("x")).unwrap_err();
        assert!(nowhere.hint_text().unwrap().contains("--grpc-listen"));
    }

    #[test]
    fn only_the_whole_token_will_do_and_only_once() {
        let token = Token::parse("abc\n").unwrap();
        let taken = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, value.parse().unwrap());
            }
            token.is_in(&headers)
        };
        assert!(taken(&["Bearer abc"]) && taken(&["bearer abc"]));
        for wrong in ["", "abc", "Bearer", "Bearer ", "Bearer ab", "Bearer abcd", "Basic abc"] {
            assert!(!taken(&[wrong]), "{wrong:?}");
        }
        assert!(!taken(&[]) && !taken(&["Bearer abc", "Bearer abc"]));
    }
}
