//! What is enforced here and what is not, in sentences for `Describe`.

use super::spawn::Terms;
use crate::driver::Means;

/// The words for `terms`; `without_groups` says why there are no control groups.
pub(super) fn of(terms: &Terms, without_groups: Option<&str>) -> Means {
    let mut means = Means::default();
    let (yes, no) = (&mut means.enforced, &mut means.not_enforced);
    match &terms.cgroups {
        Some(cgroups) => {
            let word = cgroups.word();
            yes.extend(["cpu", "memory", "processes"].map(|what| format!("{what}: {word}")));
        }
        None => {
            let why = without_groups.unwrap_or("no control groups");
            yes.push("memory: rlimit, of each process".into());
            no.push(format!("cpu: {why}"));
            no.push(format!("memory of all processes together: {why}"));
            no.push(format!("processes: {why}"));
        }
    }
    yes.push("open files: rlimit".into());
    yes.push("disk: rlimit of a file, working folder counted every 2 s".into());
    yes.push("log: rotated".into());
    yes.push("descriptors: none inherited".into());
    yes.push("privileges: no new ones".into());
    if terms.means.privileged {
        yes.push("capabilities: all dropped".into());
    }
    match terms.means.landlock {
        0 => no.push("files and ports: this kernel has no Landlock".into()),
        abi => {
            yes.push(format!("files: landlock, abi {abi}"));
            // Which abi brought what: landlock(7).
            if abi >= 4 {
                yes.push("listening: landlock, its own TCP port".into());
            } else {
                no.push(format!("listening: landlock abi {abi} knows no ports"));
            }
            if abi >= 6 {
                yes.push("signals: landlock, to its own processes".into());
            } else {
                no.push(format!("signals: landlock abi {abi} knows none"));
            }
        }
    }
    if terms.means.filters_calls() {
        yes.push("system calls: seccomp".into());
    } else {
        no.push("system calls: no filter for this processor".into());
    }
    means
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Grants, confine},
        *,
    };

    #[test]
    fn what_is_missing_is_said_with_its_reason() {
        let mut machine = confine::Means::of_this_machine();
        machine.landlock = 3;
        let terms = Terms { cgroups: None, means: machine, grants: Grants::default() };
        let means = of(&terms, Some("version 2: read-only"));
        assert!(means.not_enforced.contains(&"cpu: version 2: read-only".to_owned()));
        assert!(means.enforced.contains(&"files: landlock, abi 3".to_owned()));
        let ports = "listening: landlock abi 3 knows no ports".to_owned();
        assert!(means.not_enforced.contains(&ports));
    }
}
