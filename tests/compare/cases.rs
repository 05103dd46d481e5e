//! The cases. `dir` holds the files that `programs` writes.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use nix::sys::signal::Signal;

use super::run::{Case, Input};

const MIB: usize = 1 << 20;
/// The longest argument Linux passes on, less its zero byte, is 128 KiB.
const LONG_ARGUMENT: usize = 100_000;

pub(super) fn all(dir: &str) -> Vec<Case> {
    let mut all = programs(dir);
    all.extend(ends());
    all.extend(signals_to_the_client());
    all.extend(inputs());
    all.extend(outputs());
    all.extend(arguments(dir));
    all.extend(surroundings(dir));
    // `crun` gives the standard streams to the user: not this host's /dev/null!
    all.extend(users(dir).into_iter().map(|case| Case { input: Input::Bytes(Vec::new()), ..case }));
    all.extend(terminals());
    all
}

fn case(name: &'static str, argv: &[&str]) -> Case {
    Case { name, argv: argv.iter().map(OsString::from).collect(), ..Case::default() }
}

fn sh(name: &'static str, script: &str) -> Case {
    case(name, &["/bin/sh", "-c", script])
}

/// What is and what is no program.
fn programs(dir: &str) -> Vec<Case> {
    let file = |name| format!("{dir}/{name}");
    vec![
        case("no such name", &["no-such-program"]),
        case("no such path", &["/no/such/program"]),
        case("path through a file", &[&file("script/x")]),
        case("not executable", &[&file("not-executable")]),
        case("folder as program", &[dir]),
        case("device as program", &["/dev/null"]),
        case("empty name", &[""]),
        case("no interpreter", &[&file("no-interpreter")]),
        case("no first line", &[&file("no-first-line")]),
        case("empty file", &[&file("empty")]),
        case("damaged ELF file", &[&file("elf")]),
        case("script", &[&file("script"), "a", "b c"]),
        Case { cwd: Some(dir.to_owned()), ..case("relative path", &["./script", "a"]) },
        Case {
            cwd: Some("/bin".to_owned()),
            ..case("bare name is not of the folder", &["./sh", "-c", "echo $0"])
        },
        case("bare name", &["echo", "hello"]),
        Case { env: vec!["PATH=/nowhere"], ..case("own PATH, not there", &["echo", "hello"]) },
        Case { env: vec!["PATH=/bin"], ..case("own PATH", &["echo", "hello"]) },
    ]
}

/// Ways to end.
fn ends() -> Vec<Case> {
    let mut all = vec![
        case("true", &["true"]),
        case("false", &["false"]),
        sh("exit 2", "exit 2"),
        sh("exit 7", "exit 7"),
        sh("exit 124", "exit 124"),
        sh("exit 125", "exit 125"),
        sh("exit 126", "exit 126"),
        sh("exit 127", "exit 127"),
        sh("exit 128", "exit 128"),
        sh("exit 130", "exit 130"),
        sh("exit 137", "exit 137"),
        sh("exit 200", "exit 200"),
        sh("exit 255", "exit 255"),
        sh("exit 256", "exit 256"),
        sh("nested shells", "sh -c 'sh -c \"echo deep; exit 9\"; echo $?; exit 8'; echo $?; exit 6"),
        sh("shell whose command is killed", "sh -c 'kill -9 $$'; echo $?"),
        sh("output of a process left behind", "(sleep 0.5; echo late) & echo early"),
        sh("process left behind without streams", "sleep 1 >/dev/null 2>&1 </dev/null & echo early"),
    ];
    for (name, signal) in [
        ("died of HUP", "HUP"),
        ("died of INT", "INT"),
        ("died of QUIT", "QUIT"),
        ("died of ILL", "ILL"),
        ("died of ABRT", "ABRT"),
        ("died of FPE", "FPE"),
        ("died of KILL", "KILL"),
        ("died of USR1", "USR1"),
        ("died of SEGV", "SEGV"),
        ("died of PIPE", "PIPE"),
        ("died of ALRM", "ALRM"),
        ("died of TERM", "TERM"),
        ("died of a real-time signal", "40"),
    ] {
        all.push(sh(name, &format!("ulimit -c 0; kill -{signal} $$; sleep 5")));
    }
    all
}

