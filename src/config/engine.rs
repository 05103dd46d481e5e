//! The address of a worker's engine: as it is on the host, and as the guest is told.

use iii_protocol::engine::Engine;

/// Schemes an engine is spoken to with, and their own ports.
const SCHEMES: &[(&str, u16)] = &[("ws", 80), ("wss", 443), ("http", 80), ("https", 443)];
/// Variables of `config:` that choose the engine; the first one that is set counts. Both are also what the guest is
/// told in.
pub const ENGINE_VARIABLES: [&str; 2] = ["III_ENGINE_URL", "III_URL"];

/// `ws://user:password@host:port/path?query`, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineUrl {
    scheme: String,
    /// With the `@`; empty if there are none.
    credentials: String,
    engine: Engine,
    /// Path, query and fragment, as written.
    rest: String,
}

impl Default for EngineUrl {
    fn default() -> EngineUrl {
        let (scheme, credentials, rest) = ("ws".to_owned(), String::new(), String::new());
        EngineUrl { scheme, credentials, engine: Engine::default(), rest }
    }
}

impl EngineUrl {
    /// Reads one; the error names the fault and never the credentials.
    pub fn parse(text: &str) -> Result<EngineUrl, String> {
        let Some((scheme, after)) = text.trim().split_once("://") else {
            return Err(format!("it does not begin with a scheme ({})", schemes()));
        };
        let Some((_, own_port)) = SCHEMES.iter().find(|(word, _)| word.eq_ignore_ascii_case(scheme)) else {
            return Err(format!("`{}://` is none of the schemes {}", scheme.escape_debug(), schemes()));
        };
        let end = after.find(['/', '?', '#']).unwrap_or(after.len());
        let (authority, rest) = after.split_at(end);
        let (credentials, place) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
        let (host, port) = match place.strip_prefix('[') {
            Some(bracketed) => {
                let Some((host, port)) = bracketed.split_once(']') else {
                    return Err(format!("`{}` has no closing bracket", place.escape_debug()));
                };
                if host.parse::<std::net::Ipv6Addr>().is_err() {
                    return Err(format!("`{}` is no IPv6 address", host.escape_debug()));
                }
                (host, port)
            }
            None => place.split_at(place.find(':').unwrap_or(place.len())),
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => *own_port,
            // A colon with nothing behind it is allowed in a URL.
            Some("") => *own_port,
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => match digits.parse() {
                Ok(port) if port > 0 => port,
                _ => return Err(format!("`{digits}` is no port: expected 1 to 65535")),
            },
            _ => return Err(format!("`{}` is no port: expected 1 to 65535", port.escape_debug())),
        };
        check_host(host)?;
        if rest.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err("there is white space or a control character in it".to_owned());
        }
        Ok(EngineUrl {
            scheme: scheme.to_owned(),
            credentials: credentials.to_owned(),
            engine: Engine { host: host.to_owned(), port },
            rest: rest.to_owned(),
        })
    }

    /// Where the host finds it.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Where the guest finds it: the same, but on its own loopback.
    pub fn in_guest(&self) -> String {
        let EngineUrl { scheme, credentials, engine, rest } = self;
        format!("{scheme}://{credentials}localhost:{}{rest}", engine.port)
    }
}

fn schemes() -> String {
    SCHEMES.iter().map(|(word, _)| format!("{word}://")).collect::<Vec<_>>().join(", ")
}

fn check_host(host: &str) -> Result<(), String> {
    if host.is_empty() {
        return Err("it names no host".to_owned());
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    match host.chars().find(|c| !allowed(*c)) {
        Some(wrong) => Err(format!("a host's name has no `{}`", wrong.escape_debug())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_guest_finds_its_engine_on_its_own_loopback_and_the_rest_is_kept() {
        for (text, engine, in_guest) in [
            ("ws://localhost:49134", "localhost:49134", "ws://localhost:49134"),
            ("ws://localhost:49134/", "localhost:49134", "ws://localhost:49134/"),
            ("ws://10.0.0.5:5000/a?w=x#y", "10.0.0.5:5000", "ws://localhost:5000/a?w=x#y"),
            ("ws://u:p@ss@engine.lan", "engine.lan:80", "ws://u:p@ss@localhost:80"),
            ("wss://engine.example.com?k=v", "engine.example.com:443", "wss://localhost:443?k=v"),
            ("https://[2001:db8::1]:8443/x", "[2001:db8::1]:8443", "https://localhost:8443/x"),
            ("http://[::1]", "[::1]:80", "http://localhost:80"),
            ("WS://Host:1", "Host:1", "WS://localhost:1"),
            (" ws://h:/ ", "h:80", "ws://localhost:80/"),
        ] {
            let url = EngineUrl::parse(text).unwrap();
            assert_eq!((url.engine().to_string().as_str(), url.in_guest().as_str()), (engine, in_guest));
        }
        assert_eq!(EngineUrl::parse("ws://localhost:49134").unwrap(), EngineUrl::default());
    }

    #[test]
    fn what_is_no_engine_is_told_without_its_credentials() {
        for (text, fault) in [
            ("", "scheme"),
            ("localhost:49134", "scheme"),
            ("tcp://localhost:1", "`tcp://` is none of the schemes ws://, wss://, http://, https://"),
            ("ws://", "names no host"),
            ("ws:///path", "names no host"),
            ("ws://:49134", "names no host"),
            ("ws://u:secret@:1", "names no host"),
            ("ws://h:0", "`0` is no port"),
            ("ws://h:65536", "`65536` is no port"),
            ("ws://h:+1", "no port"),
            ("ws://u:secret@h:x", "`:x` is no port"),
            ("ws://[::1:80", "no closing bracket"),
            ("ws://[h]:80", "`h` is no IPv6 address"),
            ("ws://[::1]80", "no port"),
            ("ws://a b:1", "has no ` `"),
            ("ws://h/a b", "white space"),
        ] {
            let error = EngineUrl::parse(text).expect_err(text);
            assert!(error.contains(fault) && !error.contains("secret"), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_was_read_is_read_again_in_the_guest(text in "(ws|https)://([a-z]{1,3}@)?[a-z.]{1,9}(:[1-9][0-9]{0,3})?(/[!-~]{0,9})?") {
            let url = EngineUrl::parse(&text).unwrap();
            let again = EngineUrl::parse(&url.in_guest()).unwrap();
            prop_assert_eq!(again.engine().port, url.engine().port);
            prop_assert_eq!(again.in_guest(), url.in_guest());
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,40}|(ws://)?[\\[\\]@:/0-9a-z]{0,20}") {
            let _ = EngineUrl::parse(&text);
        }
    }
}
