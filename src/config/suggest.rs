//! "did you mean ...?"

/// The candidate that a mistyped word most likely stands for, if one is near enough to be worth saying.
pub fn suggest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase().replace('-', "_");
    let limit = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| {
            let plain = candidate.to_lowercase().replace('-', "_");
            let extended = plain.len() >= 3 && word.starts_with(&plain);
            let distance = strsim::damerau_levenshtein(&word, &plain);
            (if extended { distance.min(limit) } else { distance }, candidate)
        })
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::suggest;

    #[test]
    fn a_near_miss_is_suggested_and_a_far_one_is_not() {
        let keys = ["name", "image", "worker_path", "config", "resources", "restart", "stop_timeout"];
        for (typed, meant) in [
            ("resorces", Some("resources")),
            ("imgae", Some("image")),
            ("Image", Some("image")),
            ("worker-path", Some("worker_path")),
            ("stoptimeout", Some("stop_timeout")),
            ("stop_timeout_seconds", Some("stop_timeout")),
            ("volumes", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(suggest(typed, keys), meant, "{typed}");
        }
    }
}
