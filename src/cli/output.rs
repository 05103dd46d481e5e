//! What commands print: data on stdout, talk on stderr, and nothing that needs colour to be understood.

use std::io::{self, IsTerminal as _, Write};
use std::os::fd::AsFd as _;
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use iii_protocol::api::{Phase, WorkerStatus};
use iii_protocol::exit::{ExitCause, ExitRecord};
use iii_protocol::log::{LogRecord, Stream};
use jiff::Timestamp;
use serde::Serialize;

use super::exit::Failure;
use super::ports::{ports_in_full, ports_in_short};
use crate::units::{short_bytes, short_duration};

const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const DIM: &str = "\x1b[2m";
const RESET: &str = "\x1b[0m";

/// How one stream is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Style {
    /// It is a terminal and NO_COLOR is not set.
    pub colour: bool,
    /// It is a terminal: progress may be redrawn.
    pub terminal: bool,
}

impl Style {
    fn of(stream: &impl io::IsTerminal) -> Style {
        let terminal = stream.is_terminal();
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Style { colour: terminal && !no_colour && !dumb, terminal: terminal && !dumb }
    }

    fn paint(self, colour: &str, text: &str) -> String {
        if self.colour { format!("{colour}{text}{RESET}") } else { text.to_owned() }
    }

    /// What stands before a line that one of a project's scripts wrote; nothing before what the workload wrote.
    pub fn mark(self, stream: Stream) -> Option<String> {
        let mark = match stream {
            Stream::Setup => "setup |",
            Stream::Install => "install |",
            Stream::Stdout | Stream::Stderr | Stream::Event => return None,
        };
        Some(format!("{} ", self.paint(DIM, mark)))
    }
}

/// The two streams of a command.
pub struct Printer {
    out: Box<dyn Write + Send>,
    err: Box<dyn Write + Send>,
    /// Of stdout.
    pub out_style: Style,
    /// Of stderr.
    pub err_style: Style,
    /// Whether questions may be asked.
    pub interactive: bool,
}

impl Printer {
    /// The process's own streams.
    pub fn std() -> Printer {
        Printer {
            out: raw_stdout(),
            err: Box::new(io::stderr()),
            out_style: Style::of(&io::stdout()),
            err_style: Style::of(&io::stderr()),
            interactive: io::stdin().is_terminal() && io::stderr().is_terminal(),
        }
    }

    /// Writes to these instead, plainly.
    pub fn to(out: impl Write + Send + 'static, err: impl Write + Send + 'static) -> Printer {
        Printer {
            out: Box::new(out),
            err: Box::new(err),
            out_style: Style::default(),
            err_style: Style::default(),
            interactive: false,
        }
    }

    /// Data, as it is; seen after [`Printer::flush`] at the latest.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    /// What a worker wrote to its stderr, as it is and in order with its stdout.
    pub fn write_error(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.flush()?;
        self.err.write_all(bytes)
    }

