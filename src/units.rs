//! Durations, sizes and shares of a core, as people write and read them.
//!
//! A number without a unit is refused rather than guessed: the original read
//! milliseconds as nanoseconds. Nothing is rounded on the way in.

use std::time::Duration;

/// Units of time, longest name first so that `ms` is not read as `m`.
const TIME: [(&str, u128); 6] = [
    ("us", 1_000),
    ("ms", 1_000_000),
    ("ns", 1),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];
/// Units of memory, longest name first.
const SIZE: [(&str, u128); 8] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
];
/// Most digits after the point: a nanosecond of a second.
const MAX_DECIMALS: usize = 9;

/// `digits[.digits]` times `scale`, exactly, or `None`.
fn scaled(number: &str, scale: u128) -> Option<u128> {
    let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(decimals) || decimals.len() > MAX_DECIMALS {
        return None;
    }
    let tens = 10u128.pow(decimals.len() as u32);
    let units = whole.parse::<u128>().ok()?.checked_mul(tens)?;
    let product = units.checked_add(decimals.parse().ok()?)?.checked_mul(scale)?;
    (product % tens == 0).then_some(product / tens)
}

fn with_unit(text: &str, units: &[(&str, u128)]) -> Option<u128> {
    units.iter().find_map(|(unit, scale)| scaled(text.strip_suffix(unit)?, *scale))
}

/// Reads `100ms`, `1.5s`, `2m`, `1h`, `250us`.
///
/// # Errors
/// A sentence saying how to write it.
pub fn duration(text: &str) -> Result<Duration, String> {
    let nanos = with_unit(text, &TIME).and_then(|nanos| u64::try_from(nanos).ok());
    nanos
        .map(Duration::from_nanos)
        .ok_or_else(|| "write it with a unit, such as 100ms, 1.5s or 2m".into())
}

/// Reads a duration of whole milliseconds, at least one.
///
/// # Errors
/// A sentence saying how to write it.
pub fn millis(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        time if time.is_zero() || time.subsec_nanos() % 1_000_000 != 0 => {
            Err("must be whole milliseconds, at least 1ms".into())
        }
        time => Ok(time),
    }
}

/// Reads `64MiB`, `1.5GiB`, `512KiB`, `100MB`, `4096B`.
///
/// # Errors
/// A sentence saying how to write it.
pub fn size(text: &str) -> Result<u64, String> {
    let bytes = with_unit(text, &SIZE).and_then(|bytes| u64::try_from(bytes).ok());
    bytes
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| "write it with a unit, such as 64MiB or 1GiB".into())
}

/// Reads a share of a core, `0.1` or `100m`, into thousandths.
///
/// # Errors
/// A sentence saying how to write it.
pub fn cpu(text: &str) -> Result<u32, String> {
    let millis = match text.strip_suffix('m') {
        Some(millis) => scaled(millis, 1),
        None => scaled(text, 1000),
    };
    let millis = millis.and_then(|millis| u32::try_from(millis).ok());
    millis
        .filter(|millis| *millis > 0)
        .ok_or_else(|| "write it in cores, such as 0.1, or in thousandths, 100m".into())
}

/// A duration with two or three significant digits: `850 us`, `1.2 ms`, `3.4 s`, `2 m 5 s`.
pub fn show_duration(time: Duration) -> String {
    let micros = time.as_micros();
    match micros {
        0..1_000 => format!("{micros} us"),
        1_000..99_950 => format!("{:.1} ms", time.as_secs_f64() * 1e3),
        99_950..999_500 => format!("{:.0} ms", time.as_secs_f64() * 1e3),
        999_500..59_950_000 => format!("{:.1} s", time.as_secs_f64()),
        _ => {
            let seconds = time.as_secs_f64().round() as u64;
            match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
                (0, 0, minutes, seconds) => format!("{minutes} m {seconds} s"),
                (0, hours, minutes, _) => format!("{hours} h {minutes} m"),
                (days, hours, ..) => format!("{days} d {hours} h"),
            }
        }
    }
}

/// A setting of milliseconds as `--soft-rtt` and others take it, exactly; empty for 0.
pub fn setting_millis(millis: u64) -> String {
    match millis {
        0 => String::new(),
        millis if millis % 1000 == 0 => format!("{}s", millis / 1000),
        millis => format!("{millis}ms"),
    }
}

