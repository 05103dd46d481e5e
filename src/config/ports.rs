//! One line of `ports:` as text, as Docker users write it, and who has which port already.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use iii_protocol::network::{PublishedPort, Transport};

use super::error::Problem;
use super::rules::port_range;
use super::tree::Span;

/// Most ports one worker publishes: each is a socket of its shim.
pub(super) const MAX_PORTS: usize = 256;

/// `8080:80`, `127.0.0.1:53:53/udp`, `[::1]:9000-9010:9000-9010`, `80`; a range becomes its ports.
pub(super) fn ports(text: &str) -> Result<Vec<PublishedPort>, String> {
    let text = text.trim();
    let (places, transport) = match text.rsplit_once('/') {
        None => (text, Transport::Tcp),
        Some((places, word)) => (places, transport(word)?),
    };
    let (address, ports) = split_address(places)?;
    let Some(address) = address else {
        return pairs(Ipv4Addr::LOCALHOST.into(), ports, transport);
    };
    if !ports.contains(':') {
        return Err(format!(
            "behind an address there are two ports, the host's and the worker's; did you mean `{places}:{ports}`?"
        ));
    }
    pairs(address, ports, transport)
}

fn transport(word: &str) -> Result<Transport, String> {
    match word.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Transport::Tcp),
        "udp" => Ok(Transport::Udp),
        _ => Err(format!("`{}` is neither `tcp` nor `udp`", word.escape_debug())),
    }
}

fn split_address(text: &str) -> Result<(Option<IpAddr>, &str), String> {
    let expected = "expected `HOST:WORKER`, `ADDRESS:HOST:WORKER` or one port for both sides";
    if let Some(inside) = text.strip_prefix('[') {
        let Some((address, ports)) = inside.split_once("]:") else {
            return Err(format!("{expected}, found `{}`", text.escape_debug()));
        };
        let address = address.parse::<Ipv6Addr>();
        return match address {
            Ok(address) => Ok((Some(address.into()), ports)),
            Err(_) => Err(format!("there is no IPv6 address in the brackets of `{}`", text.escape_debug())),
        };
    }
    match text.matches(':').count() {
        0 => Ok((None, text)),
        1 => match text.split_once(':') {
            Some((address, port)) if address.parse::<Ipv4Addr>().is_ok() => Ok((address.parse().ok(), port)),
            _ => Ok((None, text)),
        },
        2 => {
            let (address, ports) = text.split_once(':').unwrap_or((text, ""));
            match address.parse::<Ipv4Addr>() {
                Ok(address) => Ok((Some(address.into()), ports)),
                Err(_) if address == "localhost" => {
                    Err(format!("an address is expected; did you mean `127.0.0.1:{ports}`?"))
                }
                Err(_) => Err(format!("`{}` is no address of this host", address.escape_debug())),
            }
        }
        _ => Err(format!("{expected}, found `{}`; an IPv6 address goes into brackets", text.escape_debug())),
    }
}

fn pairs(address: IpAddr, ports: &str, transport: Transport) -> Result<Vec<PublishedPort>, String> {
    let (host, guest) = ports.split_once(':').unwrap_or((ports, ports));
    let (host, guest) = (port_range(host)?, port_range(guest)?);
    let (of_host, of_guest) = (host.last - host.first, guest.last - guest.first);
    if of_host != of_guest {
        let (of_host, of_guest) = (u32::from(of_host) + 1, u32::from(of_guest) + 1);
        return Err(format!(
            "the ranges differ in length: {of_host} ports of the host, {of_guest} of the worker"
        ));
    }
    if usize::from(of_host) >= MAX_PORTS {
        return Err(format!(
            "{} ports are more than the {MAX_PORTS} a worker may publish",
            u32::from(of_host) + 1
        ));
    }
    let published = |(host, guest)| PublishedPort { host: SocketAddr::new(address, host), guest, transport };
    Ok((host.first..=host.last).zip(guest.first..=guest.last).map(published).collect())
}

/// Which ports of the host the workers read so far have.
#[derive(Debug, Default)]
pub(super) struct Taken(HashMap<u16, Vec<Holder>>);

#[derive(Debug)]
struct Holder {
    port: PublishedPort,
    worker: String,
    span: Span,
}

