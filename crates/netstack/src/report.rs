//! Which refusals are told, and how often. Pure: time is an argument.
//!
//! A guest can be refused a million times a second. Every refusal is counted; an event is made for the first of a kind
//! (same transport, destination, reason) in some seconds, and for so many in a second. What was left out is said later,
//! as a number.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::policy::Reason;

/// The same refusal is told once in this time.
pub const SAME_REFUSAL_EVERY: Duration = Duration::from_secs(10);
/// Refusals told in any one second.
pub const REFUSALS_PER_SECOND: u32 = 10;
/// Refusals remembered, to recognise the same.
pub const REMEMBERED_REFUSALS: usize = 512;
/// The number of what was left out is said this long after the first of it.
pub const SUMMARY_AFTER: Duration = Duration::from_secs(10);

/// What the guest tried.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Attempt {
    /// A TCP connection.
    Tcp(SocketAddr),
    /// A datagram.
    Udp(SocketAddr),
    /// An echo request, or another packet without ports.
    Icmp(IpAddr),
    /// A question to the gateway's DNS, by name.
    Dns(String),
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Attempt::Tcp(to) => write!(f, "tcp {to}"),
            Attempt::Udp(to) => write!(f, "udp {to}"),
            Attempt::Icmp(to) => write!(f, "icmp {to}"),
            Attempt::Dns(name) => write!(f, "dns {name}"),
        }
    }
}

/// Something of the stack that people may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The policy refused the guest something.
    Denied {
        /// What it tried.
        attempt: Attempt,
        /// Why not.
        reason: Reason,
    },
    /// So many refusals were not told, since the last such event.
    Suppressed {
        /// How many.
        refusals: u64,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Denied { attempt, reason } => write!(f, "egress denied {attempt} ({reason})"),
            Event::Suppressed { refusals } => write!(f, "egress denied {refusals} more times"),
        }
    }
}

/// Decides which refusals are told.
#[derive(Debug, Default)]
pub(crate) struct Reporter {
    told: HashMap<(Attempt, Reason), Instant>,
    second: Option<(Instant, u32)>,
    suppressed: u64,
    summary_at: Option<Instant>,
}

impl Reporter {
    /// A refusal; the event, if it is to be told.
    pub(crate) fn denied(&mut self, attempt: Attempt, reason: Reason, now: Instant) -> Option<Event> {
        let key = (attempt, reason);
        if self.told.get(&key).is_some_and(|last| now < *last + SAME_REFUSAL_EVERY)
            || !self.has_allowance(now)
        {
            self.suppressed += 1;
            self.summary_at.get_or_insert(now + SUMMARY_AFTER);
            return None;
        }
        if self.told.len() >= REMEMBERED_REFUSALS {
            self.told.retain(|_, last| now < *last + SAME_REFUSAL_EVERY);
            if self.told.len() >= REMEMBERED_REFUSALS {
                self.told.clear();
            }
        }
        self.told.insert(key.clone(), now);
        if let Some((_, told)) = &mut self.second {
            *told += 1;
        }
        Some(Event::Denied { attempt: key.0, reason })
    }

    /// When [`summary`](Self::summary) has something to say.
    pub(crate) fn summary_at(&self) -> Option<Instant> {
        self.summary_at
    }

    /// The number of what was left out, once its time has come.
    pub(crate) fn summary(&mut self, now: Instant) -> Option<Event> {
        self.summary_at.filter(|at| *at <= now)?;
        self.summary_at = None;
        Some(Event::Suppressed { refusals: std::mem::take(&mut self.suppressed) })
    }

    fn has_allowance(&mut self, now: Instant) -> bool {
        match self.second {
            Some((begin, told)) if now < begin + Duration::from_secs(1) => told < REFUSALS_PER_SECOND,
            _ => {
                self.second = Some((now, 0));
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(n: u8) -> Attempt {
        Attempt::Tcp(SocketAddr::from(([10, 0, 0, n], 22)))
    }

    #[test]
    fn a_refusal_reads_as_one_line() {
        let event = Event::Denied { attempt: to(5), reason: Reason::Private };
        assert_eq!(event.to_string(), "egress denied tcp 10.0.0.5:22 (private)");
        assert_eq!(Event::Suppressed { refusals: 7 }.to_string(), "egress denied 7 more times");
        let event = Event::Denied { attempt: Attempt::Dns("a.example".to_owned()), reason: Reason::Policy };
        assert_eq!(event.to_string(), "egress denied dns a.example (policy)");
    }

    #[test]
    fn the_same_refusal_is_told_once_and_the_number_of_the_others_later() {
        let start = Instant::now();
        let mut reporter = Reporter::default();
        assert!(reporter.denied(to(1), Reason::Private, start).is_some());
        for _ in 0..5 {
            assert!(reporter.denied(to(1), Reason::Private, start).is_none());
        }
        assert!(reporter.denied(to(1), Reason::Policy, start).is_some());
        let at = reporter.summary_at().unwrap();
        assert!(reporter.summary(at - Duration::from_millis(1)).is_none());
        assert_eq!(reporter.summary(at), Some(Event::Suppressed { refusals: 5 }));
        assert_eq!(reporter.summary_at(), None);
        assert!(reporter.denied(to(1), Reason::Private, start + SAME_REFUSAL_EVERY).is_some());
    }

    #[test]
    fn only_so_many_are_told_in_a_second() {
        let start = Instant::now();
        let mut reporter = Reporter::default();
        let told = (0..200).filter(|n| reporter.denied(to(*n), Reason::Private, start).is_some()).count();
        assert_eq!(told, REFUSALS_PER_SECOND as usize);
        let later = start + Duration::from_secs(1);
        assert!(reporter.denied(to(201), Reason::Private, later).is_some());
        assert_eq!(reporter.suppressed, 190);
    }
}