/// A setting of bytes as `--memory` takes it, exactly.
pub fn setting_size(bytes: u64) -> String {
    let even = |(_, scale): &&(&str, u128)| u128::from(bytes) % scale == 0;
    let binary = SIZE.iter().take(4).rev().find(even).filter(|_| bytes > 0);
    let (unit, scale) = binary.copied().unwrap_or(("B", 1));
    format!("{}{unit}", u128::from(bytes) / scale)
}

/// A size in the largest binary unit that does not hide anything people care about.
pub fn show_size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = usize::from(unit > 0 && value.fract() >= 0.05 && value < 100.0);
    format!("{value:.decimals$} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_exactly_and_only_with_a_unit() {
        for (text, micros) in
            [("100ms", 100_000), ("1.5s", 1_500_000), ("2m", 120_000_000), ("250us", 250)]
        {
            assert_eq!(duration(text), Ok(Duration::from_micros(micros)), "{text}");
        }
        for text in [
            "",
            "100",
            "ms",
            "-1s",
            "+1s",
            "1 s",
            "1e3s",
            "1.s",
            ".5s",
            "0.1ns",
            "1d",
            "99999999999999h",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(millis("250us").is_err());
        assert!(millis("0s").is_err());
        assert_eq!(millis("0.1s"), Ok(Duration::from_millis(100)));
    }

    #[test]
    fn sizes_and_shares_are_read_exactly() {
        assert_eq!(size("64MiB"), Ok(64 << 20));
        assert_eq!(size("1.5GiB"), Ok(3 << 29));
        assert_eq!(size("100MB"), Ok(100_000_000));
        assert_eq!(cpu("0.1"), Ok(100));
        assert_eq!(cpu("100m"), Ok(100));
        assert_eq!(cpu("2"), Ok(2000));
        for text in ["", "64", "64M", "0B", "-1MiB", "1.5B", "99999999TiB"] {
            assert!(size(text).is_err(), "{text}");
        }
        for text in ["", "0", "0.0001", "m", "0.5m", "-1", "1e3", "5000000"] {
            assert!(cpu(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_and_sizes_read_well() {
        let micros = [
            0,
            999,
            1_234,
            99_949,
            99_950,
            999_499,
            999_500,
            61_000_000,
            3_700_000_000,
            90_000_000_000,
        ];
        let shown = micros.map(|micros| show_duration(Duration::from_micros(micros)));
        assert_eq!(
            shown,
            [
                "0 us", "999 us", "1.2 ms", "99.9 ms", "100 ms", "999 ms", "1.0 s", "1 m 1 s",
                "1 h 1 m", "1 d 1 h"
            ]
        );
        assert_eq!(
            [0, 1023, 64 << 20, 3 << 29].map(show_size),
            ["0 B", "1023 B", "64 MiB", "1.5 GiB"]
        );
    }

    proptest! {
        #[test]
        fn junk_never_panics(text in "\\PC{0,30}|[0-9]{0,60}(\\.[0-9]{0,60})?(ms|s|h|MiB|TiB|m)?") {
            let _any = (duration(&text), size(&text), cpu(&text), millis(&text));
        }

        #[test]
        fn whole_units_are_exact(count in 1u32..1_000_000) {
            prop_assert_eq!(duration(&format!("{count}ms")), Ok(Duration::from_millis(count.into())));
            prop_assert_eq!(size(&format!("{count}KiB")), Ok(u64::from(count) << 10));
            prop_assert_eq!(cpu(&format!("{count}m")), Ok(count));
        }

        #[test]
        fn settings_are_shown_as_they_are_typed(millis_ in 1u64..1 << 40, bytes in 1u64..1 << 50, shift in 0u32..3) {
            prop_assert_eq!(millis(&setting_millis(millis_)), Ok(Duration::from_millis(millis_)));
            let bytes = bytes >> (10 * shift) << (10 * shift);
            if bytes > 0 { prop_assert_eq!(size(&setting_size(bytes)), Ok(bytes)); }
        }

        #[test]
        fn whatever_is_shown_is_short(micros: u64, bytes: u64) {
            prop_assert!(show_duration(Duration::from_micros(micros)).len() <= 20);
            prop_assert!(show_size(bytes).len() <= 20);
        }
    }
}
