//! How far a pull is, from the lines in which an engine tells it.
//!
//! An engine repeats itself: it says that a layer waits, that it tries again in so many seconds,
//! that it has as many bytes as before. What counts here as progress is what cannot go on for
//! ever: a layer that has come further than it ever was. The deadline of a pull hangs on that.

use std::collections::HashMap;

use bollard::models::CreateImageInfo;

/// Layers that are followed: an engine takes no image with more than 127.
const MAX_LAYERS: usize = 256;

/// How much of an image is here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that have come, compressed as they are sent.
    pub bytes: u64,
    /// Bytes of the layers whose size is known by now; never less than `bytes`.
    pub total_bytes: u64,
    /// Layers that are unpacked, or were there before.
    pub layers: u32,
    /// Layers it has, as far as they have been named.
    pub total_layers: u32,
}

/// How far a layer is, in the order in which it gets there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Named,
    Downloading(u64),
    Downloaded,
    Unpacking(u64),
    Done,
}

#[derive(Debug)]
struct Layer {
    phase: Phase,
    bytes: u64,
    total: u64,
}

/// The layers of one pull.
#[derive(Debug, Default)]
pub(crate) struct Layers(HashMap<String, Layer>);

impl Layers {
    /// Takes what the engine says next; true if a layer has come further than ever.
    pub(crate) fn take(&mut self, said: &CreateImageInfo) -> bool {
        let (Some(id), Some(status)) = (&said.id, &said.status) else { return false };
        let detail = said.progress_detail.as_ref();
        let number = |number: Option<i64>| u64::try_from(number.unwrap_or(0)).unwrap_or(0);
        let current = number(detail.and_then(|detail| detail.current));
        let total = number(detail.and_then(|detail| detail.total));
        let phase = match status.as_str() {
            "Pulling fs layer" | "Waiting" => Phase::Named,
            "Downloading" => Phase::Downloading(current),
            "Verifying Checksum" | "Download complete" => Phase::Downloaded,
            "Extracting" => Phase::Unpacking(current),
            "Pull complete" | "Already exists" => Phase::Done,
            _ => return false,
        };
        let Some(layer) = self.0.get_mut(id) else {
            if self.0.len() < MAX_LAYERS {
                let mut layer = Layer { phase, bytes: 0, total: 0 };
                layer.count(total);
                self.0.insert(id.clone(), layer);
            }
            return true;
        };
        let further = phase > layer.phase;
        if further {
            layer.phase = phase;
            layer.count(total);
        }
        further
    }

    /// All of them together.
    pub(crate) fn progress(&self) -> Progress {
        let mut sum = Progress::default();
        for layer in self.0.values() {
            sum.bytes += layer.bytes;
            sum.total_bytes += layer.total.max(layer.bytes);
            sum.layers += u32::from(layer.phase == Phase::Done);
            sum.total_layers += 1;
        }
        sum
    }
}

impl Layer {
    /// Brings its bytes up to its phase. `total` is of what the phase counts: while it
    /// unpacks, of the same bytes again.
    fn count(&mut self, total: u64) {
        self.total = self.total.max(total);
        self.bytes = match self.phase {
            Phase::Named => 0,
            Phase::Downloading(bytes) => self.bytes.max(bytes),
            Phase::Downloaded | Phase::Unpacking(_) | Phase::Done => self.bytes.max(self.total),
        };
    }
}

#[cfg(test)]
mod tests {
    use bollard::models::ProgressDetail;
    use proptest::prelude::*;

    use super::*;

    fn line(id: &str, status: &str, current: i64, total: i64) -> CreateImageInfo {
        CreateImageInfo {
            id: Some(id.into()),
            status: Some(status.into()),
            progress_detail: Some(ProgressDetail { current: Some(current), total: Some(total) }),
            ..Default::default()
        }
    }

    #[test]
    fn a_pull_is_followed_from_its_first_layer_to_its_last() {
        let mut layers = Layers::default();
        for (id, status, current, total, moved) in [
            ("latest", "Pulling from library/app", 0, 0, false),
            ("a", "Pulling fs layer", 0, 0, true),
            ("b", "Already exists", 0, 0, true),
            ("a", "Waiting", 0, 0, false),
            ("a", "Downloading", 10, 100, true),
            ("a", "Downloading", 10, 100, false),
            ("a", "Retrying in 5 seconds", 0, 0, false),
            ("a", "Downloading", 0, 100, false), // from the start again
            ("a", "Downloading", 60, 100, true),
        ] {
            assert_eq!(layers.take(&line(id, status, current, total)), moved, "{status}");
        }
        let half = Progress { bytes: 60, total_bytes: 100, layers: 1, total_layers: 2 };
        assert_eq!(layers.progress(), half);
        for (status, current) in [
            ("Verifying Checksum", 0),
            ("Download complete", 0),
            ("Extracting", 50),
            ("Pull complete", 0),
        ] {
            layers.take(&line("a", status, current, 100));
        }
        let whole = Progress { bytes: 100, total_bytes: 100, layers: 2, total_layers: 2 };
        assert_eq!(layers.progress(), whole);
    }

    proptest! {
        #[test]
        fn what_an_engine_repeats_is_progress_once_and_nothing_goes_back(
            lines in proptest::collection::vec((0..3usize, 0..8usize, -5i64..50, -5i64..50), 0..60),
        ) {
            const STATUS: [&str; 8] = ["Pulling fs layer", "Waiting", "Downloading", "Verifying Checksum",
                "Extracting", "Pull complete", "Retrying in 1 second", "?"];
            let mut layers = Layers::default();
            let mut before = Progress::default();
            for (id, status, current, total) in lines {
                let line = line(["a", "b", "c"][id], STATUS[status], current, total);
                layers.take(&line);
                prop_assert!(!layers.take(&line), "the same again is no progress");
                let now = layers.progress();
                prop_assert!(now.bytes >= before.bytes && now.layers >= before.layers);
                prop_assert!(now.bytes <= now.total_bytes && now.layers <= now.total_layers);
                before = now;
            }
        }
    }
}
