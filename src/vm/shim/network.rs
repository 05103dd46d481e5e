//! The machine's network: the stack that answers the guest's device, and what of it the shim tells.
//!
//! The ports are bound before anything is started: one that is taken fails this machine alone, and at once.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use iii_netstack::{BindError, Event, Handle, Settings, Stack, pair};
use iii_protocol::api::Refused;
use iii_protocol::engine::Engine;
use iii_protocol::exit::ExitCause;
use iii_protocol::guest::{GuestAddress, GuestNetwork};
use iii_protocol::network::{
    Destination, Egress, GATEWAY_IPV4, GATEWAY_IPV6, GUEST_IPV4, GUEST_IPV6, GUEST_MAC, HOST_NAME,
    IPV4_PREFIX, IPV6_PREFIX, MTU, Network,
};
use tokio::net::UnixListener;
use tokio::sync::mpsc;

use super::machine::plain;
use super::{SHIM_LOCK, engine};

/// News of the way to the engine that may wait: there is little of it.
const ENGINE_NEWS: usize = 4;

/// A running network. Dropping it ends it.
#[derive(Debug)]
pub(super) struct MachineNetwork {
    stack: Handle,
    engine: mpsc::Receiver<String>,
    last_refused: Option<String>,
}

impl MachineNetwork {
    /// Binds the ports, then starts the stack and the way to the engine, whose connections come to `guests_way`. Also
    /// gives the guest's end of the link, for the VMM.
    pub(super) fn start(
        network: &Network,
        engine: &Engine,
        guests_way: UnixListener,
    ) -> Result<(MachineNetwork, OwnedFd), NetworkError> {
        let bound = Stack::bind(network, Settings::default())?;
        let (ours, guests) = pair().map_err(NetworkError::Start)?;
        let stack = bound.start(ours).map_err(NetworkError::Start)?;
        let (news, engine_news) = mpsc::channel(ENGINE_NEWS);
        tokio::spawn(engine::serve(guests_way, engine.clone(), news));
        Ok((MachineNetwork { stack, engine: engine_news, last_refused: None }, guests))
    }

    /// The next thing worth a line; never, once there is nothing more to come. Cancelling loses nothing.
    pub(super) async fn news(&mut self) -> String {
        tokio::select! {
            Some(event) = self.stack.event() => self.line(&event),
            Some(line) = self.engine.recv() => line,
            else => std::future::pending().await,
        }
    }

    /// The next one if there is one already.
    pub(super) fn pending_news(&mut self) -> Option<String> {
        let event = self.stack.try_event()?;
        Some(self.line(&event))
    }

    fn line(&mut self, event: &Event) -> String {
        if let Event::Denied { attempt, reason } = event {
            self.last_refused = Some(format!("{attempt} ({reason})"));
        }
        event.to_string()
    }

    /// What was refused so far.
    pub(super) fn refused(&self) -> Refused {
        Refused { count: self.stack.counters().denied.get(), last: self.last_refused.clone() }
    }
}

/// Why a machine has no network, and so is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum NetworkError {
    /// A port cannot be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The stack does not start.
    #[error("the network cannot be started: {0}")]
    Start(#[source] io::Error),
}

impl From<NetworkError> for ExitCause {
    fn from(error: NetworkError) -> ExitCause {
        let (what, hint) = match &error {
            NetworkError::Bind(error) if error.source.kind() == io::ErrorKind::AddrInUse => {
                ("ports", "end what has the port, or publish another one with `ports:`")
            }
            NetworkError::Bind(error) if error.source.kind() == io::ErrorKind::PermissionDenied => {
                ("ports", "ports below 1024 are root's: publish a higher one, as in `8080:80`")
            }
            NetworkError::Bind(_) => ("ports", "correct `ports:` in config.yaml"),
            NetworkError::Start(_) => ("network", "look at the host's limits (`ulimit -a`)"),
        };
        let worker = match &error {
            NetworkError::Bind(error) => error.holder.as_ref().and_then(|holder| worker_of(holder.pid)),
            NetworkError::Start(_) => None,
        };
        let message = match worker {
            Some(worker) => format!("{error}; that is the machine of worker `{worker}`"),
            None => error.to_string(),
        };
        ExitCause::CouldNotStart { what: what.into(), message, hint: Some(hint.into()) }
    }
}

