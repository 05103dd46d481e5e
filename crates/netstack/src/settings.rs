//! What a stack is given beside the worker's network, with defaults for all of it.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Where host and cloud keep the addresses of their resolvers.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Everything about a stack that has a default.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Who answers the guest's questions.
    pub resolvers: Resolvers,
    /// Which addresses are the host's own.
    pub host_addresses: HostAddresses,
    /// How much of everything.
    pub limits: Limits,
}

/// Who answers the guest's questions.
#[derive(Debug, Clone)]
pub enum Resolvers {
    /// The servers a file names, in the format of resolv.conf(5); read again when it changes.
    File(PathBuf),
    /// These, in this order.
    Fixed(Vec<SocketAddr>),
}

impl Default for Resolvers {
    fn default() -> Resolvers {
        Resolvers::File(PathBuf::from(RESOLV_CONF))
    }
}

/// Which addresses are the host's own, besides loopback.
#[derive(Debug, Clone, Default)]
pub enum HostAddresses {
    /// Those of its interfaces at the moment of each connection.
    #[default]
    Interfaces,
    /// These.
    Fixed(Vec<IpAddr>),
}

/// How much of everything.
#[derive(Debug, Clone)]
pub struct Limits {
    /// TCP connections, those being dialled included. One more is reset.
    pub tcp_connections: usize,
    /// Flows of UDP and of echo requests. One more ends the one that was silent for longest.
    pub udp_flows: usize,
    /// Questions to resolvers that wait for an answer. One more fails at once.
    pub dns_queries: usize,
    /// How long the host tries to connect. A guest's own kernel gives up after about as long.
    pub dial: Duration,
    /// How long a UDP flow may be silent (RFC 4787, 4.3: two minutes at least).
    pub udp_idle: Duration,
    /// How long one resolver may take.
    pub dns_try: Duration,
    /// How long all resolvers may take together; less than the five seconds after which a guest asks again.
    pub dns_total: Duration,
    /// Events that wait to be read. One more is only counted.
    pub events: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            tcp_connections: 8192,
            udp_flows: 2048,
            dns_queries: 256,
            dial: Duration::from_secs(130),
            udp_idle: Duration::from_secs(120),
            dns_try: Duration::from_millis(1500),
            dns_total: Duration::from_millis(4500),
            events: 256,
        }
    }
}
