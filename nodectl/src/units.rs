//! Sizes and times as people write them. Sizes are binary: 4G is 4 GiB.

use std::time::Duration;

const UNITS: [(char, u32); 5] = [('k', 10), ('M', 20), ('G', 30), ('T', 40), ('P', 50)];

/// Reads `4G`, `512M`, `64k`, `4GiB`, `1.5G`, `4096`. For clap: the error is a sentence.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a size: write a number and k, M, G or T, as in 4G (4 GiB) or 512M");
    let trimmed = text.strip_suffix("iB").or_else(|| text.strip_suffix('B')).unwrap_or(text);
    let digits = trimmed.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &trimmed[digits.len()..] {
        "" => 0,
        unit => UNITS.iter().find(|(letter, _)| unit.eq_ignore_ascii_case(&letter.to_string())).ok_or_else(wrong)?.1,
    };
    if let Some((whole, fraction)) = digits.split_once('.') {
        return parse_fraction(whole, fraction, shift).ok_or_else(wrong);
    }
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("`{text}` is larger than any size"))
}

/// `1.5G`: exact in integers; at most six places.
fn parse_fraction(whole: &str, fraction: &str, shift: u32) -> Option<u64> {
    let places = u32::try_from(fraction.len()).ok().filter(|places| (1..=6).contains(places) && shift > 0)?;
    let scale = 10u128.pow(places);
    let parts = u128::from(whole.parse::<u64>().ok()?) * scale + u128::from(fraction.parse::<u64>().ok()?);
    u64::try_from((parts << shift) / scale).ok()
}

/// Reads `5s`, `500ms`, `2m`, or bare seconds. For clap.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a time: write 5s, 500ms, 2m or a number of seconds");
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).map_err(|_| wrong());
    }
    let span: jiff::SignedDuration = text.parse().map_err(|_| wrong())?;
    Duration::try_from(span).map_err(|_| wrong())
}

/// `4 GiB`, `1.5 GiB`, `12 KiB`, `0 B`.
pub(crate) fn size(bytes: u64) -> String {
    let Some((letter, shift)) = UNITS.iter().rev().find(|(_, shift)| bytes >= 1 << shift) else {
        return format!("{bytes} B");
    };
    let unit = 1u64 << shift;
    let letter = letter.to_ascii_uppercase();
    if bytes.is_multiple_of(unit) {
        return format!("{} {letter}iB", bytes / unit);
    }
    format!("{:.1} {letter}iB", ratio(bytes, unit))
}

/// `12.3 MiB/s`.
pub(crate) fn rate(bytes_per_second: u64) -> String {
    format!("{}/s", size(bytes_per_second))
}

/// Two counts as a fraction.
#[allow(clippy::cast_precision_loss)] // for people and reports only
pub(crate) fn ratio(of: u64, by: u64) -> f64 {
    if by == 0 { 0.0 } else { of as f64 / by as f64 }
}

/// MiB per second.
pub(crate) fn mib_per_second(bytes: u64, elapsed: Duration) -> f64 {
    let seconds = elapsed.as_secs_f64();
    if seconds > 0.0 { ratio(bytes, 1 << 20) / seconds } else { 0.0 }
}

/// `1.2 s`, `35 ms`, `0.4 ms`.
pub(crate) fn time(span: Duration) -> String {
    let seconds = span.as_secs_f64();
    match seconds {
        s if s >= 1.0 => format!("{s:.1} s"),
        s if s >= 0.01 => format!("{:.0} ms", s * 1e3),
        s => format!("{:.2} ms", s * 1e3),
    }
}

/// Milliseconds as a float, for reports.
pub(crate) fn millis(span: Duration) -> f64 {
    (span.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sizes_are_binary() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64k", 65536),
            ("64K", 65536),
            ("512M", 512 << 20),
            ("4G", 4 << 30),
            ("4GiB", 4 << 30),
            ("2T", 2 << 40),
            ("1.5G", 3 << 29),
            ("100B", 100),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn nonsense_is_not_a_size() {
        for text in ["", "G", "-4G", "4X", "4 G", "1.5", "1.G", "99999999999999999999", "20000000T", "4GG", "é"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_print_as_they_are_written() {
        for (bytes, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (4096, "4 KiB"),
            (4 << 30, "4 GiB"),
            (3 << 29, "1.5 GiB"),
            (1023 << 20, "1023 MiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn times_have_units_or_are_seconds() {
        for (text, millis) in [("5s", 5000), ("500ms", 500), ("2m", 120_000), ("3", 3000), ("0.5", 500)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "-5s", "soon", "-1", "inf"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
