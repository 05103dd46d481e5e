//! The gateway's DNS, with a resolver of the test.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::str::FromStr as _;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use iii_netstack::{Handle, Resolvers, Settings};
use iii_protocol::network::{Destination, Egress, GATEWAY_IPV4, GATEWAY_IPV6, Rule};
use smoltcp::socket::tcp::State;

use crate::guest::{Guest, event, loopback, settings, start_with};

const DNS: SocketAddr = SocketAddr::new(IpAddr::V4(GATEWAY_IPV4), 53);

type Zone = Arc<HashMap<&'static str, Vec<RData>>>;

fn zone(names: &[(&'static str, RData)]) -> Zone {
    let mut zone = HashMap::<_, Vec<_>>::new();
    for (name, data) in names {
        zone.entry(*name).or_default().push(data.clone());
    }
    Arc::new(zone)
}

fn a(a: u8, b: u8, c: u8, d: u8) -> RData {
    RData::A(A(Ipv4Addr::new(a, b, c, d)))
}

fn reply(zone: &Zone, bytes: &[u8]) -> Vec<u8> {
    let asked = Message::from_vec(bytes).unwrap();
    let mut answer = Message::new(asked.metadata.id, MessageType::Response, OpCode::Query);
    let query = asked.queries[0].clone();
    match zone.get(query.name().to_ascii().as_str()) {
        Some(data) => {
            let of_type = data.iter().filter(|data| data.record_type() == query.query_type());
            answer.answers =
                of_type.map(|data| Record::from_rdata(query.name().clone(), 60, data.clone())).collect();
        }
        None => answer.metadata.response_code = ResponseCode::NXDomain,
    }
    answer.queries.push(query);
    answer.to_vec().unwrap()
}

/// A resolver by UDP and TCP on one port.
fn resolver(zone: Zone) -> SocketAddr {
    let (udp, tcp) = loop {
        let tcp = TcpListener::bind(loopback()).unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()) {
            break (udp, tcp);
        }
    };
    let address = udp.local_addr().unwrap();
    let by_udp = Arc::clone(&zone);
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((count, from)) = udp.recv_from(&mut buffer) {
            udp.send_to(&reply(&by_udp, &buffer[..count]), from).unwrap();
        }
    });
    thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            let mut length = [0; 2];
            while stream.read_exact(&mut length).is_ok() {
                let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
                stream.read_exact(&mut message).unwrap();
                let answer = reply(&zone, &message);
                stream.write_all(&u16::try_from(answer.len()).unwrap().to_be_bytes()).unwrap();
                stream.write_all(&answer).unwrap();
            }
        }
    });
    address
}

fn with(resolvers: Vec<SocketAddr>) -> Settings {
    Settings { resolvers: Resolvers::Fixed(resolvers), ..settings() }
}

fn started(egress: Egress, zone: Zone) -> (Guest, Handle) {
    start_with(egress, with(vec![resolver(zone)]))
}

fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.queries.push(Query::query(Name::from_str(name).unwrap(), kind));
    message.to_vec().unwrap()
}

/// Asks the gateway.
fn ask(guest: &mut Guest, name: &str, kind: RecordType) -> Message {
    let socket = guest.udp(4053);
    guest.send_to(socket, DNS, &question(name, kind));
    let (bytes, from) = guest.receive_from(socket);
    guest.sockets.remove(socket);
    assert_eq!(from, DNS);
    Message::from_vec(&bytes).unwrap()
}

fn named(name: &str) -> Rule {
    Rule { to: Destination::Name { name: name.to_owned() }, ports: None }
}

#[test]
fn answers_of_every_type_pass_unchanged() {
    let text = RData::TXT(TXT::new(vec!["v=1".to_owned()]));
    let (mut guest, handle) =
        started(Egress::Public, zone(&[("a.example.", a(9, 9, 9, 9)), ("a.example.", text.clone())]));
    let answer = ask(&mut guest, "a.example.", RecordType::A);
    assert_eq!((answer.metadata.id, &answer.answers[0].data), (4711, &a(9, 9, 9, 9)));
    assert_eq!(ask(&mut guest, "a.example.", RecordType::TXT).answers[0].data, text);
    assert_eq!(ask(&mut guest, "b.example.", RecordType::A).metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(handle.counters().dns_queries.get(), 3);
    // By the gateway's other address.
    let socket = guest.udp(4054);
    guest.send_to(socket, SocketAddr::new(GATEWAY_IPV6.into(), 53), &question("a.example.", RecordType::A));
    assert_eq!(Message::from_vec(&guest.receive_from(socket).0).unwrap().answers.len(), 1);
}

#[test]
fn questions_by_tcp_are_answered_one_after_the_other() {
    let (mut guest, handle) = started(Egress::Public, zone(&[("a.example.", a(9, 9, 9, 9))]));
    let connection = guest.open(DNS);
    let message = question("a.example.", RecordType::A);
    let framed = [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], &message].concat();
    // Several at once, cut in odd places.
    let stream = framed.repeat(5);
    for part in stream.chunks(7) {
        guest.send(connection, part);
    }
    guest.tcp(connection).close();
    let answers = guest.receive_to_end(connection);
    let mut rest = &answers[..];
    for _ in 0..5 {
        let length = usize::from(u16::from_be_bytes([rest[0], rest[1]]));
        let answer = Message::from_vec(&rest[2..2 + length]).unwrap();
        assert_eq!(answer.answers[0].data, a(9, 9, 9, 9));
        rest = &rest[2 + length..];
    }
    assert!(rest.is_empty());
    crate::guest::eventually("the connection's end", || handle.counters().tcp_open.get() == 0);
}

