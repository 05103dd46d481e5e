//! Commands with a pseudo-terminal.

use iii_protocol::session::{
    EndCause, Exec, KIND_CLOSE_STDOUT, KIND_RESIZE, KIND_SIGNAL, Signal, Terminal, TerminalSize,
};

use crate::client::{Client, exec, outcome, script, worker};
use crate::shim::{Shim, is_alive, until};

const SIZE: TerminalSize = TerminalSize { rows: 41, columns: 101 };

fn on_terminal(exec: Exec) -> Exec {
    Exec { terminal: Some(Terminal { size: SIZE, term: None }), stdin: true, ..exec }
}

fn shell(worker: &Shim) -> Client {
    let mut client = Client::run(worker, on_terminal(exec(&["bash", "--norc", "--noediting", "-i"])));
    // The prompt is unlike any echo of what is typed.
    client.input(b"PS1='ready'\": \"\n");
    client.until_said("ready: ");
    client
}

#[test]
fn it_has_the_clients_size_and_name_and_is_the_controlling_one() {
    let worker = worker();
    let text = "stty size; echo $TERM; tty; ps -o tty= -p $$; test -t 0 && test -t 1 && test -t 2 && echo all; echo hi > /dev/tty";
    let mut exec = on_terminal(script(text));
    exec.terminal = Some(Terminal { size: SIZE, term: Some("vt220".into()) });
    let (cause, stdout, stderr) = outcome(&worker, exec.clone());
    assert_eq!((cause, stderr.as_str()), (EndCause::Exit { code: 0 }, ""));
    let lines: Vec<&str> = stdout.split("\r\n").collect();
    assert_eq!((lines[0], lines[1], lines[4], lines[5]), ("41 101", "vt220", "all", "hi"), "{stdout}");
    assert!(lines[2].starts_with("/dev/pts/") && lines[2].ends_with(lines[3]), "{stdout}");
    exec.terminal = Some(Terminal { size: SIZE, term: None });
    assert!(outcome(&worker, exec.clone()).1.contains("\r\nxterm\r\n"));
    exec.env = vec![("TERM".into(), "dumb".into())];
    assert!(outcome(&worker, exec).1.contains("\r\ndumb\r\n"));
}

#[test]
fn the_last_words_on_a_terminal_are_not_lost() {
    let worker = worker();
    for round in 0..20 {
        let (_, stdout, _) = outcome(&worker, on_terminal(script("seq 1 3000; printf last")));
        assert!(stdout.ends_with("3000\r\nlast"), "round {round}: {} bytes", stdout.len());
    }
}

#[test]
fn a_new_size_is_told_to_the_foreground() {
    let worker = worker();
    let text = "trap 'stty size; exit 3' WINCH; echo ready; while :; do sleep 0.02; done";
    let mut client = Client::run(&worker, on_terminal(script(text)));
    client.until_said("ready");
    client.say_json(KIND_RESIZE, &TerminalSize { rows: 50, columns: 120 });
    assert_eq!(client.finish(), EndCause::Exit { code: 3 });
    assert!(client.text().contains("50 120"), "{}", client.text());
}

#[test]
fn control_c_ends_the_foreground_and_not_the_shell() {
    let worker = worker();
    let mut client = shell(&worker);
    client.input(b"sh -c 'echo go''od; exec sleep 600'\n");
    client.until_said("good");
    client.input(b"\x03");
    client.input(b"echo status $((100 + $?))\n");
    client.until_said("status 230");
    client.input(b"exit 9\n");
    assert_eq!(client.finish(), EndCause::Exit { code: 9 });
}

#[test]
fn a_signal_reaches_the_foreground_process_group() {
    let worker = worker();
    let mut client = shell(&worker);
    client.input(b"sh -c 'echo go''od; exec sleep 600'\n");
    client.until_said("good");
    client.say_json(KIND_SIGNAL, &Signal { signal: 15 });
    client.input(b"echo status $((100 + $?))\n");
    client.until_said("status 243");
    client.input(b"exit\n");
    assert!(matches!(client.finish(), EndCause::Exit { .. }));
}

#[test]
fn jobs_are_stopped_and_go_on() {
    let worker = worker();
    let mut client = shell(&worker);
    client.input(b"sh -c 'echo go''od; read line; echo got $line; exit 4'\n");
    client.until_said("good");
    client.input(b"\x1a");
    client.until_said("Stopped");
    client.input(b"echo between $((1 + 1))\n");
    client.until_said("between 2");
    client.input(b"fg\n");
    client.input(b"words\n");
    client.until_said("got words");
    client.input(b"exit $?\n");
    assert_eq!(client.finish(), EndCause::Exit { code: 4 });
}

#[test]
fn the_end_of_input_ends_a_reader() {
    let worker = worker();
    let mut client = Client::run(&worker, on_terminal(exec(&["cat"])));
    client.input(b"line\npart");
    client.end_input();
    assert_eq!(client.finish(), EndCause::Exit { code: 0 });
    assert!(client.text().ends_with("part"), "{}", client.text());
}

#[test]
fn the_terminal_belongs_to_the_sessions_user() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: switching users needs root");
        return;
    }
    let worker = worker();
    let mut exec = on_terminal(script("stat -c %u $(tty); echo ok > $(tty)"));
    exec.user = Some("4242:4242".into());
    let (cause, stdout, _) = outcome(&worker, exec);
    assert_eq!((cause, stdout.as_str()), (EndCause::Exit { code: 0 }, "4242\r\nok\r\n"));
}

#[test]
fn a_terminal_that_nobody_looks_at_has_hung_up() {
    let worker = worker();
    let mut client = Client::run(&worker, on_terminal(exec(&["yes"])));
    client.until_said("y");
    client.say(KIND_CLOSE_STDOUT, &[]);
    assert_eq!(client.finish(), EndCause::Signal { signal: 1 });
}

#[test]
fn a_lost_client_hangs_up() {
    let worker = worker();
    let mut client = shell(&worker);
    client.input(b"sleep 600 & echo pid $((0 + $!)) end\n");
    client.until_said(" end\r\n");
    let text = client.text();
    let pid = text.rsplit("pid ").next().and_then(|rest| rest.split(' ').next()).expect("pid").to_owned();
    let shell = client.pid();
    drop(client);
    until("the shell is gone", || !is_alive(&shell));
    until("its job is gone", || !is_alive(&pid));
}
