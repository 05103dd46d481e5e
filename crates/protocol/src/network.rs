//! What a worker's network may do. Config, daemon, shim and guest share these words.
//!
//! A machine has one network device. Behind it is a stack of the shim's own, which answers for every address
//! outside: it opens a socket of the host for what the [`Egress`] policy allows, and refuses the rest.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

/// The guest's IPv4 address; all machines have the same, each in a network of its own. RFC 2544 sets the range aside
/// for benchmarks, so that it meets nobody's LAN.
pub const GUEST_IPV4: Ipv4Addr = Ipv4Addr::new(198, 19, 249, 2);
/// The gateway, which also answers DNS. With a policy that allows the host's loopback, this address leads there.
pub const GATEWAY_IPV4: Ipv4Addr = Ipv4Addr::new(198, 19, 249, 1);
/// Prefix length of both.
pub const IPV4_PREFIX: u8 = 30;
/// The guest's IPv6 address, a unique local one (RFC 4193).
pub const GUEST_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd69, 0x6969, 0x6969, 0, 0, 0, 0, 2);
/// The gateway's IPv6 address; as [`GATEWAY_IPV4`].
pub const GATEWAY_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd69, 0x6969, 0x6969, 0, 0, 0, 0, 1);
/// Prefix length of both.
pub const IPV6_PREFIX: u8 = 64;
/// The guest's hardware address, locally administered.
pub const GUEST_MAC: [u8; 6] = [0x02, 0x69, 0x69, 0x69, 0x00, 0x02];
/// The gateway's.
pub const GATEWAY_MAC: [u8; 6] = [0x02, 0x69, 0x69, 0x69, 0x00, 0x01];
/// Bytes of the largest IP packet on the link. No wire is behind it, so large is fast.
pub const MTU: u16 = 65520;
/// The guest's name for the host, where the policy lets it get there.
pub const HOST_NAME: &str = "host.iii.internal";

/// The network of one worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// What the guest may reach.
    pub egress: Egress,
    /// What of the guest can be reached from outside.
    pub ports: Vec<PublishedPort>,
}

/// What the guest may reach. Whatever it says, the guest reaches the gateway's DNS (but for `none`) and its engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "policy", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Egress {
    /// Nothing, not even names.
    None,
    /// The internet: every address that is routed there, and no private, local or special one.
    Public,
    /// Everything the host reaches, its own loopback (by the gateway's address) included.
    All,
    /// A refusal wins over a permission. With permissions only those go through; with refusals alone everything
    /// else that is public does.
    Rules {
        /// What may be reached; empty means what is public.
        allow: Vec<Rule>,
        /// What may not.
        deny: Vec<Rule>,
    },
}

/// One line of `allow:` or `deny:`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Where to.
    pub to: Destination,
    /// Only these ports; nothing means all, and what has no ports.
    pub ports: Option<PortRange>,
}

/// Where a [`Rule`] leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Destination {
    /// Every address (`*`); as a permission, every public one.
    Any,
    /// Addresses of a network. A permission opens it even where it is private; 127.0.0.0/8 or ::1 means the host's
    /// loopback by way of the gateway's address.
    Net {
        /// First address.
        address: IpAddr,
        /// Prefix length.
        prefix: u8,
    },
    /// Addresses that the gateway's DNS gave the guest for this name, for as long as it said they are good. A
    /// permission never opens an address that is not public.
    Name {
        /// Lower case, without a dot at the end; `*.example.com` means everything below it, at any depth.
        name: String,
    },
}

/// Ports, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

/// One port of the guest that the host answers on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedPort {
    /// Where the host listens; loopback unless the user says otherwise.
    pub host: SocketAddr,
    /// The guest's port.
    pub guest: u16,
    /// TCP or UDP.
    pub transport: Transport,
}

/// What carries a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        })
    }
}

/// A worker's network when its entry says nothing: the internet, and no port of its own.
impl Default for Network {
    fn default() -> Network {
        Network { egress: Egress::Public, ports: Vec::new() }
    }
}

/// As one writes it in config.yaml: `public`, `allow example.com:443, deny 10.0.0.0/8`.
impl std::fmt::Display for Egress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (allow, deny) = match self {
            Egress::None => return f.write_str("none"),
            Egress::Public => return f.write_str("public"),
            Egress::All => return f.write_str("all"),
            Egress::Rules { allow, deny } if allow.is_empty() && deny.is_empty() => {
                return f.write_str("public");
            }
            Egress::Rules { allow, deny } => (allow, deny),
        };
        let mut between = "";
        for (word, rules) in [("allow", allow), ("deny", deny)] {
            for rule in rules {
                write!(f, "{between}{word} {rule}")?;
                between = ", ";
            }
        }
        Ok(())
    }
}

/// As one writes it in config.yaml: `[2001:db8::/32]:443`, `*.example.com`.
impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.to, self.ports) {
            (to @ Destination::Net { address: IpAddr::V6(_), .. }, Some(ports)) => {
                write!(f, "[{to}]:{ports}")
            }
            (to, Some(ports)) => write!(f, "{to}:{ports}"),
            (to, None) => to.fmt(f),
        }
    }
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Destination::Any => f.write_str("*"),
            Destination::Name { name } => f.write_str(name),
            Destination::Net { address: IpAddr::V4(address), prefix: 32 } => address.fmt(f),
            Destination::Net { address: IpAddr::V6(address), prefix: 128 } => address.fmt(f),
            Destination::Net { address, prefix } => write!(f, "{address}/{prefix}"),
        }
    }
}

/// `443`, `8000-8010`.
impl std::fmt::Display for PortRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.first, self.last) {
            (first, last) if first == last => first.fmt(f),
            (first, last) => write!(f, "{first}-{last}"),
        }
    }
}

/// `127.0.0.1:8080->80/tcp`, as Docker shows it.
impl std::fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}->{}/{}", self.host, self.guest, self.transport)
    }
}
