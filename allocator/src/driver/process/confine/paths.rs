//! Which files a program may touch, and which port it may listen on: Landlock's rules
//! (landlock(7)).
//!
//! It reads and executes what every program needs, its artifact and what the operator
//! names, writes in its working folder, listens on its own port, and sends signals to
//! nobody but its own processes. Where the kernel knows less, less is ruled.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, NetPort, PathBeneath, PathFd, Ruleset,
    RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, Scope,
};

/// The newest that these rules were written for. An older kernel keeps what it knows of.
const WRITTEN_FOR: ABI = ABI::V6;

/// Programs, libraries and what they read about the machine; of `/etc` nothing that is
/// secret.
const READ: [&str; 40] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/opt",
    "/nix/store",
    "/gnu/store",
    "/run/current-system/sw",
    "/run/systemd/resolve",
    "/proc",
    "/sys",
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/ca-certificates.conf",
    "/etc/fonts",
    "/etc/gai.conf",
    "/etc/group",
    "/etc/host.conf",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/ld.so.preload",
    "/etc/locale.alias",
    "/etc/localtime",
    "/etc/machine-id",
    "/etc/mime.types",
    "/etc/nsswitch.conf",
    "/etc/os-release",
    "/etc/passwd",
    "/etc/pki",
    "/etc/protocols",
    "/etc/resolv.conf",
    "/etc/services",
    "/etc/ssl",
    "/etc/timezone",
];
/// Devices without which few programs run.
const DEVICES: [&str; 6] =
    ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];

/// What one program may touch beyond that.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Allowed<'a> {
    /// The file that is executed.
    pub(in super::super) program: &'a Path,
    /// Its working folder.
    pub(in super::super) work: &'a Path,
    /// What it writes goes there; it may open it again, as `/dev/stdout`.
    pub(in super::super) output: &'a Path,
    /// The one TCP port it may listen on.
    pub(in super::super) port: u16,
    /// What else it may read and execute, as far as the operator allows.
    pub(in super::super) read: &'a [PathBuf],
    /// And write.
    pub(in super::super) write: &'a [PathBuf],
}

/// Which Landlock the kernel has; 0: none.
#[allow(unsafe_code, reason = "the crate does not tell; asking makes nothing")]
pub(super) fn abi() -> i32 {
    const VERSION: libc::c_uint = 1; // LANDLOCK_CREATE_RULESET_VERSION
    let nothing: *const libc::c_void = std::ptr::null();
    // SAFETY: with this flag the kernel reads no memory and makes no descriptor.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0usize, VERSION) };
    i32::try_from(abi).unwrap_or(0).max(0)
}

/// The rules as a descriptor; `None` where the kernel has no Landlock. Blocks on the disk.
pub(super) fn ruleset(allowed: &Allowed<'_>) -> io::Result<Option<OwnedFd>> {
    rules(allowed).map_err(io::Error::other)
}

fn rules(allowed: &Allowed<'_>) -> Result<Option<OwnedFd>, RulesetError> {
    let read = AccessFs::from_read(WRITTEN_FOR);
    let all = AccessFs::from_all(WRITTEN_FOR);
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    let mut rules = Ruleset::default()
        .handle_access(all)?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::AbstractUnixSocket | Scope::Signal)?
        .create()?;
    let fixed = |paths: &'static [&'static str], access| {
        paths.iter().map(move |path| (Path::new(path), access))
    };
    let named = |paths: &'_ [PathBuf], access| {
        paths.iter().map(|path| (path.clone(), access)).collect::<Vec<_>>()
    };
    let (more_read, more_write) = (named(allowed.read, read), named(allowed.write, all));
    let more = more_read.iter().chain(&more_write).map(|(path, access)| (path.as_path(), *access));
    let own: [(&Path, BitFlags<AccessFs>); 3] = [
        (allowed.program, AccessFs::Execute | AccessFs::ReadFile),
        (allowed.work, all),
        (allowed.output, AccessFs::WriteFile.into()),
    ];
    for (path, access) in fixed(&READ, read).chain(fixed(&DEVICES, device)).chain(own).chain(more) {
        // What this machine does not have is not needed on it.
        let Ok(opened) = PathFd::new(path) else { continue };
        let access = if path.is_dir() { access } else { access & AccessFs::from_file(WRITTEN_FOR) };
        rules = rules.add_rule(PathBeneath::new(opened, access))?;
    }
    rules = rules.add_rule(NetPort::new(allowed.port, AccessNet::BindTcp))?;
    Ok(rules.into())
}
