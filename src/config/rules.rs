//! One rule of `egress:` as text: an address, a network or a name, and ports behind it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use iii_protocol::network::{Destination, HOST_NAME, PortRange, Rule};

/// Longest name and label of the domain name system.
const MAX_NAME_CHARS: usize = 253;
const MAX_LABEL_CHARS: usize = 63;

/// `10.0.0.0/8`, `[2001:db8::/32]:443`, `*.example.com:8000-8010`, `*`.
pub(super) fn rule(text: &str) -> Result<Rule, String> {
    let text = text.trim();
    if let Some((scheme, rest)) = text.split_once("://") {
        let host = rest.split('/').next().unwrap_or(rest);
        return Err(format!("a rule has no `{}://`; did you mean `{host}`?", scheme.escape_debug()));
    }
    let (place, ports) = match text.strip_prefix('[') {
        Some(inside) => {
            let Some((place, after)) = inside.split_once(']') else {
                return Err(format!("`{}` has no closing bracket", text.escape_debug()));
            };
            let ports = match after.strip_prefix(':') {
                Some(ports) => Some(ports),
                None if after.is_empty() => None,
                None => return Err(format!("expected `:PORT` after the bracket, found `{after}`")),
            };
            if place.parse::<Ipv6Addr>().is_err() && !place.contains('/') {
                return Err(format!("`{}` is no IPv6 address", place.escape_debug()));
            }
            (place, ports)
        }
        // An IPv6 address without brackets has no port.
        None if text.matches(':').count() > 1 => (text, None),
        None => match text.split_once(':') {
            Some((place, ports)) => (place, Some(ports)),
            None => (text, None),
        },
    };
    Ok(Rule { to: destination(place)?, ports: ports.map(port_range).transpose()? })
}

/// `443` or `8000-8010`.
pub(super) fn port_range(text: &str) -> Result<PortRange, String> {
    let wrong = || format!("`{}` is no port: expected 1 to 65535, or `FIRST-LAST`", text.escape_debug());
    let port = |text: &str| match text.parse::<u16>() {
        Ok(port) if port > 0 && text.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
        _ => Err(wrong()),
    };
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    if first > last {
        return Err(format!("`{text}` runs backwards; did you mean `{last}-{first}`?"));
    }
    Ok(PortRange { first, last })
}

fn destination(text: &str) -> Result<Destination, String> {
    if text == "*" {
        return Ok(Destination::Any);
    }
    if let Some((address, prefix)) = text.split_once('/') {
        let Ok(address) = address.parse::<IpAddr>() else {
            let what = address.escape_debug();
            return Err(format!("`{what}` is no address: expected a network such as `10.0.0.0/8`"));
        };
        let most = if address.is_ipv4() { 32 } else { 128 };
        let digits = prefix.bytes().all(|b| b.is_ascii_digit());
        let prefix = prefix.parse::<u8>().ok().filter(|prefix| digits && *prefix <= most);
        let Some(prefix) = prefix else {
            return Err(format!("expected a prefix length from 0 to {most} behind the `/` of `{text}`"));
        };
        let first = first_address(address, prefix);
        if first != address {
            return Err(format!("`{text}` begins in the middle; did you mean `{first}/{prefix}`?"));
        }
        return net(first, prefix);
    }
    match text.parse::<IpAddr>() {
        Ok(address) => net(address, if address.is_ipv4() { 32 } else { 128 }),
        Err(_) => name(text).map(|name| Destination::Name { name }),
    }
}

fn net(address: IpAddr, prefix: u8) -> Result<Destination, String> {
    match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Err(format!("`{v6}` is an IPv4 address; did you mean `{}`?", v6.to_canonical()))
        }
        _ => Ok(Destination::Net { address, prefix }),
    }
}

/// The first address of the network that `address` is in.
fn first_address(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            Ipv4Addr::from(u32::from(v4) & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            Ipv6Addr::from(u128::from(v6) & mask).into()
        }
    }
}

