//! Clients that break the contract: their session ends, the agent and other sessions do not.

use iii_protocol::session::{
    EndCause, KIND_CREDIT, KIND_OPEN, KIND_RESIZE, KIND_SIGNAL, KIND_STARTED, KIND_STDIN, KIND_STDIN_END,
    MAX_DATA_BYTES, Open, Signal, Task, VERSION, WINDOW_BYTES, credit_payload,
};

use crate::client::{Client, OK, exec, outcome, script_with_input, worker};
use crate::shim::{Shim, is_alive, until};

/// A session that runs all the time, and must not notice.
fn bystander(worker: &Shim) -> Client {
    let mut client = Client::run(worker, script_with_input("while read line; do echo $line; done"));
    client.input(b"one\n");
    client.until_said("one");
    client
}

fn is_well(worker: &Shim, mut bystander: Client) {
    bystander.input(b"two\n");
    bystander.until_said("two");
    bystander.end_input();
    assert_eq!(bystander.finish(), OK);
    assert_eq!(outcome(worker, exec(&["true"])).0, OK);
}

#[test]
fn a_violation_ends_its_own_session_only() {
    let worker = worker();
    let bystander = bystander(&worker);
    let open = Open { version: VERSION, task: Task::Exec(exec(&["true"])) };
    let open = serde_json::to_vec(&open).expect("json");
    // What a pipe takes is credited.
    let too_much: Vec<(u8, Vec<u8>)> =
        (0..WINDOW_BYTES / MAX_DATA_BYTES + 3).map(|_| (KIND_STDIN, vec![0; MAX_DATA_BYTES])).collect();
    let one = |kind: u8, payload: &[u8]| vec![(kind, payload.to_vec())];
    for frames in [
        too_much,
        one(KIND_STDIN, &vec![0; MAX_DATA_BYTES + 1]),
        one(KIND_CREDIT, &credit_payload(1)),
        one(KIND_CREDIT, b"abc"),
        one(KIND_OPEN, &open),
        one(KIND_STARTED, b""),
        one(200, b""),
        one(KIND_SIGNAL, b"{\"signal\":65}"),
        one(KIND_SIGNAL, b"{\"signal\":0}"),
        one(KIND_SIGNAL, b"not json"),
        one(KIND_RESIZE, b"{}"),
        one(KIND_STDIN_END, b"x"),
        vec![(KIND_STDIN_END, vec![]), (KIND_STDIN, vec![1])],
    ] {
        let mut client = Client::run(&worker, script_with_input("exec sleep 600"));
        for (kind, payload) in &frames {
            let mut bytes = Vec::new();
            iii_protocol::frame::encode(*kind, payload, &mut bytes).expect("small");
            client.raw(&bytes);
        }
        client.until_closed();
        let pid = client.pid();
        until("its command is gone", || !is_alive(&pid));
    }
    for garbage in [&[0u8; 4][..], &[0xff; 64], &[0, 0x20, 0, 0, 1]] {
        let mut client = Client::run(&worker, script_with_input("exec sleep 600"));
        client.raw(garbage);
        client.until_closed();
    }
    is_well(&worker, bystander);
}

#[test]
fn input_that_was_not_announced_is_a_violation() {
    let worker = worker();
    let mut client = Client::run(&worker, exec(&["sleep", "600"]));
    // Its end is not.
    client.end_input();
    client.say_json(KIND_SIGNAL, &Signal { signal: 18 });
    client.raw(&[0, 0, 0, 2, KIND_STDIN, 1]);
    client.until_closed();
    let pid = client.pid();
    until("its command is gone", || !is_alive(&pid));
}

#[test]
fn a_session_that_does_not_begin_with_open_is_refused() {
    let worker = worker();
    let bystander = bystander(&worker);
    let refused = |kind: u8, payload: &[u8]| {
        let mut client = Client::connect(&worker);
        client.say(kind, payload);
        match client.finish() {
            EndCause::CouldNotStart { message, .. } => message,
            other => panic!("{other:?}"),
        }
    };
    assert!(refused(KIND_STDIN, b"data").contains("begins with OPEN"));
    refused(KIND_OPEN, b"not json");
    refused(KIND_OPEN, b"{}");
    let other = Open { version: VERSION + 1, task: Task::Exec(exec(&["true"])) };
    assert!(refused(KIND_OPEN, &serde_json::to_vec(&other).expect("json")).contains("version"));
    for raw in [&[0u8; 4][..], &[0xff; 8]] {
        let mut client = Client::connect(&worker);
        client.raw(raw);
        assert!(matches!(client.finish(), EndCause::CouldNotStart { .. }));
    }
    // Nothing at all, and half a frame.
    drop(Client::connect(&worker));
    Client::connect(&worker).raw(&[0, 0, 1]);
    is_well(&worker, bystander);
}

#[test]
fn what_comes_after_the_end_harms_nobody() {
    let worker = worker();
    let mut client = Client::run(&worker, script_with_input("exit 3"));
    assert_eq!(client.finish(), EndCause::Exit { code: 3 });
    for _ in 0..4 {
        client.raw(&[0, 0, 0, 1, KIND_STDIN_END]);
    }
    client.raw(&[0xff; 100]);
    client.until_closed();
    assert_eq!(outcome(&worker, exec(&["true"])).0, OK);
}