/// The worker whose shim the process is. A shim's standard output is the lock of its run folder, which has the worker's
/// name.
fn worker_of(pid: u32) -> Option<String> {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    arguments.split(|&byte| byte == 0).find(|word| *word == b"__shim")?;
    let lock = fs::read_link(format!("/proc/{pid}/fd/1")).ok()?;
    let folder = lock.parent().filter(|_| lock.ends_with(SHIM_LOCK))?;
    Some(plain(folder.file_name()?.to_str()?))
}

/// How the guest sets its device up.
pub(super) fn guest_network(network: &Network) -> GuestNetwork {
    let four: (IpAddr, u8, IpAddr) = (GUEST_IPV4.into(), IPV4_PREFIX, GATEWAY_IPV4.into());
    let six: (IpAddr, u8, IpAddr) = (GUEST_IPV6.into(), IPV6_PREFIX, GATEWAY_IPV6.into());
    let dns = match network.egress {
        Egress::None => Vec::new(),
        Egress::Public | Egress::All | Egress::Rules { .. } => vec![GATEWAY_IPV4.into()],
    };
    let hosts = match leads_to_host(&network.egress) {
        true => vec![(HOST_NAME.to_owned(), GATEWAY_IPV4.into())],
        false => Vec::new(),
    };
    let addresses = [four, six]
        .into_iter()
        .map(|(address, prefix, gateway)| GuestAddress { address, prefix, gateway })
        .collect();
    GuestNetwork { mac: GUEST_MAC, mtu: MTU, addresses, dns, hosts }
}

/// Whether the gateway's address leads anywhere, so that the host deserves a name.
fn leads_to_host(egress: &Egress) -> bool {
    match egress {
        Egress::All => true,
        Egress::None | Egress::Public => false,
        Egress::Rules { allow, .. } => allow.iter().any(
            |rule| matches!(rule.to, Destination::Net { address: IpAddr::V4(address), .. } if address.is_loopback()),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use iii_protocol::network::{PublishedPort, Rule, Transport};

    use super::*;

    fn network(egress: Egress) -> Network {
        Network { egress, ports: Vec::new() }
    }

    #[test]
    fn a_guest_is_told_of_nothing_that_leads_nowhere() {
        let loopback = |prefix| Rule {
            to: Destination::Net { address: [127, 0, 0, if prefix == 32 { 1 } else { 0 }].into(), prefix },
            ports: None,
        };
        let any = Rule { to: Destination::Any, ports: None };
        let rules = |allow| Egress::Rules { allow, deny: Vec::new() };
        for (egress, dns, host) in [
            (Egress::None, false, false),
            (Egress::Public, true, false),
            (Egress::All, true, true),
            (rules(vec![any.clone()]), true, false),
            (rules(vec![any, loopback(32)]), true, true),
            (rules(vec![loopback(8)]), true, true),
        ] {
            let guest = guest_network(&network(egress.clone()));
            assert_eq!(!guest.dns.is_empty(), dns, "{egress}");
            assert_eq!(guest.hosts.iter().any(|(name, _)| name == HOST_NAME), host, "{egress}");
            assert_eq!(guest.addresses.len(), 2);
        }
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_told_with_its_holder() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = taken.local_addr().unwrap();
        let ports = vec![PublishedPort { host, guest: 80, transport: Transport::Tcp }];
        let dir = tempfile::tempdir().unwrap();
        let way = UnixListener::bind(dir.path().join("engine.sock")).unwrap();
        let network = Network { egress: Egress::None, ports };
        let error = MachineNetwork::start(&network, &Engine::default(), way).unwrap_err();
        let ExitCause::CouldNotStart { what, message, hint } = error.into() else { panic!("no such cause") };
        assert_eq!(what, "ports");
        assert!(
            message.contains(&host.to_string()) && message.contains(&std::process::id().to_string()),
            "{message}"
        );
        assert!(hint.unwrap().contains("ports:"));
    }
}