    /// Shows what was written so far.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()?;
        self.err.flush()
    }

    /// A line or more of data; the last newline is added.
    pub fn print(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "{text}")?;
        self.out.flush()
    }

    /// A value for programs.
    pub fn json(&mut self, value: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_string_pretty(value)?;
        self.print(&text)
    }

    /// A line for the person. Never fails: a closed stderr must not keep a command from its work.
    pub fn say(&mut self, text: &str) {
        let _ = self.out.flush();
        let _ = writeln!(self.err, "{text}").and_then(|()| self.err.flush());
    }

    /// A line that one of a project's scripts wrote, with its mark and a line of its own even if it is a part of one.
    /// Never fails, like [`Printer::say`].
    pub fn script_line(&mut self, record: &LogRecord) {
        let mark = self.err_style.mark(record.stream).unwrap_or_default();
        let text = record.bytes.strip_suffix(b"\n").unwrap_or(&record.bytes);
        let line = [mark.as_bytes(), text, b"\n"].concat();
        let _ = self.out.flush();
        let _ = self.err.write_all(&line).and_then(|()| self.err.flush());
    }

    /// Something is not as it should be, though the command goes on.
    pub fn warn(&mut self, text: &str) {
        let text = format!("{} {text}", self.err_style.paint(YELLOW, "warning:"));
        self.say(&text);
    }

    /// Why a command did not succeed.
    pub fn fail(&mut self, failure: &Failure) {
        if let Some(text) = failure.text() {
            let rest = text.strip_prefix("error:").unwrap_or(&text);
            let text = format!("{}{rest}", self.err_style.paint(RED, "error:"));
            self.say(&text);
        }
    }

    /// Begins a line, wherever the cursor is: one that somebody else may have left half full.
    pub fn fresh_line(&mut self) {
        self.say("");
    }

    /// Asks a question whose answer is yes if nothing is typed.
    pub fn confirm(&mut self, question: &str) -> io::Result<bool> {
        write!(self.err, "{question} [Y/n] ")?;
        self.err.flush()?;
        let mut answer = String::new();
        if io::stdin().read_line(&mut answer)? == 0 {
            // Ctrl-D answers nothing, and so agrees to nothing.
            self.say("");
            return Ok(false);
        }
        Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "" | "y" | "yes"))
    }
}

/// Stdout with a buffer of blocks: that of `io::stdout()` would make a system call of each log line.
fn raw_stdout() -> Box<dyn Write + Send> {
    match io::stdout().as_fd().try_clone_to_owned() {
        Ok(fd) => Box::new(io::BufWriter::new(std::fs::File::from(fd))),
        // No file descriptor left: slower, but as good.
        Err(_) => Box::new(io::stdout()),
    }
}

/// A table without lines, for people and for `awk`.
fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    table
}

fn render(mut table: Table) -> String {
    let columns = table.column_iter_mut();
    for column in columns {
        column.set_padding((0, 2));
    }
    let lines: Vec<_> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

/// Facts and where each comes from, one line or more each.
pub fn sourced_table(facts: &[[String; 3]]) -> String {
    let mut table = table(&["WHAT", "IS", "FROM"]);
    for fact in facts {
        table.add_row(fact);
    }
    render(table)
}

/// One row of `list`, from the daemon or, without one, from what is on disk.
#[derive(Debug, Clone)]
pub struct Row<'a> {
    /// What is known.
    pub status: &'a WorkerStatus,
    /// Instead of the phase's own word.
    pub status_word: Option<&'a str>,
}

/// The table of `list`.
pub fn worker_table(rows: &[Row<'_>], now: Timestamp, style: Style) -> String {
    let mut header = vec!["NAME", "TYPE", "STATUS", "UPTIME", "RESTARTS", "LAST-EXIT"];
    // Most workers have none, and a terminal is narrow.
    let with_ports = rows.iter().any(|row| !row.status.network.ports.is_empty());
    if with_ports {
        header.push("PORTS");
    }
    let mut table = table(&header);
    for Row { status, status_word } in rows {
        let word = status_word.map_or_else(|| status.phase.to_string(), str::to_owned);
        let mut cells = vec![
            status.name.clone(),
            status.worker_type.to_string(),
            style.paint(phase_colour(status.phase), &word),
            status.running_since.map_or_else(|| "-".to_owned(), |since| short_duration(between(since, now))),
            status.restarts.to_string(),
            status.exits.first().map_or_else(|| "-".to_owned(), |exit| last_exit(exit, now)),
        ];
        if with_ports {
            cells.push(ports_in_short(&status.network.ports));
        }
        table.add_row(cells);
    }
    render(table)
}

fn phase_colour(phase: Phase) -> &'static str {
    match phase {
        Phase::Running => GREEN,
        Phase::Failed | Phase::CrashLoop => RED,
        Phase::Stopped => RESET,
        Phase::Preparing | Phase::Booting | Phase::Stopping | Phase::Backoff => YELLOW,
    }
}

