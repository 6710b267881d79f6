//! Numbers that only grow, to say in which order messages were made that may arrive in
//! another.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

/// A number greater than all that this process has drawn before. Greater than those of its
/// earlier lives, too, unless the machine's clock was set back. Never 0.
pub fn next() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let clock = u64::try_from(clock.as_micros()).unwrap_or_default();
    let after = |last: u64| last.saturating_add(1).max(clock);
    let draw = LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(after(last)));
    after(draw.unwrap_or_else(|last| last))
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, thread};

    #[test]
    fn no_number_is_drawn_twice_and_each_thread_sees_them_grow() {
        let drawing = [(); 4].map(|()| thread::spawn(|| [(); 2000].map(|()| super::next())));
        let drawn = drawing.map(|thread| thread.join().unwrap());
        assert!(drawn.iter().all(|drawn| drawn.is_sorted()));
        let all: HashSet<_> = drawn.iter().flatten().copied().collect();
        assert_eq!(all.len(), 4 * 2000);
    }
}
