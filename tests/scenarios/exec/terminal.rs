//! `exec` on a terminal: what a person sees, and the terminal they get back.

use std::io::Write as _;
use std::process::Stdio;

use nix::sys::signal::Signal;

use super::super::bed::Bed;
use super::super::person::{Person, size};
use super::web;

/// Somebody who types `iii worker exec ...`.
fn exec(bed: &Bed, args: &[&str], env: &[(&str, &str)]) -> Person {
    Person::runs(bed, &[&["worker", "exec"], args].concat(), env)
}

#[test]
fn who_sits_at_a_terminal_gets_one() {
    let (bed, _daemon) = web();
    let script = "test -t 0 && test -t 1 && test -t 2 && echo \"all $TERM\"; tty; stty size; exit 7";
    let person = exec(&bed, &["web", "--", "/bin/sh", "-c", script], &[("TERM", "screen-256color")]);
    let (code, shown) = person.leaves();
    assert_eq!(code, 7, "{shown}");
    let lines: Vec<_> = shown.split("\r\n").collect();
    assert_eq!((lines[0], lines[2], lines[3]), ("all screen-256color", "33 101", ""), "{shown:?}");
    assert!(lines[1].starts_with("/dev/pts/"), "{shown:?}");
}

#[test]
fn who_does_not_want_a_terminal_gets_pipes() {
    let (bed, _daemon) = web();
    let script = "for i in 0 1 2; do test -t $i && echo $i is one; done; echo none; exit 3";
    let person = exec(&bed, &["--no-tty", "web", "--", "/bin/sh", "-c", script], &[]);
    assert_eq!(person.leaves(), (3, "none\r\n".to_owned()));
}

#[test]
fn a_terminal_may_be_asked_for_with_redirected_input() {
    let (bed, _daemon) = web();
    let script = "test -t 0 && test -t 1 && test -t 2 && read -r word && echo \"read $word\"; cat; exit 4";
    let mut child = bed
        .command(&["worker", "exec", "-t", "web", "--", "/bin/sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"it\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    // The end of the input is the terminal's end-of-input character: `cat` ends.
    assert_eq!(output.status.code(), Some(4), "{said:?}");
    assert!(said.contains("read it\r\n"), "{said:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn ctrl_c_ends_what_runs_in_front_and_the_shell_goes_on() {
    let (bed, _daemon) = web();
    let mut person = exec(&bed, &["-e", "PS1=ready> ", "web", "/bin/sh"], &[("TERM", "xterm")]);
    person.sees("ready> ");
    assert_ne!(person.modes(), person.modes_before, "raw while the session runs");
    // Said by what runs in front, not by the shell before that is so: Ctrl-C would then be the shell's.
    person.types("sh -c 'echo begin-$((1+1)); exec sleep 1000'\r");
    person.sees("begin-2");
    person.types("\x03");
    person.sees("ready> ");
    person.types("echo after-$((2+2)); exit 5\r");
    person.sees("after-4");
    let (code, shown) = person.leaves();
    assert_eq!(code, 5, "{shown}");
}

#[test]
fn the_command_sees_each_new_size() {
    let (bed, _daemon) = web();
    let script = "trap 'echo \"now $(stty size)\"' WINCH; echo \"at first $(stty size)\"; \
                  while :; do sleep 1 & wait $!; done";
    let mut person = exec(&bed, &["web", "--", "/bin/sh", "-c", script], &[]);
    person.sees("at first 33 101\r\n");
    person.master.resize(size(20, 66)).unwrap();
    person.sees("now 20 66\r\n");
    person.master.resize(size(55, 140)).unwrap();
    person.sees("now 55 140\r\n");
    person.types("\x03");
    let (code, shown) = person.leaves();
    assert_eq!(code, 130, "{shown}");
}

#[test]
fn full_screen_programs_draw_take_keys_and_leave() {
    let (bed, _daemon) = web();
    let name = bed.home().parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    let file = format!("/tmp/screen-{name}");
    let run =
        |program: &[&str]| exec(&bed, &[&["web", "--", "busybox"], program].concat(), &[("TERM", "xterm")]);
    let mut vi = run(&["vi", &file]);
    // A line is drawn below the last of the text, up to the one that is kept for commands.
    vi.sees("\x1b[32;1H~");
    vi.types("ione two\rthree\x1b");
    vi.sees("three");
    vi.types("1Gdw:wq\r");
    assert_eq!(vi.leaves().0, 0);
    assert_eq!(bed.ok(&["worker", "exec", "web", "--", "cat", &file]), "two\nthree\n");

    let mut less = run(&["less", &file]);
    less.sees("three");
    less.types("q");
    assert_eq!(less.leaves().0, 0);
    bed.ok(&["worker", "exec", "web", "--", "rm", &file]);

    let mut top = run(&["top"]);
    top.sees("Load average:");
    top.sees("COMMAND");
    top.types("q");
    assert_eq!(top.leaves().0, 0);
}

#[test]
fn sigterm_gives_the_terminal_back_at_once() {
    let (bed, _daemon) = web();
    let script = "trap '' TERM HUP; printf ready; sleep 1000";
    let mut person = exec(&bed, &["web", "--", "/bin/sh", "-c", script], &[]);
    person.sees("ready");
    assert_ne!(person.modes(), person.modes_before);
    person.signal(Signal::SIGTERM);
    let (code, shown) = person.leaves();
    assert_eq!((code, shown.as_str()), (143, "ready"));
}

#[test]
fn a_worker_that_stops_is_told_on_a_line_of_its_own() {
    let (bed, _daemon) = web();
    let script = "printf 'half a line'; sleep 1000";
    let mut person = exec(&bed, &["web", "--", "/bin/sh", "-c", script], &[]);
    person.sees("half a line");
    bed.ok(&["worker", "stop", "web"]);
    let (code, shown) = person.leaves();
    assert_eq!(code, 125, "{shown}");
    let told = "half a line\r\nerror: worker `web` was stopped while the command ran\r\n\r\nhint: ";
    assert!(shown.starts_with(told), "{shown:?}");
}
