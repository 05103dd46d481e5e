//! Durations and sizes as people write them.

use std::time::Duration;

/// Longest duration that makes sense for any key; keeps deadlines far from overflow.
pub(crate) const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 3600);

/// `250ms`, `1m 30s`; a whole number alone means seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let parsed = if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        text.parse().ok().map(Duration::from_secs)
    } else {
        humantime::parse_duration(text).ok()
    };
    let expected = "expected a duration such as `10s`, `1m 30s` or `250ms`";
    match parsed {
        None => Err(format!("{expected}, found `{text}`")),
        Some(d) if d > MAX_DURATION => {
            Err(format!("{expected}, found `{text}`, which is longer than a year"))
        }
        Some(d) => Ok(d),
    }
}

/// `512MiB`, `2GiB` (also `2Gi` and `2G`, upper or lower case).
pub(crate) fn size(text: &str) -> Result<SizeText, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = (&text[..digits], text[digits..].trim_start());
    let expected = "expected a size such as `512MiB` or `2GiB`";
    let number: u64 = number.parse().map_err(|_| format!("{expected}, found `{text}`"))?;
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" => return Ok(SizeText::Bare(number)),
        "k" | "ki" | "kib" => 10,
        "m" | "mi" | "mib" => 20,
        "g" | "gi" | "gib" => 30,
        "t" | "ti" | "tib" => 40,
        short @ ("kb" | "mb" | "gb" | "tb") => {
            let letter = short[..1].to_ascii_uppercase();
            return Err(format!("`{text}` can be read in two ways; did you mean `{number}{letter}iB`?"));
        }
        _ => return Err(format!("{expected}, found `{text}`")),
    };
    match number.checked_mul(1 << shift) {
        Some(bytes) => Ok(SizeText::Bytes(bytes)),
        None => Err(format!("`{text}` is too large")),
    }
}

/// A size, with or without its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SizeText {
    /// With a unit.
    Bytes(u64),
    /// A number alone; what it counts is for the key to say.
    Bare(u64),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_and_without_a_unit() {
        for (text, ms) in
            [("10s", 10_000), ("10", 10_000), ("250ms", 250), ("1m 30s", 90_000), ("1h", 3_600_000), ("0", 0)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "ten", "-1", "1x", "2y", "99999999999999999999", "1.5.2s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_binary_and_ambiguous_units_are_refused() {
        for (text, bytes) in [
            ("1KiB", 1 << 10),
            ("512MiB", 512 << 20),
            ("2GiB", 2 << 30),
            ("2g", 2 << 30),
            ("2 Gi", 2 << 30),
            ("1T", 1 << 40),
        ] {
            assert_eq!(size(text), Ok(SizeText::Bytes(bytes)), "{text}");
        }
        assert_eq!(size("2048"), Ok(SizeText::Bare(2048)));
        assert_eq!(size("2GB").unwrap_err(), "`2GB` can be read in two ways; did you mean `2GiB`?");
        for text in ["", "GiB", "1.5GiB", "-1GiB", "2X", "99999999999TiB", "é"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
