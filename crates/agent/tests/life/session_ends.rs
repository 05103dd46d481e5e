//! That nothing of a session outlives it, however it ends.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use iii_protocol::exit::ExitCause;
use iii_protocol::session::{
    EndCause, Exec, KIND_CREDIT, KIND_KILL, KIND_STDIN, Task, WINDOW_BYTES, credit_payload,
};

use crate::client::{Client, OK, exec, outcome, script, script_with_input, worker, worker_of};
use crate::shim::{Shim, is_alive, sh, until};

/// A script that leaves a daemon behind: twice forked, in a session of its own, with the streams open. It
/// prints the daemon's process id and `ready`.
fn daemon(shim: &Shim, and_then: &str) -> String {
    let file = shim.path("daemon");
    fs::write(&file, "trap '' HUP TERM; echo $$ ready; exec sleep 600").expect("write");
    format!("sh -c 'setsid sh {file} & exit' & wait; {and_then}")
}

fn first_word(text: &str) -> &str {
    text.split_ascii_whitespace().next().expect("a word")
}

#[test]
fn a_daemon_that_holds_the_pipes_ends_with_its_command() {
    let worker = worker();
    for _ in 0..5 {
        let mut client = Client::run(&worker, script_with_input(&daemon(&worker, "read go; exit 4")));
        client.until_said("ready");
        client.input(b"go\n");
        assert_eq!(client.finish(), EndCause::Exit { code: 4 });
        let pid = first_word(&client.text()).to_owned();
        assert!(!Path::new("/proc").join(&pid).exists(), "{pid} is there when END was said");
    }
}

#[test]
fn a_connection_carries_one_session_after_the_other_and_each_is_like_the_first() {
    let worker = worker();
    assert_eq!(outcome(&worker, exec(&["true"])).0, OK);
    let bare = worker.settled();
    let mut client = Client::run(&worker, script_with_input("read line; echo got $line; exit 3"));
    client.input(b"one\n");
    assert_eq!(client.finish(), EndCause::Exit { code: 3 });
    assert_eq!(client.text(), "got one\n");
    let waiting = worker.settled();
    for round in 1..4 {
        // What has crossed the END on its way means nothing to the next one, whatever it is.
        client.say(KIND_STDIN, b"late");
        client.say(KIND_CREDIT, &credit_payload(1));
        client.say(KIND_KILL, &[]);
        client.say(200, b"");
        client.open_next(Task::Exec(script_with_input("cat; echo $0 end >&2; exit 4")));
        client.input(&vec![b'x'; WINDOW_BYTES + round]);
        client.end_input();
        assert_eq!(client.finish(), EndCause::Exit { code: 4 });
        assert_eq!(client.stdout.len(), WINDOW_BYTES + round, "no byte of another one");
        assert_eq!(client.stderr, b"sh end\n");
        // Between two sessions it holds no more than after the first.
        worker.until_settled(waiting);
    }
    client.open_next(Task::Pack { path: "/etc/hostname".into(), follow: false });
    assert_eq!(client.finish(), OK);
    assert!(!client.stdout.is_empty());
    // What could not start is the last.
    client.open_next(Task::Exec(exec(&["/nowhere"])));
    assert!(matches!(client.finish(), EndCause::NotFound { .. }));
    drop(client);
    worker.until_settled(bare);
}

#[test]
fn a_kill_takes_daemons_along() {
    let worker = worker();
    let mut client = Client::run(&worker, script(&daemon(&worker, "sleep 600")));
    client.until_said("ready");
    client.say(KIND_KILL, &[]);
    assert_eq!(client.finish(), EndCause::Signal { signal: 9 });
    assert!(!is_alive(first_word(&client.text())));
}

#[test]
fn orphans_are_reaped_while_the_session_runs() {
    let worker = worker();
    let orphans = "for i in 1 2 3 4 5; do sh -c '(sleep 0.1; exit 1) & echo $!'; done; echo all; sleep 600";
    let mut client = Client::run(&worker, script(orphans));
    client.until_said("all");
    for pid in client.text().lines().take(5) {
        until("the orphan is gone, not a zombie", || !Path::new("/proc").join(pid).exists());
    }
}

#[test]
fn a_timeout_comes_though_input_is_open_and_ends_all() {
    let worker = worker();
    let text = format!("trap '' TERM HUP INT; {}", daemon(&worker, "cat"));
    let mut client = Client::run(&worker, Exec { timeout_ms: Some(700), ..script_with_input(&text) });
    let start = Instant::now();
    client.until_said("ready");
    assert_eq!(client.finish(), EndCause::TimedOut);
    assert!(start.elapsed() >= Duration::from_millis(600) && start.elapsed() < Duration::from_secs(30));
    assert!(!Path::new("/proc").join(first_word(&client.text())).exists());
    let never = Exec { timeout_ms: Some(u64::MAX), ..script("exit 3") };
    assert_eq!(outcome(&worker, never).0, EndCause::Exit { code: 3 });
}