fn last_exit(exit: &ExitRecord, now: Timestamp) -> String {
    format!("{} ({} ago)", exit.cause, short_duration(between(exit.at, now)))
}

/// Everything known of one worker, one fact per line.
pub fn worker_details(
    status: &WorkerStatus,
    status_word: Option<&str>,
    now: Timestamp,
    style: Style,
) -> String {
    let mut facts: Vec<(&str, String)> = Vec::new();
    let word = status_word.map_or_else(|| status.phase.to_string(), str::to_owned);
    let mut state = style.paint(phase_colour(status.phase), &word);
    if let Some(detail) = &status.detail {
        state.push_str(&format!(", {detail}"));
    }
    facts.push(("Name", status.name.clone()));
    facts.push(("Type", status.worker_type.to_string()));
    facts.push(("Status", state));
    facts.push(("Since", moment(status.since, now)));
    if let Some(cause) = &status.cause {
        facts.push(("Cause", cause.message.clone()));
        facts.extend(cause.hint.clone().map(|hint| ("Hint", hint)));
    }
    if let Some(until) = status.until {
        let label = match status.phase {
            Phase::Backoff | Phase::CrashLoop => "Next try",
            _ => "Deadline",
        };
        facts.push((label, format!("{until:.0} (in {})", short_duration(between(now, until)))));
    }
    if let Some(since) = status.running_since {
        facts.push(("Uptime", short_duration(between(since, now))));
    }
    facts.push(("Desired", format!("{:?}", status.desired).to_lowercase()));
    facts.push(("Restarts", status.restarts.to_string()));
    facts.push(("Generation", status.generation.to_string()));
    facts.extend(status.image.clone().map(|image| ("Image", image)));
    facts.extend(status.image_digest.clone().map(|digest| ("Digest", digest)));
    let resources = status.resources;
    facts.push((
        "Resources",
        format!(
            "{} memory, {} vCPU{}, {} scratch disk",
            short_bytes(u64::from(resources.memory_mib) << 20),
            resources.cpus,
            if resources.cpus == 1 { "" } else { "s" },
            short_bytes(resources.disk_bytes)
        ),
    ));
    facts.push(("Egress", status.network.egress.to_string()));
    if !status.network.ports.is_empty() {
        facts.push(("Ports", ports_in_full(&status.network.ports)));
    }
    if status.refused.count > 0 {
        let last = status.refused.last.as_ref().map(|last| format!(", last: {last}")).unwrap_or_default();
        facts.push(("Refused", format!("{}{last}", status.refused.count)));
    }
    let pids = [("shim", status.shim_pid), ("vmm", status.vmm_pid)];
    let pids: Vec<_> = pids.into_iter().filter_map(|(what, pid)| Some(format!("{what} {}", pid?))).collect();
    if !pids.is_empty() {
        facts.push(("Processes", pids.join(", ")));
    }
    facts.push(("Logs", status.log_dir.clone()));
    let mut text: String = facts
        .iter()
        .map(|(label, value)| format!("{:<12}{}\n", format!("{label}:"), indent(value)))
        .collect();
    if status.exits.is_empty() {
        text.push_str("Exits:      none");
        return text;
    }
    text.push_str("Exits:");
    for exit in &status.exits {
        text.push_str(&format!("\n  {}", exit_line(exit, now)));
    }
    text
}

/// Continuation lines under the value's column.
fn indent(value: &str) -> String {
    value.trim_end().replace('\n', "\n            ")
}

