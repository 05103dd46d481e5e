//! The exact bytes of every control message, so that a change of the wire format is always a decision.

use std::fmt::Debug;

use iii_protocol::engine;
use iii_protocol::exit::{ExitCause, ExitRecord};
use iii_protocol::guest::{
    self, BootPlan, Exit, GuestAddress, GuestNetwork, Hello, ProcessPlan, RootPlan, Started, Stop,
};
use iii_protocol::network::{Destination, Egress, Network, PortRange, PublishedPort, Rule, Transport};
use iii_protocol::session::Task;
use iii_protocol::shim::{MachinePhase, without_last_lines};
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The value is written as exactly this JSON, and read back from it.
#[track_caller]
fn pinned<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T, json: &str) {
    assert_eq!(serde_json::to_string(value).expect("serialises"), json);
    assert_eq!(&serde_json::from_str::<T>(json).expect("parses"), value);
}

#[test]
fn kinds_and_port_of_the_control_link_are_pinned() {
    let kinds = [
        guest::KIND_HELLO,
        guest::KIND_PLAN,
        guest::KIND_STARTED,
        guest::KIND_STOP,
        guest::KIND_EXIT,
        guest::KIND_EXIT_ACK,
        guest::KIND_GO,
        guest::KIND_HELD,
        guest::KIND_STDOUT,
        guest::KIND_STDERR,
    ];
    assert_eq!(kinds, [1, 2, 3, 4, 5, 6, 7, 8, 16, 17]);
    assert_eq!((guest::CONTROL_PORT, guest::VERSION), (1024, 1));
}

#[test]
fn kinds_and_port_of_the_way_to_the_engine_are_pinned() {
    assert_eq!([engine::KIND_DATA, engine::KIND_END, engine::KIND_CREDIT], [1, 2, 7]);
    assert_eq!(engine::ENGINE_PORT, 1026);
}

