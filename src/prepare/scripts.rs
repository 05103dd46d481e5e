//! Runs `setup` and `install` in the machine, if they have to.

use std::collections::VecDeque;

use iii_protocol::frame::Frame;
use iii_protocol::session::{EndCause, Exec, Task};
use iii_protocol::shim::LAST_LINES;

use super::marker::{Kept, Script};
use super::{Failed, KIND_INSTALL, KIND_SETUP, Order, copy, note, progress, session, tell};
use crate::project::install_key::{Difference, Key};
use crate::session::Output;

/// Lines of a script's output that its failure shows.
const SHOWN_LINES: usize = 20;
/// Bytes of them.
const SHOWN_BYTES: usize = 4096;
/// Reasons to run a script that the log names.
const SHOWN_REASONS: usize = 10;
/// Those that the worker's status names, which is one line.
const STATUS_REASONS: usize = 2;
/// Characters of a script that a message shows.
const SHOWN_SCRIPT_CHARS: usize = 200;
/// Exit codes as a shell gives them.
const SIGNAL_BASE: i32 = 128;

/// What both scripts depend on now.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    pub(super) setup: Key,
    pub(super) install: Key,
}

/// Runs what has not run with these keys on this disk. Gives whether there was anything.
pub(super) async fn run_both(order: &Order, keys: Keys, mut marker: Kept) -> Result<bool, Failed> {
    let mut has_run = false;
    let both = [
        (Script::Setup, order.project.setup.as_deref(), keys.setup),
        (Script::Install, order.project.install.as_deref(), keys.install),
    ];
    for (which, script, key) in both {
        let mut why = marker.why(which, &key);
        if why.is_empty() {
            continue;
        }
        if order.base_changed && why == [Difference::NeverFinished] {
            why = vec![Difference::BaseImage];
        }
        if let Some(script) = script {
            let name = which.name();
            note(format!("{name} runs ({}): {}", told(&why, SHOWN_REASONS), shown(script)));
            progress(format!("{name} runs ({})", told(&why, STATUS_REASONS)));
            marker.set(which, None)?;
            run(order, which, script).await?;
            copy::flush(order, which.name()).await?;
            has_run = true;
        }
        marker.set(which, Some(key))?;
    }
    Ok(has_run)
}

/// Reasons, of which a large edit makes many.
fn told(why: &[Difference], most: usize) -> String {
    let first: Vec<String> = why.iter().take(most).map(ToString::to_string).collect();
    match why.len().saturating_sub(most) {
        0 => first.join(", "),
        more => format!("{}, {more} more", first.join(", ")),
    }
}

async fn run(order: &Order, which: Script, script: &str) -> Result<(), Failed> {
    let name = which.name();
    let exec = Exec { cwd: Some(order.workspace.clone()), ..Exec::new(["/bin/sh", "-c", script]) };
    let lost = |why: &dyn std::fmt::Display| Failed::new(name, format!("the machine was lost: {why}"));
    let session = session(&order.session_socket, Task::Exec(exec)).await.map_err(|e| lost(&e))?;
    let (mut ending, mut tail) = (session.ending, Tail::default());
    let kind = if which == Script::Setup { KIND_SETUP } else { KIND_INSTALL };
    carry([session.stdout, session.stderr], kind, &mut tail).await;
    let end = ending.wait().await.map_err(|e| lost(&e))?;
    let is_full = tail.shown().contains("No space left on device");
    let how = match end.cause {
        EndCause::Exit { code: 0 } => return Ok(()),
        EndCause::Exit { code } => format!("exit code {code}"),
        EndCause::Signal { signal } => format!("signal {signal}, exit code {}", SIGNAL_BASE + signal),
        EndCause::NotFound { message, .. }
        | EndCause::CannotExecute { message, .. }
        | EndCause::CouldNotStart { message, .. }
        | EndCause::CopyFailed { message, .. } => message,
        EndCause::TimedOut | EndCause::Detached => "it was not waited for".to_owned(),
    };
    Err(Failed {
        what: name.to_owned(),
        message: format!("{name} failed ({how}): {}{}", shown(script), tail.shown()),
        hint: Some(match is_full {
            true => copy::DISK_HINT.to_owned(),
            false => format!(
                "look inside with `iii worker exec {0} -- sh`; `iii worker start {0}` tries again",
                order.worker
            ),
        }),
    })
}

/// Passes both outputs on until both have ended; in the order in which they come.
async fn carry(outputs: [Output; 2], kind: u8, tail: &mut Tail) {
    let [mut stdout, mut stderr] = outputs;
    let (mut first, mut second) = (true, true);
    while first || second {
        let bytes = tokio::select! {
            bytes = stdout.next(), if first => { first = bytes.is_some(); bytes }
            bytes = stderr.next(), if second => { second = bytes.is_some(); bytes }
        };
        if let Some(bytes) = bytes {
            tail.add(&bytes);
            // A shim that is gone ends this process.
            let _gone = tell(&Frame { kind, payload: bytes.to_vec() });
        }
    }
}

/// The end of what a script wrote.
#[derive(Debug, Default)]
struct Tail(VecDeque<u8>);

impl Tail {
    fn add(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
        let over = self.0.len().saturating_sub(SHOWN_BYTES);
        self.0.drain(..over);
    }

    fn shown(&self) -> String {
        let bytes: Vec<u8> = self.0.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.trim_end().lines().collect();
        if lines.is_empty() {
            return "; it wrote nothing".to_owned();
        }
        let first = lines.len().saturating_sub(SHOWN_LINES);
        format!("{LAST_LINES}\n{}", lines[first..].join("\n"))
    }
}

/// A script on one line.
fn shown(script: &str) -> String {
    let line: Vec<&str> = script.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let line = line.join("; ");
    match line.char_indices().nth(SHOWN_SCRIPT_CHARS) {
        Some((end, _)) => format!("`{}...`", &line[..end]),
        None => format!("`{line}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_the_last_lines_whatever_was_written() {
        let mut tail = Tail::default();
        assert_eq!(tail.shown(), "; it wrote nothing");
        for n in 0..1000 {
            tail.add(format!("line {n}\n").as_bytes());
        }
        tail.add(b"\xff\n\n");
        let shown = tail.shown();
        assert!(shown.starts_with("; its last lines:\nline 98"), "{shown}");
        assert!(shown.ends_with("line 999\n\u{fffd}"), "{shown}");
        tail.add(&vec![b'x'; 1 << 20]);
        assert!(tail.shown().len() < 2 * SHOWN_BYTES);
    }

    #[test]
    fn of_many_reasons_some_are_told() {
        let why: Vec<Difference> = (0..12).map(|n| Difference::Changed(n.to_string())).collect();
        assert_eq!(told(&why[..2], 10), "0 changed, 1 changed");
        assert!(told(&why[..10], 10).ends_with("8 changed, 9 changed"));
        assert!(told(&why, 10).ends_with("9 changed, 2 more"));
    }

    #[test]
    fn a_script_is_shown_on_one_line() {
        assert_eq!(shown("\n  a\n\n b \n"), "`a; b`");
        assert!(shown(&"ä".repeat(1000)).len() < 500);
    }
}
