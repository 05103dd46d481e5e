//! What a guest may reach: [`Egress`] applied to one destination. Pure; who asks brings the time, the names that DNS
//! gave, and the host's addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use iii_protocol::network::{
    Destination, Egress, GATEWAY_IPV4, GATEWAY_IPV6, GUEST_IPV4, GUEST_IPV6, PortRange, Rule,
};

use crate::pins::Pins;
use crate::special::{contains, judged, special};

/// Why something was refused; the word in parentheses of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Reason {
    /// RFC 1918 or a unique local IPv6 address.
    Private,
    /// The host's loopback.
    Loopback,
    /// An address of the host itself, other than loopback.
    Host,
    /// 169.254.0.0/16 or fe80::/10.
    LinkLocal,
    /// Where a cloud tells secrets of its machines.
    Metadata,
    /// Shared by the customers of one provider, 100.64.0.0/10.
    Cgnat,
    /// For many; nothing could come back.
    Multicast,
    /// Of no network that anybody could mean.
    Reserved,
    /// The worker's rules, or no network at all.
    Policy,
    /// Only names are allowed, and none of them leads to this address.
    NotResolved,
    /// A name led to an address that is not of the internet.
    Rebinding,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::Private => "private",
            Reason::Loopback => "loopback",
            Reason::Host => "host",
            Reason::LinkLocal => "link-local",
            Reason::Metadata => "metadata",
            Reason::Cgnat => "cgnat",
            Reason::Multicast => "multicast",
            Reason::Reserved => "reserved",
            Reason::Policy => "policy",
            Reason::NotResolved => "not-resolved",
            Reason::Rebinding => "rebinding",
        })
    }
}

/// The answer of [`judge`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Allowed {
        /// The address to dial on the host.
        host: IpAddr,
    },
    /// Refuse.
    Denied {
        /// Why.
        reason: Reason,
    },
}

/// What is known at the moment of the question.
#[derive(Debug, Clone, Copy)]
pub struct Knowledge<'a> {
    /// What DNS told the guest.
    pub pins: &'a Pins,
    /// Addresses of the host's interfaces.
    pub own: &'a [IpAddr],
    /// Now.
    pub now: Instant,
}

/// May the guest reach `to`? `port` is `None` for what has no ports (ICMP). Rules do not tell TCP from UDP, so neither
/// does this.
///
/// The gateway's address means the host's loopback. The host's other addresses are judged like its loopback too, but a
/// rule that names one exactly opens it. Multicast never goes out: nothing could come back.
#[must_use]
pub fn judge(egress: &Egress, knowledge: Knowledge<'_>, to: IpAddr, port: Option<u16>) -> Verdict {
    let (target, by_gateway) = match to {
        IpAddr::V4(GATEWAY_IPV4) => (IpAddr::V4(Ipv4Addr::LOCALHOST), true),
        IpAddr::V6(GATEWAY_IPV6) => (IpAddr::V6(Ipv6Addr::LOCALHOST), true),
        _ => (unmapped(to), false),
    };
    let inner = judged(target);
    let is_own = inner.iter().any(|address| knowledge.own.contains(address) && !address.is_loopback());
    let mut reason = special(target);
    if is_own && !by_gateway {
        reason = Some(Reason::Host);
    }
    let denied = |reason| Verdict::Denied { reason };
    let allowed = Verdict::Allowed { host: target };
    match reason {
        Some(reason @ Reason::Multicast) => return denied(reason),
        // To the host's kernel `0.0.0.0` and `::` are its loopback; the guest's own address never leaves the guest.
        Some(reason) if is_nobody(target, &inner) => return denied(reason),
        // The guest's loopback is its own, so nothing honest is sent there; ours has the gateway's address.
        Some(reason @ Reason::Loopback) if !by_gateway => return denied(reason),
        _ => {}
    }
    let asked = Asked { target, inner: &inner, reason, port, knowledge };
    match egress {
        Egress::None => denied(Reason::Policy),
        Egress::All => allowed,
        Egress::Public => reason.map_or(allowed, |reason| denied(asked.told(reason))),
        Egress::Rules { allow, deny } => {
            if deny.iter().any(|rule| asked.is_refused_by(rule)) {
                return denied(Reason::Policy);
            }
            if allow.iter().any(|rule| asked.is_permitted_by(rule)) {
                return allowed;
            }
            match reason {
                Some(reason) => denied(asked.told(reason)),
                None if allow.is_empty() => allowed,
                None if allow.iter().any(|rule| is_name(rule) && has_port(rule.ports, port)) => {
                    denied(Reason::NotResolved)
                }
                None => denied(Reason::Policy),
            }
        }
    }
}

