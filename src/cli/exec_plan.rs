//! From the command line and the surroundings to what the agent is asked to run: pure.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use iii_protocol::session::{Exec, Terminal, TerminalSize};

use super::args::ExecArgs;
use super::exit::Failure;

/// What the caller's side looks like.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Standard input is a terminal.
    pub stdin_is_terminal: bool,
    /// Standard input is `/dev/null`.
    pub stdin_is_null: bool,
    /// Standard output is a terminal.
    pub stdout_is_terminal: bool,
    /// The size of whichever terminal there is.
    pub size: Option<TerminalSize>,
    /// `TERM`.
    pub term: Option<String>,
}

/// What the agent is asked to run. `variable` looks one up in the caller's environment.
pub fn plan(
    args: &ExecArgs,
    here: &Surroundings,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Exec, Failure> {
    let program = args.command.first().ok_or_else(|| Failure::usage("there is no command to run"))?;
    if program.is_empty() {
        return Err(Failure::usage("the command's name is empty"));
    }
    if args.workdir.as_deref() == Some("") {
        return Err(Failure::usage("the path of -w is empty").hint("leave it out for /workspace"));
    }
    if args.user.as_deref() == Some("") {
        return Err(Failure::usage("the user of -u is empty").hint("leave it out for the worker's own"));
    }
    let on_terminal = here.stdin_is_terminal && here.stdout_is_terminal;
    // Nobody would look at a detached one.
    let wants_terminal = !args.detach && (args.tty || (!args.no_tty && on_terminal));
    let unknown = TerminalSize { rows: 0, columns: 0 };
    Ok(Exec {
        argv: args.command.iter().map(|word| text(word)).collect::<Result<_, _>>()?,
        env: environment(&args.env, variable)?,
        cwd: args.workdir.clone(),
        user: args.user.clone(),
        terminal: wants_terminal
            .then(|| Terminal { size: here.size.unwrap_or(unknown), term: here.term.clone() }),
        // The guest has an empty input of its own; a terminal's is ended by a character.
        stdin: !args.detach && (wants_terminal || !here.stdin_is_null),
        timeout_ms: args.timeout.map(in_ms),
        detach: args.detach,
    })
}

/// A word of the command line, which crosses to the machine as text.
fn text(word: &OsStr) -> Result<String, Failure> {
    word.to_str().map(str::to_owned).ok_or_else(|| {
        let shown = word.as_bytes().escape_ascii();
        Failure::usage(format!("`{shown}` is not UTF-8, as every word of the command must be"))
            .hint("send such bytes through stdin, or have a shell make them: `sh -c 'printf \"\\377\"'`")
    })
}

/// At least one: a limit that is shorter is no "no limit".
fn in_ms(limit: Duration) -> u64 {
    u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).max(1)
}

