//! Network devices through rtnetlink(7): up, sized, with addresses and ways out.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use nix::libc;
use nix::sys::socket::{
    AddressFamily as Domain, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// `lo` is the first interface of every network namespace.
pub(super) const LOOPBACK_INDEX: u32 = 1;
const HEADER_BYTES: usize = 16;
/// More than the header and the error number that an answer is read for.
const ANSWER_BYTES: usize = 512;

/// One conversation with the kernel.
#[derive(Debug)]
pub(super) struct Netlink(OwnedFd);

impl Netlink {
    pub(super) fn open() -> io::Result<Netlink> {
        let protocol = SockProtocol::NetlinkRoute;
        Ok(Netlink(socket(Domain::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?))
    }

    /// Sets an interface up, with packets of at most `mtu` bytes if that is to change.
    pub(super) fn bring_up(&self, index: u32, mtu: Option<u16>) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes.extend(mtu.map(|mtu| LinkAttribute::Mtu(mtu.into())));
        self.ask(libc::RTM_NEWLINK, 0, &message)
    }

    /// Gives an interface an address, to be used at once: nobody else on the link could have it.
    pub(super) fn add_address(&self, index: u32, address: IpAddr, prefix: u8) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.header.family = family(address);
        message.header.prefix_len = prefix;
        message.header.scope = AddressScope::Universe;
        if address.is_ipv6() {
            message.header.flags = AddressHeaderFlags::Nodad;
        }
        message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
        self.ask(libc::RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &message)
    }

    /// Sends everything that has no better way to `gateway`.
    pub(super) fn add_default_route(&self, index: u32, gateway: IpAddr) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(gateway);
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Boot;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![RouteAttribute::Gateway(gateway.into()), RouteAttribute::Oif(index)];
        self.ask(libc::RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &message)
    }

    /// Sends one request and waits for its acknowledgement.
    fn ask(&self, message_type: u16, flags: u16, message: &impl Emitable) -> io::Result<()> {
        let bytes = request(message_type, flags, message);
        sendto(self.0.as_raw_fd(), &bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut answer = [0u8; ANSWER_BYTES];
        let length = recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        check(&answer[..length])
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn request(message_type: u16, flags: u16, message: &impl Emitable) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    let length = header.buffer_len() + message.buffer_len();
    header.length = u32::try_from(length).unwrap_or(u32::MAX);
    header.message_type = message_type;
    header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    header.sequence_number = 1;
    let mut bytes = vec![0; length];
    header.emit(&mut bytes);
    message.emit(&mut bytes[header.buffer_len()..]);
    bytes
}

/// An acknowledgement is an NLMSG_ERROR whose number is 0. The crate's parser would bring along those of all messages.
fn check(answer: &[u8]) -> io::Result<()> {
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let error = answer
        .get(HEADER_BYTES..HEADER_BYTES + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map(i32::from_ne_bytes);
    match (kind.map(i32::from), error) {
        (Some(libc::NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(libc::NLMSG_ERROR), Some(error)) => Err(io::Error::from_raw_os_error(-error)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "not an rtnetlink acknowledgement")),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::{TcpListener, TcpStream};

    use netlink_packet_route::link::{InfoKind, LinkInfo};
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// Runs `check` in a network of its own, in a thread of its own: it must not leak into other tests.
    pub(in super::super) fn in_a_new_network(check: impl FnOnce() + Send + 'static) {
        let done = std::thread::spawn(|| {
            if unshare(CloneFlags::CLONE_NEWNET).is_err() {
                eprintln!("SKIPPED: a network namespace needs root");
                return;
            }
            check();
        });
        done.join().expect("checks");
    }

    /// Makes a device that throws away what is sent; `false` where the kernel has none.
    pub(in super::super) fn make_dummy(netlink: &Netlink, name: &str, mac: [u8; 6]) -> bool {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.into()),
            LinkAttribute::Address(mac.to_vec()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Dummy)]),
        ];
        netlink.ask(libc::RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &message).is_ok()
    }

    #[test]
    fn programs_reach_each_other_on_localhost() {
        in_a_new_network(|| {
            assert!(
                TcpListener::bind("127.0.0.1:0").and_then(|it| TcpStream::connect(it.local_addr()?)).is_err()
            );
            Netlink::open().expect("netlink").bring_up(LOOPBACK_INDEX, None).expect("lo comes up");
            for address in ["127.0.0.1:0", "[::1]:0"] {
                let listener = TcpListener::bind(address).expect(address);
                TcpStream::connect(listener.local_addr().expect("address")).expect(address);
            }
        });
    }

    #[test]
    fn a_refusal_of_the_kernel_is_its_error_number() {
        let mut answer = [0u8; 36];
        answer[4..6].copy_from_slice(&u16::try_from(libc::NLMSG_ERROR).expect("small").to_ne_bytes());
        assert!(check(&answer).is_ok());
        answer[16..20].copy_from_slice(&(-libc::EPERM).to_ne_bytes());
        assert_eq!(check(&answer).unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert_eq!(check(&answer[..10]).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
