//! Durations and sizes as people read them.

use std::time::Duration;

/// The two largest units of a duration: `2.8s`, `41s`, `3m 12s`, `5h 2m`, `12d 1h`.
pub fn short_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds < 10 {
        return match duration.as_millis() {
            millis if millis < 1000 => format!("{millis}ms"),
            millis => format!("{}.{}s", millis / 1000, millis % 1000 / 100),
        };
    }
    let whole = humantime::format_duration(Duration::from_secs(seconds)).to_string();
    // Days first: humantime would say months and years, whose length nobody knows.
    let text =
        if seconds >= 86_400 { format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3600) } else { whole };
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// `512 B`, `3.4 MiB`, `16 GiB`.
pub fn short_bytes(bytes: u64) -> String {
    let text = indicatif::BinaryBytes(bytes).to_string();
    text.replace(".00 ", " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_shows_its_two_largest_units() {
        let show = |millis| short_duration(Duration::from_millis(millis));
        assert_eq!(show(0), "0ms");
        assert_eq!(show(999), "999ms");
        assert_eq!(show(2_849), "2.8s");
        assert_eq!(show(41_900), "41s");
        assert_eq!(show(192_000), "3m 12s");
        assert_eq!(show(180_000), "3m");
        assert_eq!(show(18_120_000 + 7_000), "5h 2m");
        assert_eq!(show(12 * 86_400_000 + 3_700_000), "12d 1h");
    }

    #[test]
    fn a_size_has_a_binary_unit() {
        assert_eq!(short_bytes(512), "512 B");
        assert_eq!(short_bytes(16 << 30), "16 GiB");
        assert_eq!(short_bytes(3_565_158), "3.40 MiB");
    }
}