fn name(text: &str) -> Result<String, String> {
    let shown = text.escape_debug();
    let lower = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let plain = lower.strip_prefix("*.").unwrap_or(&lower);
    if plain.contains('*') {
        return Err(format!("`{shown}`: a `*` stands in front, as in `*.example.com`, or alone"));
    }
    if !plain.is_ascii() {
        return Err(format!("`{shown}`: write such a name in its ASCII form (`xn--...`)"));
    }
    let label = |label: &str| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        (1..=MAX_LABEL_CHARS).contains(&label.len())
            && label.bytes().all(allowed)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_name = plain.len() <= MAX_NAME_CHARS && plain.split('.').all(label);
    // No name ends in a number, so this is an address that was mistyped.
    let numeric = plain.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    if !is_name || numeric {
        return Err(format!("`{shown}` is no address, no network and no name"));
    }
    if plain == HOST_NAME || plain == "localhost" || plain.ends_with(".localhost") {
        return Err(format!("`{shown}` is this host, and rules know it by its address: write `127.0.0.1`"));
    }
    Ok(lower)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rules_are_read_as_they_are_shown() {
        for text in [
            "*",
            "*:443",
            "10.0.0.0/8",
            "0.0.0.0/0",
            "::/0",
            "1.2.3.4",
            "1.2.3.4:22",
            "127.0.0.0/8:8000-8010",
            "2001:db8::/32",
            "::1",
            "[::1]:443",
            "[2001:db8::/32]:1-65535",
            "api.example.com",
            "*.example.com:443",
            "_srv.a-b.example",
            "intranet",
        ] {
            assert_eq!(rule(text).map(|rule| rule.to_string()).as_deref(), Ok(text));
        }
        for (text, same) in [
            ("API.Example.com.", "api.example.com"),
            (" 1.2.3.4/32 ", "1.2.3.4"),
            ("[::1]", "::1"),
            ("1.2.3.4:443-443", "1.2.3.4:443"),
        ] {
            assert_eq!(rule(text).map(|rule| rule.to_string()).as_deref(), Ok(same));
        }
    }

    #[test]
    fn what_is_no_rule_says_what_was_meant() {
        for (text, fault) in [
            ("", "no address, no network and no name"),
            ("https://api.example.com/x", "did you mean `api.example.com`?"),
            ("10.0.0.5/8", "did you mean `10.0.0.0/8`?"),
            ("2001:db8::1/32", "did you mean `2001:db8::/32`?"),
            ("10.0.0.0/33", "from 0 to 32"),
            ("::/129", "from 0 to 128"),
            ("10.0.0.0/+8", "from 0 to 32"),
            ("example.com/8", "`example.com` is no address"),
            ("::ffff:1.2.3.4", "did you mean `1.2.3.4`?"),
            ("1.2.3", "no address, no network and no name"),
            ("1.2.3.400", "no address, no network and no name"),
            ("a..b", "no address, no network and no name"),
            ("-a.b", "no address, no network and no name"),
            ("a.*.b", "stands in front"),
            ("*example.com", "stands in front"),
            ("bücher.example", "ASCII form"),
            ("localhost", "write `127.0.0.1`"),
            ("host.iii.internal:80", "write `127.0.0.1`"),
            ("1.2.3.4:0", "no port"),
            ("1.2.3.4:65536", "no port"),
            ("1.2.3.4:", "no port"),
            ("1.2.3.4:+1", "no port"),
            ("1.2.3.4:20-10", "did you mean `10-20`?"),
            ("[::1", "closing bracket"),
            ("[::1]443", "`:PORT`"),
            ("[1.2.3.4]:443", "no IPv6 address"),
        ] {
            let error = rule(text).expect_err(text);
            assert!(error.contains(fault), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_and_reads_back(text in ".{0,30}|[*\\[\\]:/.0-9a-f-]{0,30}") {
            if let Ok(read) = rule(&text) {
                prop_assert_eq!(rule(&read.to_string()), Ok(read));
            }
        }
    }
}
