//! Published ports for people: ranges as ranges.

use std::net::{IpAddr, Ipv4Addr};

use iii_protocol::network::{PortRange, PublishedPort, Transport};

/// How many of a worker's runs of ports a table shows.
const MOST_IN_SHORT: usize = 3;

/// Neighbouring ports that lead to neighbouring ports.
struct Run {
    first: PublishedPort,
    last: PublishedPort,
}

fn runs(ports: &[PublishedPort]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for &port in ports {
        match runs.last_mut() {
            Some(run) if follows(&run.last, &port) => run.last = port,
            _ => runs.push(Run { first: port, last: port }),
        }
    }
    runs
}

fn follows(a: &PublishedPort, b: &PublishedPort) -> bool {
    a.transport == b.transport
        && a.host.ip() == b.host.ip()
        && a.host.port().checked_add(1) == Some(b.host.port())
        && a.guest.checked_add(1) == Some(b.guest)
}

impl Run {
    fn host(&self) -> PortRange {
        PortRange { first: self.first.host.port(), last: self.last.host.port() }
    }

    fn guest(&self) -> PortRange {
        PortRange { first: self.first.guest, last: self.last.guest }
    }

    fn in_full(&self) -> String {
        let address = match self.first.host.ip() {
            IpAddr::V6(address) => format!("[{address}]"),
            IpAddr::V4(address) => address.to_string(),
        };
        format!("{address}:{}->{}/{}", self.host(), self.guest(), self.first.transport)
    }

    /// Without what is usual: loopback and TCP.
    fn in_short(&self) -> String {
        let full = self.in_full();
        let usual = format!("{}:", Ipv4Addr::LOCALHOST);
        let text = full.strip_prefix(&usual).unwrap_or(&full);
        match self.first.transport {
            Transport::Tcp => text.trim_end_matches("/tcp").to_owned(),
            Transport::Udp => text.to_owned(),
        }
    }
}

/// `127.0.0.1:8080->80/tcp, ...`.
pub(super) fn ports_in_full(ports: &[PublishedPort]) -> String {
    runs(ports).iter().map(Run::in_full).collect::<Vec<_>>().join(", ")
}

/// `8080->80, 53->53/udp`; `-` for none.
pub(super) fn ports_in_short(ports: &[PublishedPort]) -> String {
    let runs = runs(ports);
    let mut shown: Vec<_> = runs.iter().take(MOST_IN_SHORT).map(Run::in_short).collect();
    if runs.len() > MOST_IN_SHORT {
        shown.push(format!("+{}", runs.len() - MOST_IN_SHORT));
    }
    if shown.is_empty() { "-".to_owned() } else { shown.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(host: &str, guest: u16, transport: Transport) -> PublishedPort {
        PublishedPort { host: host.parse().unwrap(), guest, transport }
    }

    #[test]
    fn ranges_are_shown_as_ranges_and_what_is_usual_is_left_out() {
        let mut ports: Vec<_> =
            (9000..9003).map(|n| port(&format!("127.0.0.1:{n}"), n - 1000, Transport::Tcp)).collect();
        ports.push(port("127.0.0.1:53", 53, Transport::Udp));
        ports.push(port("[::1]:80", 8080, Transport::Tcp));
        assert_eq!(
            ports_in_full(&ports),
            "127.0.0.1:9000-9002->8000-8002/tcp, 127.0.0.1:53->53/udp, [::1]:80->8080/tcp"
        );
        assert_eq!(ports_in_short(&ports), "9000-9002->8000-8002, 53->53/udp, [::1]:80->8080");
        ports.push(port("0.0.0.0:1", 1, Transport::Tcp));
        assert!(ports_in_short(&ports).ends_with("[::1]:80->8080, +1"));
        assert_eq!(ports_in_short(&[]), "-");
    }
}