/// Signals to `iii` and `crun` themselves.
fn signals_to_the_client() -> Vec<Case> {
    let mut all = Vec::new();
    for (name, caught, signal) in [
        ("client gets INT", "client gets INT, caught", Signal::SIGINT),
        ("client gets TERM", "client gets TERM, caught", Signal::SIGTERM),
        ("client gets HUP", "client gets HUP, caught", Signal::SIGHUP),
        ("client gets QUIT", "client gets QUIT, caught", Signal::SIGQUIT),
    ] {
        let signal = Some(signal);
        let plain = case(name, &["/bin/sh", "-c", "ulimit -c 0; echo ready; exec sleep 2"]);
        all.push(Case { signal, ..plain });
        let trap = "trap 'echo caught; exit 3' INT TERM HUP QUIT; \
                    sleep 0.5 >/dev/null 2>&1 & echo ready; wait";
        all.push(Case { signal, ..sh(caught, trap) });
    }
    let child = "sh -c 'trap \"echo caught; exit\" TERM; sleep 0.5 >/dev/null 2>&1 & echo ready; wait'";
    let script = format!("trap : TERM; {child} & wait; wait");
    all.push(Case { signal: Some(Signal::SIGTERM), ..sh("client gets TERM, a child", &script) });
    all
}

fn inputs() -> Vec<Case> {
    let bytes = |count: usize| Input::Bytes((0..count).map(|i| (i * 31 + i / 251) as u8).collect());
    let text = |text: &str| Input::Bytes(text.into());
    vec![
        case("input from /dev/null", &["cat"]),
        Case { redirect: Some("<&-"), ..case("input closed", &["cat"]) },
        Case { input: text(""), ..case("empty input", &["wc", "-c"]) },
        Case { input: text("no newline"), ..case("input without newline", &["cat"]) },
        Case { input: bytes(100_000), ..case("binary input and output", &["cat"]) },
        Case { input: bytes(10 * MIB), ..case("big input", &["sha256sum"]) },
        Case { input: bytes(10 * MIB), ..case("big input, big output", &["cat"]) },
        Case { input: bytes(4 * MIB), ..case("input that nobody reads", &["true"]) },
        Case { input: bytes(4 * MIB), ..case("input read in part", &["head", "-c", "5"]) },
        Case { input: Input::Open, ..case("input left open", &["echo", "done"]) },
        Case { input: text("one\ntwo\n"), ..sh("input of two readers", "read a; echo $a; cat") },
    ]
}

fn outputs() -> Vec<Case> {
    let order = "for i in 1 2 3 4 5; do echo out $i; echo err $i >&2; done";
    vec![
        case("big output", &["head", "-c", "10000000", "/dev/zero"]),
        sh("big output on stderr", "head -c 10000000 /dev/zero >&2"),
        sh("big output on both", "head -c 3000000 /dev/zero & head -c 3000000 /dev/zero >&2; wait"),
        sh("no newline at the end", "printf abc"),
        sh("no output", ":"),
        sh("NUL bytes", "printf 'a\\000b\\000'"),
        sh("every byte", "i=0; while [ $i -lt 256 ]; do printf \\\\$(printf %o $i); i=$((i+1)); done"),
        sh("carriage returns", "printf 'a\\rb\\r\\n'"),
        sh("stdout and stderr apart, in order", order),
        sh("stdout and stderr together, in order", &format!("{{ {order}; }} 2>&1")),
        sh("many small writes", "i=0; while [ $i -lt 500 ]; do echo $i; i=$((i+1)); done"),
        sh("command closes its stdout", "exec >&-; echo x; echo $? >&2"),
        Case { redirect: Some(">&-"), ..sh("stdout closed", "echo x; echo $? >&2") },
        Case { redirect: Some("2>&-"), ..sh("stderr closed", "echo x >&2; echo $?") },
        Case { redirect: Some(">&- 2>&- <&-"), ..case("all three closed", &["true"]) },
        Case { redirect: Some(">/dev/full"), ..case("stdout full", &["echo", "x"]) },
        Case { leave_after: Some(2), ..case("reader leaves", &["yes"]) },
    ]
}

fn arguments(dir: &str) -> Vec<Case> {
    let with = |name, many: &[String]| {
        let mut case = case(name, &["/bin/sh", "-c", "echo $# ${#1}", "sh"]);
        case.argv.extend(many.iter().map(OsString::from));
        case
    };
    let mut not_text = case("argument that is not UTF-8", &["printf", "%s"]);
    not_text.argv.push(OsString::from_vec(b"a\xffb".to_vec()));
    let long = "x".repeat(LONG_ARGUMENT);
    vec![
        case("arguments as they are", &["printf", "[%s]", "", " ", "a  b", "$HOME", "*", "\"'\\", "\n", "é"]),
        not_text,
        case("arguments like flags", &["printf", "%s\n", "-t", "--help", "--", "-e", "A=1"]),
        with("many arguments", &vec!["a".to_owned(); 5_000]),
        with("long argument", std::slice::from_ref(&long)),
        with("arguments of 700 KB", &vec![long.clone(); 7]),
        with("arguments of 1.2 MB", &vec![long; 12]),
        with("argument of 1 MiB", &["x".repeat(MIB)]),
        case("name of a script", &[&format!("{dir}/script")]),
    ]
}