impl Taken {
    /// Notes one more; the error shows who has it.
    pub(super) fn take(&mut self, port: PublishedPort, worker: &str, span: Span) -> Result<(), Problem> {
        let holders = self.0.entry(port.host.port()).or_default();
        if let Some(holder) = holders.iter().find(|holder| overlap(&holder.port, &port)) {
            let what = format!("port {} ({})", port.host, port.transport);
            let message = match holder.worker == worker {
                true => format!("{what} is published twice"),
                false => format!("{what} is published by worker `{}` already", holder.worker),
            };
            return Err(Problem::at(span, message).also(holder.span, "first here"));
        }
        holders.push(Holder { port, worker: worker.to_owned(), span });
        Ok(())
    }
}

/// Whether the host could not listen for both.
fn overlap(a: &PublishedPort, b: &PublishedPort) -> bool {
    // Linux takes IPv4 too on `[::]`.
    let has = |x: IpAddr, y: IpAddr| x == y || x.is_unspecified() && (x.is_ipv6() || y.is_ipv4());
    let (x, y) = (a.host.ip(), b.host.ip());
    a.transport == b.transport && a.host.port() == b.host.port() && (has(x, y) || has(y, x))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(text: &str) -> Result<String, String> {
        Ok(ports(text)?.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn ports_are_read_as_docker_users_write_them() {
        for (text, want) in [
            ("80", "127.0.0.1:80->80/tcp"),
            ("8080:80", "127.0.0.1:8080->80/tcp"),
            ("8080:80/udp", "127.0.0.1:8080->80/udp"),
            ("53/UDP", "127.0.0.1:53->53/udp"),
            ("127.0.0.1:53:53/udp", "127.0.0.1:53->53/udp"),
            ("0.0.0.0:80:80", "0.0.0.0:80->80/tcp"),
            ("[::1]:8080:80", "[::1]:8080->80/tcp"),
            ("[::]:8080:80/tcp", "[::]:8080->80/tcp"),
            (
                "9000-9002:8000-8002",
                "127.0.0.1:9000->8000/tcp 127.0.0.1:9001->8001/tcp 127.0.0.1:9002->8002/tcp",
            ),
            ("10.0.0.1:7-8:7-8", "10.0.0.1:7->7/tcp 10.0.0.1:8->8/tcp"),
            ("65535", "127.0.0.1:65535->65535/tcp"),
        ] {
            assert_eq!(shown(text).as_deref(), Ok(want), "{text}");
        }
    }

    #[test]
    fn what_is_no_port_says_what_was_expected() {
        for (text, fault) in [
            ("", "no port"),
            ("web", "`web` is no port"),
            ("0:80", "`0` is no port"),
            ("8080:", "`` is no port"),
            ("70000", "`70000` is no port"),
            ("80/sctp", "neither `tcp` nor `udp`"),
            ("127.0.0.1:80", "did you mean `127.0.0.1:80:80`?"),
            ("[::1]:80", "did you mean `[::1]:80:80`?"),
            ("127.0.0.1::80", "`` is no port"),
            ("localhost:8080:80", "did you mean `127.0.0.1:8080:80`?"),
            ("myhost:8080:80", "`myhost` is no address of this host"),
            ("::1:8080:80", "goes into brackets"),
            ("[::1]8080:80", "expected `HOST:WORKER`"),
            ("[nix]:8080:80", "no IPv6 address"),
            ("9000-9010:9000-9009", "11 ports of the host, 10 of the worker"),
            ("9010-9000:1-11", "did you mean `9000-9010`?"),
            ("1-65535:1-65535", "65535 ports are more than the 256"),
        ] {
            let error = ports(text).expect_err(text);
            assert!(error.contains(fault), "{text}: {error}");
        }
    }

    #[test]
    fn a_port_that_one_listener_has_is_not_another_ones() {
        let at = Span { start: 0, end: 1 };
        for (a, b, both) in [
            ("80", "80", false),
            ("80", "81", true),
            ("80", "80/udp", true),
            ("80", "[::1]:80:80", true),
            ("80", "10.0.0.1:80:80", true),
            ("80", "0.0.0.0:80:1", false),
            ("0.0.0.0:80:1", "80", false),
            ("[::]:80:1", "[::1]:80:2", false),
            ("0.0.0.0:80:1", "[::1]:80:1", true),
            ("0.0.0.0:80:1", "[::]:80:1", false),
            ("80", "[::]:80:1", false),
        ] {
            let mut taken = Taken::default();
            taken.take(ports(a).unwrap()[0], "w", at).unwrap();
            assert_eq!(taken.take(ports(b).unwrap()[0], "v", at).is_ok(), both, "{a} and {b}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,30}|[\\[\\]:/.0-9udp-]{0,30}") {
            if let Ok(ports) = ports(&text) {
                prop_assert!((1..=MAX_PORTS).contains(&ports.len()));
            }
        }
    }
}