fn environment(
    flags: &[String],
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Vec<(String, String)>, Failure> {
    let mut all = Vec::new();
    for flag in flags {
        let (key, value) = match flag.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (flag.as_str(), None),
        };
        if key.is_empty() {
            return Err(Failure::usage(format!("-e {flag}: a variable needs a name"))
                .hint("write -e KEY=VALUE, or -e KEY to take it from here"));
        }
        let value = match value {
            Some(value) => value,
            None => match variable(key).map(OsString::into_string) {
                Some(Ok(value)) => value,
                Some(Err(_)) => {
                    return Err(Failure::usage(format!("-e {key}: its value here is not UTF-8")));
                }
                // As docker: what is not set here is not set there.
                None => continue,
            },
        };
        all.push((key.to_owned(), value));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use clap::Parser as _;

    use super::super::args::{Cli, Command, WorkerCommand};
    use super::*;

    fn args(line: &[&str]) -> ExecArgs {
        let all = ["iii", "worker", "exec"].iter().chain(line);
        match Cli::parse_from(all).command {
            Some(Command::Worker(WorkerCommand::Exec(args))) => args,
            other => panic!("{other:?}"),
        }
    }

    fn planned(line: &[&str], here: &Surroundings) -> Result<Exec, Failure> {
        plan(&args(line), here, |key| match key {
            "HERE" => Some("yes".into()),
            "ODD" => Some(OsString::from_vec(vec![0xff])),
            _ => None,
        })
    }

    #[test]
    fn variables_are_given_taken_from_here_or_left_out() {
        let line = ["-e", "A=1=2", "-e", "HERE", "-e", "NOWHERE", "-e", "EMPTY=", "web", "env"];
        let exec = planned(&line, &Surroundings::default()).unwrap();
        let env: Vec<_> = exec.env.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(env, [("A", "1=2"), ("HERE", "yes"), ("EMPTY", "")]);
        for (flag, told) in [("=x", "needs a name"), ("", "needs a name"), ("ODD", "not UTF-8")] {
            let failure = planned(&["-e", flag, "web", "env"], &Surroundings::default()).unwrap_err();
            assert_eq!(failure.code(), 2);
            assert!(failure.text().unwrap().contains(told), "{failure:?}");
        }
    }

    #[test]
    fn a_terminal_only_where_both_ends_are_one_unless_asked_for() {
        let size = TerminalSize { rows: 24, columns: 80 };
        let at = |stdin, stdout| Surroundings {
            stdin_is_terminal: stdin,
            stdin_is_null: false,
            stdout_is_terminal: stdout,
            size: Some(size),
            term: Some("screen".to_owned()),
        };
        let has = |line: &[&str], here| planned(line, &here).unwrap().terminal;
        let whole = Some(Terminal { size, term: Some("screen".to_owned()) });
        assert_eq!(has(&["web", "sh"], at(true, true)), whole);
        assert_eq!(has(&["web", "sh"], at(true, false)), None);
        assert_eq!(has(&["web", "sh"], at(false, true)), None);
        assert_eq!(has(&["-t", "web", "sh"], at(false, false)), whole);
        assert_eq!(has(&["--no-tty", "web", "sh"], at(true, true)), None);
        assert_eq!(has(&["-d", "web", "sh"], at(true, true)), None);
        assert_eq!(has(&["-itd", "web", "sh"], at(true, true)), None);
        let nowhere = has(&["-t", "web", "sh"], Surroundings::default()).unwrap();
        assert_eq!(nowhere.size, TerminalSize { rows: 0, columns: 0 });
    }

    #[test]
    fn a_detached_command_has_no_input_and_the_shortest_limit_is_a_millisecond() {
        let exec = planned(&["-d", "--timeout", "1us", "web", "sleep"], &Surroundings::default()).unwrap();
        assert!(exec.detach && !exec.stdin);
        assert_eq!(exec.timeout_ms, Some(1));
        let exec = planned(&["--timeout", "1500ms", "web", "sleep"], &Surroundings::default()).unwrap();
        assert!(!exec.detach && exec.stdin);
        assert_eq!(exec.timeout_ms, Some(1500));
    }

    #[test]
    fn an_empty_input_is_not_sent_unless_a_terminal_has_to_end() {
        let null = Surroundings { stdin_is_null: true, ..Surroundings::default() };
        assert!(!planned(&["web", "cat"], &null).unwrap().stdin);
        assert!(planned(&["-t", "web", "cat"], &null).unwrap().stdin);
        assert!(planned(&["web", "cat"], &Surroundings::default()).unwrap().stdin);
    }

    #[test]
    fn a_word_that_is_no_text_is_shown_with_what_to_do_instead() {
        let mut args = args(&["web", "cat"]);
        args.command.push(OsString::from_vec(b"a\xff\n".to_vec()));
        let failure = plan(&args, &Surroundings::default(), |_| None).unwrap_err();
        assert_eq!(failure.code(), 2);
        let told = failure.text().unwrap();
        assert!(told.starts_with("error: `a\\xff\\n` is not UTF-8") && told.contains("stdin"), "{told}");
    }

    #[test]
    fn empty_names_are_wrong_usage() {
        for line in [&["web", ""][..], &["-w", "", "web", "ls"], &["-u", "", "web", "ls"]] {
            assert_eq!(planned(line, &Surroundings::default()).unwrap_err().code(), 2, "{line:?}");
        }
    }
}