fn surroundings(dir: &str) -> Vec<Case> {
    let env = |name, env: &[&'static str], script| Case { env: env.to_vec(), ..sh(name, script) };
    let cwd = |name, cwd: &str| Case { cwd: Some(cwd.to_owned()), ..sh(name, "/bin/pwd; echo $PWD") };
    vec![
        env("variable", &["A=1 2"], "echo \"$A\""),
        env("variable with =", &["A=b=c=d"], "echo \"$A\""),
        env("last variable wins", &["A=1", "A=2"], "echo \"$A\"; env | grep -c ^A="),
        env("empty variable", &["A="], "echo \"${A-unset}.\""),
        env("variable of many lines", &["A=1\n2\n"], "printf %s \"$A\""),
        env("variable of the caller", &["CALLERS"], "echo \"${CALLERS-unset}\""),
        env("variable the caller has not", &["NOT_SET"], "echo \"${NOT_SET-unset}\""),
        env("variable without a name", &["=x"], "echo hello"),
        env("caller's variables stay away", &[], "echo \"${CALLERS-unset}\""),
        env("own HOME", &["HOME=/tmp"], "echo \"$HOME\""),
        sh("PATH", "echo \"$PATH\""),
        sh("TERM without a terminal", "echo \"${TERM-unset}\""),
        cwd("folder", dir),
        cwd("folder with an end slash", "/tmp/"),
        cwd("folder missing", "/no/such/folder"),
        cwd("folder is a file", &format!("{dir}/script")),
        cwd("folder not absolute", "tmp"),
        cwd("folder empty", ""),
        sh("umask", "umask"),
        sh(
            "signals are as by default",
            "grep -E 'Sig(Blk|Ign)' /proc/self/status | sed 's/:.*\\(.......\\)$/ \\1/'",
        ),
        sh(
            "leads its process group",
            "ps -o pid=,pgid= -p $$ | (read a b; [ $a = $b ] && echo yes || echo no)",
        ),
        sh("leads its session", "ps -o pid=,sid= -p $$ | (read a b; [ $a = $b ] && echo yes || echo no)"),
    ]
}

fn users(dir: &str) -> Vec<Case> {
    let script = "id -u; id -g; id -G";
    let as_root = |name, user| Case { user: Some(user), needs_root: true, ..sh(name, script) };
    vec![
        Case { needs_root: true, ..sh("user by default", script) },
        Case { user: Some("0"), needs_root: true, ..sh("HOME of root", "echo \"$HOME\"") },
        as_root("user by number", "1234"),
        as_root("user and group by number", "1234:2345"),
        as_root("root by number", "0:0"),
        as_root("user by name", "nobody"),
        as_root("user and group by name", "nobody:daemon"),
        Case {
            user: Some("1234:2345"),
            needs_root: true,
            ..sh("HOME of an unknown number", "echo \"$HOME\"")
        },
        Case { user: Some("no-such-user"), ..sh("user missing", script) },
        Case { user: Some("0:no-such-group"), ..sh("group missing", script) },
        Case { user: Some(""), ..sh("user empty", script) },
        Case {
            user: Some("1234:2345"),
            needs_root: true,
            ..case("not that user's file", &["cat", "/etc/shadow"])
        },
        Case {
            user: Some("1234:2345"),
            needs_root: true,
            cwd: Some(dir.to_owned()),
            ..sh("not that user's folder", "pwd")
        },
    ]
}

fn terminals() -> Vec<Case> {
    let on = |case| Case { terminal: Some((33, 77)), ..case };
    let typed = |text: &str, case| Case { input: Input::Bytes(text.into()), ..on(case) };
    vec![
        on(sh("terminal: lines end in CR LF", "echo a; echo b")),
        on(sh("terminal: stderr is the same", "echo a; echo b >&2; echo c")),
        on(sh("terminal: all three", "test -t 0 && test -t 1 && test -t 2 && echo yes")),
        on(sh("terminal: it is the controlling one", "echo yes >/dev/tty")),
        on(sh("terminal: size", "stty size")),
        on(sh("terminal: settings", "stty -a | tail -n +2")),
        on(sh("terminal: TERM", "echo \"${TERM-unset}\"")),
        on(sh("terminal: exit code", "exit 7")),
        on(sh("terminal: died of TERM", "kill -TERM $$")),
        on(case("terminal: no such name", &["no-such-program"])),
        typed("hello\r", sh("terminal: a line is echoed", "echo ready; read line; echo \"<$line>\"")),
        typed("\u{4}", sh("terminal: Ctrl-D", "echo ready; cat; echo end")),
        typed("\u{3}", sh("terminal: Ctrl-C", "echo ready; exec sleep 10")),
        typed("\u{1c}", sh("terminal: Ctrl-\\", "ulimit -c 0; echo ready; exec sleep 10")),
        on(sh("terminal: big output", "head -c 300000 /dev/zero")),
        Case { redirect: Some("</dev/null"), ..on(sh("terminal: input is none", "echo hello")) },
    ]
}