fn exit_line(exit: &ExitRecord, now: Timestamp) -> String {
    let asked = if exit.requested { ", as asked" } else { "" };
    let ran = match exit.uptime_ms {
        0 => String::new(),
        millis => format!(" after {}", short_duration(Duration::from_millis(millis))),
    };
    let why = match &exit.cause {
        ExitCause::CouldNotStart { what, message, .. } => format!(": {what}: {message}"),
        ExitCause::VmmDied { detail } if !detail.is_empty() => format!(": {detail}"),
        _ => String::new(),
    };
    let line = format!("#{} {} {}{ran}{asked}{why}", exit.generation, moment(exit.at, now), exit.cause);
    line.trim_end().replace('\n', "\n      ")
}

fn moment(then: Timestamp, now: Timestamp) -> String {
    format!("{then:.0} ({} ago)", short_duration(between(then, now)))
}

/// From one moment to a later one; nothing if it is not later (clocks differ).
pub fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::{Arc, Mutex};

    use iii_protocol::api::{Desired, ErrorBody, ErrorCode, Refused, Resources, WorkerType};
    use iii_protocol::network::{Network, PublishedPort, Transport};

    use super::*;

    /// A stream that can be looked at afterwards.
    #[derive(Clone, Default)]
    pub(in super::super) struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Captured {
        pub(in super::super) fn bytes(&self) -> Vec<u8> {
            self.0.lock().unwrap().clone()
        }

        pub(in super::super) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    pub(in super::super) fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_767_322_800 + seconds).unwrap()
    }

    pub(in super::super) fn worker(name: &str, phase: Phase) -> WorkerStatus {
        WorkerStatus {
            name: name.to_owned(),
            worker_type: WorkerType::Oci,
            phase,
            detail: None,
            cause: None,
            since: at(0),
            until: None,
            running_since: (phase == Phase::Running).then(|| at(0)),
            desired: Desired::Running,
            generation: 1,
            revision: 1,
            restarts: 0,
            exits: Vec::new(),
            image: Some("redis:7".to_owned()),
            image_digest: None,
            resources: Resources { memory_mib: 2048, cpus: 2, disk_bytes: 16 << 30 },
            network: Network::default(),
            refused: Refused::default(),
            shim_pid: None,
            vmm_pid: None,
            log_dir: format!("/home/u/.iii/logs/{name}"),
        }
    }

    pub(in super::super) fn exit(generation: u64, seconds: i64, cause: ExitCause) -> ExitRecord {
        ExitRecord { generation, at: at(seconds), uptime_ms: 4200, cause, requested: false }
    }

    #[test]
    fn a_list_has_one_line_per_worker_and_the_cause_of_its_last_exit() {
        let web = worker("web", Phase::Running);
        let mut resizer = worker("image-resizer", Phase::CrashLoop);
        resizer.restarts = 12;
        resizer.exits = vec![exit(13, 190, ExitCause::Signal { signal: 9 })];
        let local = WorkerStatus { worker_type: WorkerType::Local, ..worker("local", Phase::Stopped) };
        let rows: Vec<_> =
            [&web, &resizer, &local].map(|status| Row { status, status_word: None }).into_iter().collect();
        insta::assert_snapshot!(worker_table(&rows, at(192), Style::default()), @r"
        NAME           TYPE   STATUS      UPTIME  RESTARTS  LAST-EXIT
        web            OCI    running     3m 12s  0         -
        image-resizer  OCI    crash-loop  -       12        signal 9 (2.0s ago)
        local          Local  stopped     -       0         -
        ");
    }

    #[test]
    fn a_list_has_a_column_of_ports_only_if_some_worker_has_one() {
        let mut web = worker("web", Phase::Running);
        let host = "0.0.0.0:8080".parse().unwrap();
        web.network.ports = vec![PublishedPort { host, guest: 80, transport: Transport::Tcp }];
        let idle = worker("idle", Phase::Stopped);
        let rows = [&web, &idle].map(|status| Row { status, status_word: None });
        insta::assert_snapshot!(worker_table(&rows, at(192), Style::default()), @r"
        NAME  TYPE  STATUS   UPTIME  RESTARTS  LAST-EXIT  PORTS
        web   OCI   running  3m 12s  0         -          0.0.0.0:8080->80
        idle  OCI   stopped  -       0         -          -
        ");
    }

    #[test]
    fn colours_do_not_move_columns() {
        let web = worker("web", Phase::Running);
        let rows = [Row { status: &web, status_word: None }];
        let style = Style { colour: true, terminal: true };
        let coloured = worker_table(&rows, at(1), style);
        let plain = worker_table(&rows, at(1), Style::default());
        assert!(coloured.contains("\x1b[32mrunning\x1b[0m"));
        assert_eq!(coloured.replace(GREEN, "").replace(RESET, ""), plain);
    }

    #[test]
    fn status_shows_everything_known() {
        let mut web = worker("web", Phase::Backoff);
        web.cause = Some(ErrorBody {
            code: ErrorCode::Host,
            message: "exit 7".to_owned(),
            hint: Some("see `iii worker logs web`".to_owned()),
        });
        web.until = Some(at(64));
        web.image_digest = Some("sha256:00ff".to_owned());
        let host = "127.0.0.1:8080".parse().unwrap();
        web.network.ports = vec![PublishedPort { host, guest: 80, transport: Transport::Tcp }];
        web.refused = Refused { count: 12, last: Some("tcp 10.0.0.5:22 (private)".to_owned()) };
        web.shim_pid = Some(41);
        web.vmm_pid = Some(42);
        let could_not = ExitCause::CouldNotStart {
            what: "exec".to_owned(),
            message: "no such file: /bin/app".to_owned(),
            hint: None,
        };
        web.exits = vec![
            exit(3, 59, ExitCause::Exit { code: 7 }),
            ExitRecord { uptime_ms: 0, ..exit(2, 50, could_not) },
            ExitRecord { requested: true, ..exit(1, 10, ExitCause::Signal { signal: 15 }) },
        ];
        insta::assert_snapshot!(worker_details(&web, None, at(60), Style::default()), @r"
        Name:       web
        Type:       OCI
        Status:     backoff
        Since:      2026-01-02T03:00:00Z (1m ago)
        Cause:      exit 7
        Hint:       see `iii worker logs web`
        Next try:   2026-01-02T03:01:04Z (in 4.0s)
        Desired:    running
        Restarts:   0
        Generation: 1
        Image:      redis:7
        Digest:     sha256:00ff
        Resources:  2 GiB memory, 2 vCPUs, 16 GiB scratch disk
        Egress:     public
        Ports:      127.0.0.1:8080->80/tcp
        Refused:    12, last: tcp 10.0.0.5:22 (private)
        Processes:  shim 41, vmm 42
        Logs:       /home/u/.iii/logs/web
        Exits:
          #3 2026-01-02T03:00:59Z (1.0s ago) exit 7 after 4.2s
          #2 2026-01-02T03:00:50Z (10s ago) could not start: exec: no such file: /bin/app
          #1 2026-01-02T03:00:10Z (50s ago) signal 15 after 4.2s, as asked
        ");
    }

    #[test]
    fn marks_of_scripts_are_dim_on_a_terminal_and_plain_elsewhere() {
        let style = Style { colour: true, terminal: true };
        assert_eq!(style.mark(Stream::Setup).unwrap(), "\x1b[2msetup |\x1b[0m ");
        assert_eq!(Style::default().mark(Stream::Install).unwrap(), "install | ");
        assert_eq!(style.mark(Stream::Stderr), None);
    }

    #[test]
    fn errors_and_warnings_go_to_stderr_only() {
        let (out, err) = (Captured::default(), Captured::default());
        let mut printer = Printer::to(out.clone(), err.clone());
        printer.fail(&Failure::failed("it broke").hint("mend it"));
        printer.warn("beware");
        printer.print("data").unwrap();
        assert_eq!(err.text(), "error: it broke\n\nhint: mend it\nwarning: beware\n");
        assert_eq!(out.text(), "data\n");
    }
}
