//! Hands back, once, the pages of code that only a start needed.
//!
//! Reading flags, making keys, opening a database and joining run through most of the
//! program once; the kernel maps 64 KiB around each page that is touched, and nothing
//! takes these mappings away again while there is memory. So an idle daemon would go on
//! holding about ten MiB of code that it does not run. Without the mappings the pages are
//! ordinary page cache, the first thing a machine short of memory can drop; what runs
//! again is mapped again without being read, a fault of about a microsecond per 64 KiB.
//!
//! Only code is handed back that nobody has written to, such as a debugger that set a
//! breakpoint: what a file does not contain would be lost.

use std::{ffi::c_void, ops::Range, ptr, time::Duration};

use rustix::mm::{Advice, madvise};

/// After a start, until it has joined, been found and answered its first probes.
const AFTER: Duration = Duration::from_secs(10);

/// Waits until the start is over, then hands its code back. Never ends; it may be dropped
/// at any time.
pub(crate) async fn settle() {
    tokio::time::sleep(AFTER).await;
    match std::fs::read_to_string("/proc/self/smaps") {
        Ok(smaps) => code(&smaps).for_each(hand_back),
        // Without it the mappings stay, which costs memory and nothing else.
        Err(error) => tracing::debug!(%error, "mappings are not known"),
    }
    std::future::pending().await
}

/// Where code of files is mapped that nobody has written to, as `/proc/PID/smaps` has it
/// (proc_pid_smaps(5)).
fn code(smaps: &str) -> impl Iterator<Item = Range<usize>> {
    let mut mapped = None;
    smaps.lines().filter_map(move |line| {
        let mut words = line.split_ascii_whitespace();
        match (words.next()?, words.next()?) {
            ("Anonymous:", written) => mapped.take().filter(|_| written == "0"),
            (place, "r-xp") => {
                let of_a_file = words.nth(3).is_some_and(|path| path.starts_with('/'));
                mapped = range(place).filter(|_| of_a_file);
                None
            }
            // The next mapping, or another line about this one.
            (first, _) => {
                mapped = mapped.take().filter(|_| first.ends_with(':'));
                None
            }
        }
    })
}

fn range(place: &str) -> Option<Range<usize>> {
    let (from, to) = place.split_once('-')?;
    let (from, to) = (usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?);
    (from < to).then_some(from..to)
}

#[allow(unsafe_code, reason = "madvise takes an address, which no safe function can vouch for")]
fn hand_back(Range { start, end }: Range<usize>) {
    let from: *mut c_void = ptr::with_exposed_provenance_mut(start);
    // SAFETY: a private mapping of a file's code that was never written to, so what is
    // mapped at the next access is what was mapped before (madvise(2), MADV_DONTNEED).
    // Code is unmapped only by whoever loaded it, and nothing here unloads libraries.
    let handed_back = unsafe { madvise(from, end - start, Advice::LinuxDontNeed) };
    if let Err(error) = handed_back {
        tracing::debug!(%error, "code stays mapped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_that_nobody_wrote_to_is_handed_back() {
        let smaps = "\
5569e38b5000-5569e3cb7000 r--p 00000000 fe:00 10092565   /usr/bin/proxy
Rss:                1728 kB
Anonymous:             0 kB
5569e3cb7000-5569e4b81000 r-xp 00401000 fe:00 10092565   /usr/bin/proxy
Size:              15144 kB
Rss:               10272 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
5569e4b81000-5569e4bdc000 r--p 012ca000 fe:00 10092565   /usr/bin/proxy
Anonymous:           364 kB
7f4c9074a000-7f4c908a0000 r-xp 00026000 fe:00 326279     /usr/lib/libc.so.6
Anonymous:             4 kB
7f4c90800000-7f4c90900000 r-xp 00000000 00:00 0
Anonymous:             0 kB
7f4c90916000-7f4c9098a000 r-xp 00010000 fe:00 326603     /usr/lib/libm.so.6
7f4c9098a000-7f4c909e4000 rw-p 00084000 fe:00 326603     /usr/lib/libm.so.6
Anonymous:             0 kB
7ffe8b7f0000-7ffe8b7f2000 r-xp 00000000 00:00 0          [vdso]
Anonymous:             0 kB
";
        let found: Vec<_> = code(smaps).collect();
        assert_eq!(found, vec![0x5569_e3cb_7000..0x5569_e4b8_1000]);
    }

    #[test]
    fn this_process_runs_on_without_its_code_mapped() {
        let smaps = std::fs::read_to_string("/proc/self/smaps").expect("Linux");
        let ours = hand_back as *const () as usize;
        assert!(code(&smaps).any(|range| range.contains(&ours)), "its own code is among it");
        // Other tests of this process may map code again in the very moment.
        let shrinks = (0..50).any(|_| {
            let before = resident();
            code(&smaps).for_each(hand_back);
            resident() < before
        });
        assert!(shrinks, "{} KiB are left", resident());
    }

    /// KiB of files that are mapped.
    fn resident() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
        let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).expect("Linux");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }
}
