//! Which addresses the gateway's DNS gave the guest, for which names, and until when. Pure: time is an argument.
//!
//! Only what the rules ask about is remembered: addresses of permitted names, addresses of refused names, and, for the
//! word in a report, addresses that are not of the internet although a public name led there (DNS rebinding).

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::policy::name_matches;

/// Addresses of permitted names that are remembered; beyond it, the one that ends soonest is forgotten.
pub const MAX_PINS: usize = 4096;
/// Addresses of refused names. They are never forgotten before their time: with this many, DNS fails instead.
pub const MAX_REFUSALS: usize = 4096;
/// Names remembered for one address.
pub const MAX_NAMES_OF_ADDRESS: usize = 16;
/// Addresses remembered only to report them as `rebinding`.
pub const MAX_REBOUND: usize = 256;
/// The longest time to live that is believed.
pub const MAX_TTL: Duration = Duration::from_hours(24);
/// A connection may begin this long after the answer's time is over: programs look up first and connect later.
pub const PIN_GRACE: Duration = Duration::from_secs(60);

/// Names of an address, each with the end of its time.
type Names = HashMap<String, Instant>;

/// What DNS told the guest.
#[derive(Debug, Default)]
pub struct Pins {
    permitted: HashMap<IpAddr, Names>,
    refused: HashMap<IpAddr, Names>,
    rebound: HashMap<IpAddr, Instant>,
}

/// There is no room to remember a refusal, so the guest must not learn the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

impl Pins {
    /// The guest learns that `address` belongs to `name`, which is permitted.
    pub fn permit(&mut self, address: IpAddr, name: &str, ttl: Duration, now: Instant) {
        if !self.permitted.contains_key(&address) && self.permitted.len() >= MAX_PINS {
            self.forget_old(now);
            if self.permitted.len() >= MAX_PINS {
                let soonest = self.permitted.iter().min_by_key(|(_, names)| names.values().max().copied());
                if let Some(address) = soonest.map(|(address, _)| *address) {
                    self.permitted.remove(&address);
                }
            }
        }
        remember(self.permitted.entry(address).or_default(), name, until(ttl, now));
    }

    /// The guest learns that `address` belongs to `name`, of which something is refused.
    ///
    /// # Errors
    /// [`Full`] when this cannot be remembered.
    pub fn refuse(&mut self, address: IpAddr, name: &str, ttl: Duration, now: Instant) -> Result<(), Full> {
        if !self.refused.contains_key(&address) && self.refused.len() >= MAX_REFUSALS {
            self.forget_old(now);
            if self.refused.len() >= MAX_REFUSALS {
                return Err(Full);
            }
        }
        let names = self.refused.entry(address).or_default();
        names.retain(|_, until| *until > now);
        if names.len() >= MAX_NAMES_OF_ADDRESS && !names.contains_key(name) {
            return Err(Full);
        }
        remember(names, name, until(ttl, now));
        Ok(())
    }

    /// The guest learns an address that is not of the internet.
    pub fn rebind(&mut self, address: IpAddr, ttl: Duration, now: Instant) {
        if self.rebound.len() >= MAX_REBOUND {
            self.rebound.retain(|_, until| *until > now);
        }
        if self.rebound.len() < MAX_REBOUND {
            self.rebound.insert(address, until(ttl, now));
        }
    }

    /// Whether a name that `rule` covers leads to `address`.
    #[must_use]
    pub fn permits(&self, address: IpAddr, rule: &str, now: Instant) -> bool {
        leads(&self.permitted, address, rule, now)
    }

    /// As [`permits`](Self::permits), of refused names.
    #[must_use]
    pub fn refuses(&self, address: IpAddr, rule: &str, now: Instant) -> bool {
        leads(&self.refused, address, rule, now)
    }

    /// Whether DNS gave this address although it is not of the internet.
    #[must_use]
    pub fn is_rebound(&self, address: IpAddr, now: Instant) -> bool {
        self.rebound.get(&address).is_some_and(|until| *until > now)
    }

    fn forget_old(&mut self, now: Instant) {
        for table in [&mut self.permitted, &mut self.refused] {
            table.retain(|_, names| {
                names.retain(|_, until| *until > now);
                !names.is_empty()
            });
        }
    }
}

fn until(ttl: Duration, now: Instant) -> Instant {
    now + ttl.min(MAX_TTL) + PIN_GRACE
}

fn remember(names: &mut Names, name: &str, until: Instant) {
    if names.len() >= MAX_NAMES_OF_ADDRESS
        && !names.contains_key(name)
        && let Some(soonest) = names.iter().min_by_key(|(_, until)| **until).map(|(name, _)| name.clone())
    {
        names.remove(&soonest);
    }
    let kept = names.entry(name.to_owned()).or_insert(until);
    *kept = (*kept).max(until);
}

fn leads(table: &HashMap<IpAddr, Names>, address: IpAddr, rule: &str, now: Instant) -> bool {
    table
        .get(&address)
        .is_some_and(|names| names.iter().any(|(name, until)| *until > now && name_matches(rule, name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u32) -> IpAddr {
        IpAddr::V4(std::net::Ipv4Addr::from(0x0100_0000 + n))
    }

    #[test]
    fn an_address_is_good_for_its_time_and_the_grace_and_no_longer() {
        let start = Instant::now();
        let mut pins = Pins::default();
        pins.permit(address(1), "a.example", Duration::from_secs(30), start);
        let last = start + Duration::from_secs(30) + PIN_GRACE;
        assert!(pins.permits(address(1), "a.example", last - Duration::from_millis(1)));
        assert!(!pins.permits(address(1), "a.example", last));
        assert!(!pins.permits(address(1), "b.example", start));
        assert!(pins.permits(address(1), "*.example", start));
    }

    #[test]
    fn a_time_to_live_is_believed_up_to_a_bound() {
        let start = Instant::now();
        let mut pins = Pins::default();
        pins.permit(address(1), "a", Duration::from_secs(u64::from(u32::MAX)), start);
        assert!(!pins.permits(address(1), "a", start + MAX_TTL + PIN_GRACE));
    }

    #[test]
    fn memory_is_bounded_and_refusals_are_never_pushed_out() {
        let now = Instant::now();
        let mut pins = Pins::default();
        for n in 0..u32::try_from(MAX_PINS).unwrap() + 10 {
            pins.permit(address(n), "a", Duration::from_secs(u64::from(n)), now);
        }
        assert_eq!(pins.permitted.len(), MAX_PINS);
        assert!(!pins.permits(address(0), "a", now));
        for n in 0..u32::try_from(MAX_REFUSALS).unwrap() {
            pins.refuse(address(n), "a", Duration::ZERO, now).unwrap();
        }
        assert_eq!(pins.refuse(address(u32::MAX / 512), "a", Duration::ZERO, now), Err(Full));
        assert!(pins.refuses(address(0), "a", now));
        let later = now + PIN_GRACE;
        pins.refuse(address(u32::MAX / 512), "a", Duration::ZERO, later).unwrap();
        for n in 0..100 {
            pins.permit(address(7), &format!("n{n}"), Duration::ZERO, now);
        }
        assert!(pins.permitted[&address(7)].len() <= MAX_NAMES_OF_ADDRESS);
    }
}