#[test]
fn messages_of_the_agent_are_pinned() {
    pinned(
        &Hello { version: 1, kernel: "6.12.113".into(), uptime_ms: 420 },
        r#"{"version":1,"kernel":"6.12.113","uptime_ms":420}"#,
    );
    pinned(&Started { pid: 7 }, r#"{"pid":7}"#);
    pinned(
        &Exit { cause: ExitCause::Exit { code: 7 }, uptime_ms: 9 },
        r#"{"cause":{"kind":"exit","code":7},"uptime_ms":9}"#,
    );
}

#[test]
fn messages_of_the_shim_are_pinned() {
    pinned(&Stop { signal: 15, grace_ms: 10_000 }, r#"{"signal":15,"grace_ms":10000}"#);
    let workload = ProcessPlan {
        argv: vec!["sh".into(), "-c".into()],
        env: vec![("A".into(), "1".into())],
        cwd: "/workspace".into(),
        user: "app:app".into(),
    };
    let mut plan = BootPlan {
        now_ns: Some(5),
        version: 1,
        hostname: "api".into(),
        root: RootPlan::Overlay { lower: "/dev/vda".into(), upper: "/dev/vdb".into() },
        network: Some(GuestNetwork {
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            addresses: vec![GuestAddress {
                address: [10, 0, 0, 2].into(),
                prefix: 30,
                gateway: [10, 0, 0, 1].into(),
            }],
            dns: vec![[10, 0, 0, 1].into()],
            hosts: vec![("h".into(), [10, 0, 0, 1].into())],
        }),
        engine_port: Some(49134),
        hold: true,
        workload,
    };
    pinned(
        &plan,
        concat!(
            r#"{"version":1,"now_ns":5,"hostname":"api","#,
            r#""root":{"kind":"overlay","lower":"/dev/vda","upper":"/dev/vdb"},"#,
            r#""network":{"mac":[2,0,0,0,0,1],"mtu":1500,"#,
            r#""addresses":[{"address":"10.0.0.2","prefix":30,"gateway":"10.0.0.1"}],"#,
            r#""dns":["10.0.0.1"],"hosts":[["h","10.0.0.1"]]},"engine_port":49134,"hold":true,"#,
            r#""workload":{"argv":["sh","-c"],"env":[["A","1"]],"cwd":"/workspace","user":"app:app"}}"#
        ),
    );
    plan.root = RootPlan::Surroundings;
    assert!(serde_json::to_string(&plan).expect("serialises").contains(r#""root":{"kind":"surroundings"}"#));
}

#[test]
fn the_tasks_about_files_are_pinned() {
    pinned(
        &Task::Update { path: "/workspace".into(), changes: 12 },
        r#"{"kind":"update","path":"/workspace","changes":12}"#,
    );
    pinned(
        &Task::Pack { path: "/etc/.".into(), follow: true },
        r#"{"kind":"pack","path":"/etc/.","follow":true}"#,
    );
}

#[test]
fn the_phases_of_a_machine_that_is_made_ready_are_pinned() {
    let at = "2026-01-02T03:04:05Z".parse().expect("time");
    let booting = |detail| MachinePhase::Booting { since: at, deadline: at, detail };
    let bare = r#"{"phase":"booting","since":"2026-01-02T03:04:05Z","deadline":"2026-01-02T03:04:05Z""#;
    pinned(&booting(None), &format!("{bare}}}"));
    pinned(&booting(Some("copying".into())), &format!(r#"{bare},"detail":"copying"}}"#));
    let unprepared =
        |hint| MachinePhase::Unprepared { since: at, what: "install".into(), message: "exit 1".into(), hint };
    let bare = r#"{"phase":"unprepared","since":"2026-01-02T03:04:05Z","what":"install","message":"exit 1""#;
    pinned(&unprepared(None), &format!("{bare}}}"));
    pinned(&unprepared(Some("look".into())), &format!(r#"{bare},"hint":"look"}}"#));
}

#[test]
fn every_exit_cause_is_pinned_and_has_its_word() {
    let causes = [
        (ExitCause::Exit { code: 0 }, r#"{"kind":"exit","code":0}"#, "exit 0"),
        (ExitCause::Signal { signal: 9 }, r#"{"kind":"signal","signal":9}"#, "signal 9"),
        (ExitCause::Oom, r#"{"kind":"oom"}"#, "oom"),
        (
            ExitCause::CouldNotStart { what: "exec".into(), message: "no".into(), hint: None },
            r#"{"kind":"could-not-start","what":"exec","message":"no"}"#,
            "could not start",
        ),
        (
            ExitCause::CouldNotStart { what: "exec".into(), message: "no".into(), hint: Some("do".into()) },
            r#"{"kind":"could-not-start","what":"exec","message":"no","hint":"do"}"#,
            "could not start",
        ),
        (ExitCause::VmmDied { detail: "oops".into() }, r#"{"kind":"vmm-died","detail":"oops"}"#, "vmm-died"),
        (ExitCause::ShimDied, r#"{"kind":"shim-died"}"#, "shim-died"),
    ];
    for (cause, json, word) in causes {
        pinned(&cause, json);
        assert_eq!(cause.to_string(), word);
        assert_eq!(cause.is_success(), word == "exit 0");
        assert_eq!(cause.is_could_not_start(), word == "could not start");
    }
}

#[test]
fn a_record_of_a_history_is_pinned_and_may_lack_the_request() {
    let at = "2026-01-02T03:04:05Z".parse().expect("time");
    let record = ExitRecord { generation: 3, at, uptime_ms: 5, cause: ExitCause::Oom, requested: false };
    let json = r#"{"generation":3,"at":"2026-01-02T03:04:05Z","uptime_ms":5,"cause":{"kind":"oom"},"requested":false}"#;
    pinned(&record, json);
    let older = json.replace(r#","requested":false"#, "");
    assert_eq!(serde_json::from_str::<ExitRecord>(&older).expect("parses"), record);
}

#[test]
fn unknown_fields_are_refused() {
    assert!(serde_json::from_str::<Stop>(r#"{"signal":15,"grace_ms":1,"force":true}"#).is_err());
    assert!(serde_json::from_str::<RootPlan>(r#"{"kind":"overlay","lower":"a","upper":"b","x":1}"#).is_err());
    assert!(serde_json::from_str::<ExitCause>(r#"{"kind":"exit","code":1,"x":1}"#).is_err());
    assert!(serde_json::from_str::<ExitCause>(r#"{"kind":"exploded"}"#).is_err());
}

#[test]
fn output_payloads_are_pinned() {
    assert_eq!(guest::output_payload(0x0102_0304_0506_0708, b"hi"), b"\x01\x02\x03\x04\x05\x06\x07\x08hi");
    assert_eq!(guest::parse_output(b"1234567"), None);
}

proptest! {
    #[test]
    fn output_payloads_round_trip(at: u64, bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let payload = guest::output_payload(at, &bytes);
        prop_assert_eq!(guest::parse_output(&payload), Some((at, &bytes[..])));
    }
}

#[test]
fn a_network_is_pinned_and_shown_as_it_is_written() {
    let any = |ports| Rule { to: Destination::Any, ports };
    let net = |address: &str, prefix| Destination::Net { address: address.parse().expect("address"), prefix };
    let https = Some(PortRange { first: 443, last: 443 });
    let network = Network {
        egress: Egress::Rules {
            allow: vec![any(https), Rule { to: net("2001:db8::", 32), ports: https }],
            deny: vec![Rule { to: Destination::Name { name: "*.example.com".into() }, ports: None }],
        },
        ports: vec![PublishedPort {
            host: "127.0.0.1:8080".parse().expect("address"),
            guest: 80,
            transport: Transport::Tcp,
        }],
    };
    pinned(
        &network,
        concat!(
            r#"{"egress":{"policy":"rules","allow":["#,
            r#"{"to":{"kind":"any"},"ports":{"first":443,"last":443}},"#,
            r#"{"to":{"kind":"net","address":"2001:db8::","prefix":32},"ports":{"first":443,"last":443}}],"#,
            r#""deny":[{"to":{"kind":"name","name":"*.example.com"},"ports":null}]},"#,
            r#""ports":[{"host":"127.0.0.1:8080","guest":80,"transport":"tcp"}]}"#
        ),
    );
    pinned(&Network::default(), r#"{"egress":{"policy":"public"},"ports":[]}"#);
    let shown = "allow *:443, allow [2001:db8::/32]:443, deny *.example.com";
    assert_eq!(network.egress.to_string(), shown);
    assert_eq!(network.ports[0].to_string(), "127.0.0.1:8080->80/tcp");
    let range = Some(PortRange { first: 8000, last: 8010 });
    assert_eq!(Rule { to: net("10.0.0.1", 32), ports: range }.to_string(), "10.0.0.1:8000-8010");
    assert_eq!(Egress::Rules { allow: vec![], deny: vec![] }.to_string(), Egress::Public.to_string());
    assert_eq!([Egress::None, Egress::All].map(|it| it.to_string()), ["none", "all"]);
}

#[test]
fn a_failure_is_told_with_or_without_what_its_script_wrote() {
    for (message, without) in [
        ("install failed (exit code 1): `a`; its last lines:\nb\nc", "install failed (exit code 1): `a`"),
        (
            "install failed (exit code 1): `a`; it wrote nothing",
            "install failed (exit code 1): `a`; it wrote nothing",
        ),
        // The script itself may have such words.
        ("`echo ; its last lines: x`; its last lines:\n; its last lines:\n", "`echo ; its last lines: x`"),
        ("a\nb", "a\nb"),
        ("", ""),
    ] {
        assert_eq!(without_last_lines(message), without);
    }
}