/// Whether the gateway's DNS answers for this name (lower case, no dot at the end).
#[must_use]
pub fn may_ask(egress: &Egress, name: &str) -> bool {
    match egress {
        Egress::None => false,
        Egress::Public | Egress::All => true,
        Egress::Rules { allow, deny } => {
            let names = |rule: &Rule| matches!(&rule.to, Destination::Name { name: rule } if name_matches(rule, name));
            if deny.iter().any(|rule| rule.ports.is_none() && names(rule)) {
                return false;
            }
            allow.is_empty() || !allow.iter().all(is_name) || allow.iter().any(names)
        }
    }
}

/// Whether some permission or refusal is about this name, so that its addresses matter: (permission, refusal).
#[must_use]
pub fn is_ruled(egress: &Egress, name: &str) -> (bool, bool) {
    let names =
        |rule: &Rule| matches!(&rule.to, Destination::Name { name: rule } if name_matches(rule, name));
    match egress {
        Egress::Rules { allow, deny } => (allow.iter().any(names), deny.iter().any(names)),
        _ => (false, false),
    }
}

/// Whether a rule's name, which may begin with `*.`, covers this one.
#[must_use]
pub fn name_matches(rule: &str, name: &str) -> bool {
    match rule.strip_prefix("*.") {
        Some(parent) => name.strip_suffix(parent).is_some_and(|head| head.len() > 1 && head.ends_with('.')),
        None => rule == name,
    }
}

struct Asked<'a> {
    target: IpAddr,
    /// What decides about the target; several addresses only for what carries several.
    inner: &'a [IpAddr],
    reason: Option<Reason>,
    port: Option<u16>,
    knowledge: Knowledge<'a>,
}

impl Asked<'_> {
    /// The reason, or rather that a name led there.
    fn told(&self, reason: Reason) -> Reason {
        if self.knowledge.pins.is_rebound(self.target, self.knowledge.now) {
            Reason::Rebinding
        } else {
            reason
        }
    }

    fn is_permitted_by(&self, rule: &Rule) -> bool {
        has_port(rule.ports, self.port)
            && match &rule.to {
                Destination::Any => self.reason.is_none(),
                Destination::Net { address, prefix } => self.is_opened_by(*address, *prefix),
                Destination::Name { name } => {
                    self.reason.is_none()
                        && self.knowledge.pins.permits(self.target, name, self.knowledge.now)
                }
            }
    }

    fn is_opened_by(&self, net: IpAddr, prefix: u8) -> bool {
        match self.reason {
            // A network that merely happens to contain it (0.0.0.0/0) was not meant to open the host.
            Some(Reason::Loopback) => net.is_loopback() && self.is_within(net, prefix),
            Some(Reason::Host) => {
                let is_exact = self.inner == [net] && prefix == full(net);
                let loopback = match self.target {
                    IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
                    IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
                };
                is_exact || (net.is_loopback() && contains(net, prefix, loopback))
            }
            _ => self.is_within(net, prefix),
        }
    }

    /// All that the target carries is within.
    fn is_within(&self, net: IpAddr, prefix: u8) -> bool {
        self.inner.iter().all(|address| contains(net, prefix, *address))
    }

    fn is_refused_by(&self, rule: &Rule) -> bool {
        has_port(rule.ports, self.port)
            && match &rule.to {
                Destination::Any => true,
                Destination::Net { address, prefix } => {
                    self.inner.iter().chain([&self.target]).any(|inner| contains(*address, *prefix, *inner))
                }
                Destination::Name { name } => {
                    self.knowledge.pins.refuses(self.target, name, self.knowledge.now)
                }
            }
    }
}

/// Addresses that no rule opens.
fn is_nobody(target: IpAddr, inner: &[IpAddr]) -> bool {
    let is_guest = target == IpAddr::V4(GUEST_IPV4) || target == IpAddr::V6(GUEST_IPV6);
    is_guest || inner.iter().any(IpAddr::is_unspecified)
}

fn full(net: IpAddr) -> u8 {
    if net.is_ipv4() { 32 } else { 128 }
}

fn is_name(rule: &Rule) -> bool {
    matches!(rule.to, Destination::Name { .. })
}

/// A rule with ports says nothing about what has none.
fn has_port(ports: Option<PortRange>, port: Option<u16>) -> bool {
    ports.is_none_or(|range| port.is_some_and(|port| (range.first..=range.last).contains(&port)))
}

/// A mapped address is dialled as what it is.
fn unmapped(to: IpAddr) -> IpAddr {
    match to {
        IpAddr::V6(six) => six.to_ipv4_mapped().map_or(to, IpAddr::V4),
        IpAddr::V4(_) => to,
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
