//! Values that are more than text: times, parameters.

use std::time::Duration;

use jiff::{Timestamp, Zoned};

/// More than any time that is asked for; gRPC has a limit of its own, beyond which it ends the program.
const MAX_SECONDS: u64 = 10 * 366 * 86_400 + 1;

/// `90s`, `15m`, `1h30m`, `7d`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    const WANTED: &str = "give a time such as 90s, 15m, 1h30m or 7d";
    let mut total = 0_u64;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).ok_or(WANTED)?;
        let number: u64 = rest[..end].parse().map_err(|_| WANTED)?;
        let unit_end = rest[end..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| end + at);
        let unit = match &rest[end..unit_end] {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            "w" => 604_800,
            _ => return Err(WANTED.to_owned()),
        };
        total =
            number.checked_mul(unit).and_then(|seconds| total.checked_add(seconds)).ok_or("is too long")?;
        rest = &rest[unit_end..];
    }
    match total {
        0 => Err(WANTED.to_owned()),
        MAX_SECONDS.. => Err("is too long: at most ten years".to_owned()),
        seconds => Ok(Duration::from_secs(seconds)),
    }
}

/// `0`, `4096`, `64KiB`, `1MiB`, `2GiB`: bytes.
pub(super) fn size(text: &str) -> Result<u64, String> {
    const WANTED: &str = "give a size such as 0, 4096, 64KiB, 1MiB or 2GiB";
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..end].parse().map_err(|_| WANTED)?;
    let unit: u64 = match &text[end..] {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(WANTED.to_owned()),
    };
    number.checked_mul(unit).ok_or_else(|| "is too much".to_owned())
}

/// `2026-11-29T03:00+01:00`, `2026-11-29T02:00Z`, `2026-11-29T03:00[Europe/Berlin]`: one that is the same everywhere.
pub(super) fn time(text: &str) -> Result<Timestamp, String> {
    let zoned = || text.parse::<Zoned>().map(|zoned| zoned.timestamp());
    text.parse().or_else(|_| zoned()).map_err(|_| {
        "give a time with its offset or zone, such as 2026-11-29T03:00+01:00, 2026-11-29T02:00Z or 2026-11-29T03:00[Europe/Berlin]"
            .to_owned()
    })
}

pub(super) fn parameter(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err("give KEY=VALUE, such as max_connections=300".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_or_refused() {
        for (text, bytes) in
            [("0", 0), ("4096", 4096), ("64KiB", 65_536), ("1MiB", 1 << 20), ("2GiB", 2 << 30)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "MiB", "1 MiB", "-1", "1MB", "1.5GiB", "99999999999GiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn moments_are_read_or_refused() {
        let moment: Timestamp = "2026-11-29T02:00:00Z".parse().unwrap();
        for text in ["2026-11-29T02:00Z", "2026-11-29T03:00+01:00", "2026-11-29 03:00:00[Europe/Berlin]"] {
            assert_eq!(time(text), Ok(moment), "{text}");
        }
        for bad in [
            "",
            "3:00",
            "2026-11-29",
            "2026-11-29T03:00",
            "2026-11-31T03:00Z",
            "2026-11-29T03:00[Mars/Olympus]",
        ] {
            assert!(time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_are_read_or_refused() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("2w"), Ok(Duration::from_secs(1_209_600)));
        assert_eq!(duration("3650d"), Ok(Duration::from_secs(3650 * 86_400)));
        let long = ["9999999d", "99999999999999999999s", "18446744073709551615w"];
        for bad in ["", "0s", "5", "h", "5x", "-5s", "5 m"].into_iter().chain(long) {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
