//! The grammar of references, as Docker's `reference` package has it (distribution/reference, `regexp.go`).
//!
//! ```text
//! reference = [domain "/"] component *("/" component) [":" tag] ["@" digest]
//! domain    = label *("." label) [":" digits]         label = alphanumerics, "-" inside only
//! component = word *(("." / "_" / "__" / *"-") word)  word = 1*(lower case / digit)
//! tag       = (alphanumeric / "_") *127(alphanumeric / "_" / "." / "-")
//! ```
//! The registry client has a parser too: one regular expression whose automaton takes 12 MiB, more than
//! all else the daemon needs. A property test compares the two.

/// A reference taken apart, with Docker's shorthands filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Parts<'a> {
    /// `docker.io`, `localhost:5000`...
    pub(super) registry: &'a str,
    /// `library/busybox`, `org/worker`...
    pub(super) repository: String,
    /// What follows the last `:`.
    pub(super) tag: Option<&'a str>,
    /// What follows the `@`; its form is not looked at.
    pub(super) digest: Option<&'a str>,
}

/// The registry of a reference that names none.
pub(super) const DOCKER_HUB: &str = "docker.io";
/// Its name of old.
const DOCKER_HUB_LEGACY: &str = "index.docker.io";
/// Where its own images are.
const DOCKER_HUB_LIBRARY: &str = "library";
/// The longest tag, in characters.
const MAX_TAG: usize = 128;

/// Takes `text` apart; `None` when it does not follow the grammar.
pub(super) fn scan(text: &str) -> Option<Parts<'_>> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    // A `:` in front of the last `/` is a port's.
    let last = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest[last..].split_once(':') {
        Some((component, tag)) => (&rest[..last + component.len()], Some(tag)),
        None => (rest, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return None;
    }
    let (first, others) = match name.split_once('/') {
        Some((first, others)) => (first, Some(others)),
        None => (name, None),
    };
    let begins_well = is_component(first) || (others.is_some() && is_domain(first));
    if !begins_well || !others.is_none_or(|others| others.split('/').all(is_component)) {
        return None;
    }
    let (registry, repository) = match others {
        Some(others) if first.contains(['.', ':']) || first == "localhost" => (first, others),
        _ => (DOCKER_HUB, name),
    };
    let registry = if registry == DOCKER_HUB_LEGACY { DOCKER_HUB } else { registry };
    let repository = match registry == DOCKER_HUB && !repository.contains('/') {
        true => format!("{DOCKER_HUB_LIBRARY}/{repository}"),
        false => repository.to_owned(),
    };
    Some(Parts { registry, repository, tag, digest })
}

fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let mut bytes = text.bytes();
    text.len() <= MAX_TAG
        && bytes.next().is_some_and(word)
        && bytes.all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
}

fn is_domain(text: &str) -> bool {
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    port.is_none_or(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
        && host.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        })
}

fn is_component(text: &str) -> bool {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    // Separators are what lies between two words: never at an end, and of one kind each.
    text.starts_with(word)
        && text.ends_with(word)
        && text.split(word).all(|gap| matches!(gap, "" | "." | "_" | "__") || gap.bytes().all(|b| b == b'-'))
}

#[cfg(test)]
mod tests {
    use oci_client::Reference;
    use proptest::prelude::*;

    use super::*;

    /// What the registry client makes of it; `None` when it refuses.
    fn theirs(text: &str) -> Option<Reference> {
        Reference::try_from(text).ok()
    }

    fn compare(text: &str) -> Result<(), TestCaseError> {
        match (scan(text), theirs(text)) {
            (Some(ours), Some(theirs)) => {
                prop_assert_eq!(ours.registry, theirs.registry(), "{}", text);
                prop_assert_eq!(&ours.repository, theirs.repository(), "{}", text);
                prop_assert_eq!(ours.digest, theirs.digest(), "{}", text);
                let tag = ours.tag.or(ours.digest.is_none().then_some("latest"));
                prop_assert_eq!(tag, theirs.tag(), "{}", text);
            }
            (None, None) => {}
            // The digest's form is not this grammar's business, nor is the length of the whole.
            (Some(ours), None) => {
                prop_assert!(ours.digest.is_some() || ours.repository.len() > 255, "{} is refused", text);
            }
            (None, Some(_)) => prop_assert!(false, "{} is a reference", text),
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn it_agrees_with_the_registry_client_on_any_text(text in "[ -~]{0,24}") {
            compare(&text)?;
        }

        #[test]
        fn it_agrees_with_the_registry_client_on_what_looks_like_a_reference(
            text in "([a-cA-C0-9._:-]{1,8}/){0,3}[a-c0-9._-]{1,8}(:[a-cA-C0-9._-]{0,6})?(@sha256:([0-9a-f]{64}|[0-9a-f]{4}))?"
        ) {
            compare(&text)?;
        }

        #[test]
        fn it_agrees_with_the_registry_client_on_real_ones(
            text in "((docker\\.io|index\\.docker\\.io|localhost|h:5000|a\\.b-c:1)/)?[a-c]{1,3}(([._]|__|-{1,3})[a-c1]{1,2}){0,2}(/x(([._]|__|-)y)?){0,2}(:[a-cA-Z_.]{1,5})?(@sha256:[0-9a-f]{64})?"
        ) {
            compare(&text)?;
        }
    }
}
