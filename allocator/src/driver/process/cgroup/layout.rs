//! Where this process's control groups are, read from what the kernel says of it: a pure
//! function over `/proc/self/mountinfo` and `/proc/self/cgroup`.
//!
//! See cgroups(7) and proc_pid_mountinfo(5).

use std::path::{Path, PathBuf};

/// What limits are put on: of each a folder of its own in version 1.
pub(super) const CONTROLLERS: [&str; 4] = ["cpu", "cpuacct", "memory", "pids"];

/// Our own groups, as paths in the file system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    /// In the one tree of version 2, if that is mounted.
    pub(super) unified: Option<PathBuf>,
    /// By controller, in the trees of version 1. Controllers of one mount share a folder.
    pub(super) legacy: Vec<(&'static str, PathBuf)>,
}

impl Layout {
    /// Puts together what is mounted where with which group we are in. Lines that are not
    /// understood are left out.
    pub(super) fn parse(mountinfo: &str, own: &str) -> Self {
        let mut layout = Self::default();
        for mount in mountinfo.lines().filter_map(Mount::parse) {
            match mount.kind {
                "cgroup2" => {
                    let group = own.lines().find_map(|line| line.strip_prefix("0::"));
                    let found = group.and_then(|group| mount.path_of(group));
                    layout.unified = layout.unified.or(found);
                }
                "cgroup" => {
                    for controller in CONTROLLERS {
                        let known = layout.legacy.iter().any(|(name, _)| *name == controller);
                        if known || !mount.options.split(',').any(|option| option == controller) {
                            continue;
                        }
                        let found =
                            own_group(own, controller).and_then(|group| mount.path_of(group));
                        layout.legacy.extend(found.map(|path| (controller, path)));
                    }
                }
                _ => {}
            }
        }
        layout
    }
}

/// The group of `controller` in `/proc/self/cgroup`: `4:cpu,cpuacct:/a/b` is `/a/b`.
fn own_group<'a>(own: &'a str, controller: &str) -> Option<&'a str> {
    own.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, group) = (parts.next()?, parts.next()?);
        controllers.split(',').any(|name| name == controller).then_some(group)
    })
}

/// One line of mountinfo, of a file system of control groups or another.
struct Mount<'a> {
    /// Which part of the tree is seen there.
    root: &'a str,
    point: &'a str,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let (root, point) = (before.next()?, before.next()?);
        let mut after = after.split(' ');
        let (kind, options) = (after.next()?, after.nth(1)?);
        Some(Self { root, point, kind, options })
    }

    /// Where `group` is seen, if it is under what is mounted here.
    fn path_of(&self, group: &str) -> Option<PathBuf> {
        let inside = Path::new(group).strip_prefix(self.root).ok()?;
        // Above what we may see, as in a container whose mount is not its own.
        if group.split('/').any(|part| part == "..") {
            return None;
        }
        Some(Path::new(self.point).join(inside))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFIED: &str = "35 24 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
    const LEGACY: &str = "\
        30 29 0:25 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755\n\
        31 30 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        32 30 0:27 /docker/1 /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n\
        33 30 0:28 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
        34 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
        nonsense\n";

    #[test]
    fn of_version_2_it_is_the_one_group() {
        let layout = Layout::parse(UNIFIED, "0::/system.slice/allocator.service\n");
        let group = PathBuf::from("/sys/fs/cgroup/system.slice/allocator.service");
        assert_eq!(layout, Layout { unified: Some(group), legacy: Vec::new() });
        let above = Layout::parse(UNIFIED, "0::/../elsewhere\n");
        assert_eq!(above, Layout::default(), "a group that cannot be seen");
    }

    #[test]
    fn of_version_1_it_is_one_by_controller() {
        let own = "9:pids:/\n8:memory:/docker/1/x\n3:cpu,cpuacct:/user\n1:name=systemd:/\n0::/\n";
        let layout = Layout::parse(LEGACY, own);
        let both = PathBuf::from("/sys/fs/cgroup/cpu,cpuacct/user");
        let expected = [
            ("cpu", both.clone()),
            ("cpuacct", both),
            ("memory", "/sys/fs/cgroup/memory/x".into()),
            ("pids", "/sys/fs/cgroup/pids/".into()),
        ];
        assert_eq!(layout.legacy, expected);
        assert_eq!(layout.unified, Some("/sys/fs/cgroup/unified/".into()));
    }

    #[test]
    fn without_control_groups_there_are_none() {
        assert_eq!(Layout::parse("", ""), Layout::default());
        assert_eq!(Layout::parse(LEGACY, ""), Layout::default());
    }
}