#[test]
fn silence_of_the_resolvers_becomes_servfail_and_the_next_one_is_asked() {
    let silent = UdpSocket::bind(loopback()).unwrap();
    let mut hurried = with(vec![silent.local_addr().unwrap()]);
    hurried.limits.dns_try = Duration::from_millis(50);
    hurried.limits.dns_total = Duration::from_millis(120);
    let (mut guest, handle) = start_with(Egress::Public, hurried.clone());
    assert_eq!(ask(&mut guest, "a.example.", RecordType::A).metadata.response_code, ResponseCode::ServFail);
    assert_eq!(handle.counters().dns_failed.get(), 1);

    let gone = UdpSocket::bind(loopback()).unwrap().local_addr().unwrap();
    let knows = resolver(zone(&[("a.example.", a(9, 9, 9, 9))]));
    hurried.resolvers = Resolvers::Fixed(vec![silent.local_addr().unwrap(), gone, knows]);
    hurried.limits.dns_total = Duration::from_secs(4);
    let (mut guest, _handle) = start_with(Egress::Public, hurried);
    assert_eq!(ask(&mut guest, "a.example.", RecordType::A).answers.len(), 1);

    let (mut guest, _handle) = start_with(Egress::Public, with(Vec::new()));
    assert_eq!(ask(&mut guest, "a.example.", RecordType::A).metadata.response_code, ResponseCode::ServFail);
}

#[test]
fn without_a_network_names_are_refused() {
    let (mut guest, mut handle) = started(Egress::None, zone(&[("a.example.", a(9, 9, 9, 9))]));
    assert_eq!(ask(&mut guest, "a.example.", RecordType::A).metadata.response_code, ResponseCode::Refused);
    assert_eq!(event(&mut handle).to_string(), "egress denied dns a.example (policy)");
}

#[test]
fn only_the_allowed_names_are_answered_and_lead_somewhere() {
    let egress = Egress::Rules { allow: vec![named("*.good.example")], deny: Vec::new() };
    // That the pinned address may be dialled is seen in the tests of the policy: a test must not dial it.
    let names = zone(&[("a.good.example.", a(9, 9, 9, 9)), ("evil.example.", a(8, 8, 8, 8))]);
    let (mut guest, mut handle) = started(egress, names);
    assert_eq!(ask(&mut guest, "evil.example.", RecordType::A).metadata.response_code, ResponseCode::Refused);
    assert_eq!(event(&mut handle).to_string(), "egress denied dns evil.example (policy)");
    let connection = guest.connect("9.9.9.9:443".parse().unwrap(), 4096);
    guest.until("a refusal", |guest| (guest.state(connection) == State::Closed).then_some(()));
    assert_eq!(event(&mut handle).to_string(), "egress denied tcp 9.9.9.9:443 (not-resolved)");
    assert_eq!(ask(&mut guest, "a.good.example.", RecordType::A).answers.len(), 1);
    assert_eq!(handle.counters().denied.get(), 2);
}

#[test]
fn a_name_that_leads_into_the_lan_opens_nothing() {
    for egress in [Egress::Public, Egress::Rules { allow: vec![named("a.example")], deny: Vec::new() }] {
        let (mut guest, mut handle) = started(egress, zone(&[("a.example.", a(10, 1, 2, 3))]));
        assert_eq!(ask(&mut guest, "a.example.", RecordType::A).answers.len(), 1);
        let connection = guest.connect("10.1.2.3:80".parse().unwrap(), 4096);
        guest.until("a refusal", |guest| (guest.state(connection) == State::Closed).then_some(()));
        assert_eq!(event(&mut handle).to_string(), "egress denied tcp 10.1.2.3:80 (rebinding)");
    }
}