#[test]
fn a_lost_client_is_a_hangup_and_then_a_kill() {
    let worker = worker();
    let said = worker.path("said");
    let polite = format!("trap 'echo hangup > {said}; exit' HUP; echo ready; while :; do sleep 0.02; done");
    let mut client = Client::run(&worker, script(&polite));
    client.until_said("ready");
    drop(client);
    until("it was told", || fs::read_to_string(&said).is_ok_and(|text| text == "hangup\n"));

    let mut client = Client::run(&worker, script(&format!("trap '' HUP; {}", daemon(&worker, "sleep 600"))));
    client.until_said("ready");
    let (command, daemon) = (client.pid(), first_word(&client.text()).to_owned());
    drop(client);
    until("both are gone", || !is_alive(&command) && !is_alive(&daemon));
}

#[test]
fn a_stopped_command_hangs_up_too() {
    let worker = worker();
    let mut client = Client::run(&worker, script("echo ready; kill -STOP $$; sleep 600"));
    client.until_said("ready");
    let pid = client.pid();
    let start = Instant::now();
    drop(client);
    until("it is gone", || !is_alive(&pid));
    assert!(start.elapsed() < Duration::from_millis(1900), "it had to be killed");
}

#[test]
fn a_detached_session_runs_on_and_its_timeout_counts() {
    let worker = worker();
    let out = worker.path("out");
    let detached = |text: &str| Exec { detach: true, stdin: true, ..script(text) };
    let mut client =
        Client::run(&worker, detached(&format!("cat; echo lost; sleep 0.2; echo done > {out}; sleep 600")));
    assert_eq!(client.finish(), EndCause::Detached);
    assert!(client.stdout.is_empty());
    let pid = client.pid();
    drop(client);
    until("it went on", || fs::read_to_string(&out).is_ok_and(|text| text == "done\n"));
    assert!(is_alive(&pid));

    let mut client = Client::run(&worker, Exec { timeout_ms: Some(300), ..detached("sleep 600") });
    assert_eq!(client.finish(), EndCause::Detached);
    until("its time is up", || !is_alive(&client.pid()));
    assert!(matches!(
        outcome(&worker, Exec { detach: true, ..exec(&["ghost"]) }).0,
        EndCause::NotFound { .. }
    ));
}

#[test]
fn a_worker_that_ends_closes_its_sessions_without_a_word() {
    let mut worker = worker_of(sh("read x < /dev/null; trap 'exit 6' TERM; while :; do sleep 0.02; done"));
    let mut clients: Vec<Client> =
        (0..8).map(|_| Client::run(&worker, script("trap '' TERM HUP; echo ready; sleep 600"))).collect();
    for client in &mut clients {
        client.until_said("ready");
    }
    let mut detached = Client::run(&worker, Exec { detach: true, ..script("sleep 600") });
    detached.finish();
    let asked = Instant::now();
    worker.stop(15, 60_000);
    let life = worker.hear_all();
    assert_eq!(life.exit.cause, ExitCause::Exit { code: 6 });
    assert!(asked.elapsed() < Duration::from_secs(20));
    for client in &mut clients {
        client.until_closed();
        assert!(!is_alive(&client.pid()));
    }
    assert!(!is_alive(&detached.pid()));
}

#[test]
fn a_worker_that_is_killed_closes_its_sessions_without_a_word() {
    for _ in 0..5 {
        let mut worker = worker();
        let mut client = Client::run(&worker, script("echo ready; sleep 600"));
        client.until_said("ready");
        worker.stop(15, 0);
        assert_eq!(worker.hear_all().exit.cause, ExitCause::Signal { signal: 9 });
        client.until_closed();
    }
}

#[test]
fn sessions_that_come_while_the_worker_ends_do_not_hold_it_up() {
    for _ in 0..5 {
        let worker = worker_of(sh("sleep 0.1; exit 2"));
        let clients: Vec<Client> = (0..20).map(|_| Client::open(&worker, script("sleep 600"))).collect();
        assert_eq!(worker.hear_all().exit.cause, ExitCause::Exit { code: 2 });
        for mut client in clients {
            client.until_closed();
        }
    }
}

#[test]
fn an_ended_session_leaves_no_thread_and_no_file() {
    let worker = worker();
    assert_eq!(outcome(&worker, script("true")).0, OK);
    let bare = worker.settled();
    for _ in 0..20 {
        outcome(&worker, script_with_input("echo x"));
        outcome(&worker, exec(&["ghost"]));
        drop(Client::run(&worker, script_with_input("cat")));
        drop(Client::connect(&worker));
    }
    worker.until_settled(bare);
}
