use std::io;

use iii_protocol::api::LogsQuery;
use iii_protocol::log::{LogRecord, Stream};
use jiff::Timestamp;

use crate::cli::args::LogsArgs;
use crate::cli::client::{ClientError, logs_path};
use crate::cli::context::Context;
use crate::cli::exit::Failure;
use crate::cli::output::Printer;
use crate::logs::disk::{self, DiskQuery};

/// `iii worker logs`.
pub async fn logs(ctx: &Context, args: &LogsArgs, printer: &mut Printer) -> Result<(), Failure> {
    let since = args.since.map(|since| since.resolve(Timestamp::now()));
    let (follow, tail, previous, events) = (args.follow, args.tail, args.previous, args.events);
    let query = LogsQuery { follow, tail, since, previous, events };
    let mut show = Show::new(args.json, args.timestamps);
    let mut lines = match ctx.client().get_lines(&logs_path(&args.name, &query)).await {
        Ok(lines) => lines,
        Err(ClientError::NoDaemon) => return from_disk(ctx, args, &query, show, printer),
        Err(e) => return Err(e.into()),
    };
    while let Some(record) = lines.next_record().await? {
        show.record(&record, printer)?;
        if !lines.has_line() {
            printer.flush()?;
        }
    }
    printer.flush()?;
    if args.follow {
        printer.say(&format!("nothing more to follow: `{}` was removed or the daemon ended", args.name));
    }
    Ok(())
}

/// Without a daemon: what the shims have written.
fn from_disk(
    ctx: &Context,
    args: &LogsArgs,
    query: &LogsQuery,
    mut show: Show,
    printer: &mut Printer,
) -> Result<(), Failure> {
    let name = &args.name;
    let dir = ctx.home.logs(name);
    if !dir.is_dir() {
        let names: Vec<_> = ctx.load()?.workers.into_iter().map(|worker| worker.name).collect();
        if !names.contains(name) {
            return Err(ctx.unknown(name, &names));
        }
        printer.say(&format!("`{name}` has not written anything yet"));
        return Ok(());
    }
    let wanted = DiskQuery {
        wanted: query.wanted(),
        tail: query.tail,
        since: query.since,
        previous: query.previous,
        ..DiskQuery::default()
    };
    let unreadable =
        |e: io::Error| Failure::failed(format!("the logs in {} cannot be read: {e}", dir.display()));
    for record in disk::read(&dir, &wanted).map_err(unreadable)? {
        show.record(&record.map_err(unreadable)?, printer)?;
    }
    printer.flush()?;
    if args.follow {
        printer.say("no daemon is running, so there is nothing to follow; start it with `iii`");
    }
    Ok(())
}

/// How records are written.
pub(super) struct Show {
    json: bool,
    timestamps: bool,
    /// The streams whose last record was a part of a line: no time and no mark before the next one.
    open: Vec<Stream>,
}

impl Show {
    pub(super) fn new(json: bool, timestamps: bool) -> Show {
        Show { json, timestamps, open: Vec::new() }
    }

    pub(super) fn record(&mut self, record: &LogRecord, printer: &mut Printer) -> io::Result<()> {
        if self.json {
            return printer.write(&record.to_line());
        }
        let mut bytes = Vec::with_capacity(record.bytes.len() + 64);
        if self.end_script(record.stream) {
            bytes.push(b'\n');
        }
        let begins = !self.open.contains(&record.stream);
        self.open.retain(|stream| *stream != record.stream);
        if !record.bytes.ends_with(b"\n") {
            self.open.push(record.stream);
        }
        if self.timestamps && begins {
            bytes.extend(format!("{:.6} ", record.ts).bytes());
        }
        if let Some(mark) = printer.err_style.mark(record.stream).filter(|_| begins) {
            bytes.extend(mark.bytes());
        }
        bytes.extend_from_slice(&record.bytes);
        match record.stream {
            // Events are never among what the worker wrote, so they need no stream of their own.
            Stream::Stdout | Stream::Event => printer.write(&bytes),
            Stream::Stderr | Stream::Setup | Stream::Install => printer.write_error(&bytes),
        }
    }

    /// Whether a script's last line, on stderr too, was left without its end: `next` does not go on with it.
    fn end_script(&mut self, next: Stream) -> bool {
        let is_left = |stream: Stream| matches!(stream, Stream::Setup | Stream::Install) && stream != next;
        let before = self.open.len();
        if !matches!(next, Stream::Stdout | Stream::Event) {
            self.open.retain(|stream| !is_left(*stream));
        }
        self.open.len() < before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::tests::{Captured, at};

    fn record(stream: Stream, text: &[u8]) -> LogRecord {
        LogRecord { seq: 1, ts: at(0), generation: 1, stream, bytes: text.to_vec() }
    }

    #[test]
    fn streams_stay_apart_and_parts_of_a_line_get_one_time() {
        let (out, err) = (Captured::default(), Captured::default());
        let mut printer = Printer::to(out.clone(), err.clone());
        let mut show = Show::new(false, true);
        for (stream, text) in [
            (Stream::Stdout, &b"one "[..]),
            (Stream::Stderr, b"oops\n"),
            (Stream::Stdout, b"line\n"),
            (Stream::Stdout, b"next\n"),
        ] {
            show.record(&record(stream, text), &mut printer).unwrap();
        }
        printer.flush().unwrap();
        let time = "2026-01-02T03:00:00.000000Z";
        assert_eq!(out.text(), format!("{time} one line\n{time} next\n"));
        assert_eq!(err.text(), format!("{time} oops\n"));
    }

    #[test]
    fn lines_of_scripts_are_marked_and_go_to_stderr() {
        let (out, err) = (Captured::default(), Captured::default());
        let mut printer = Printer::to(out.clone(), err.clone());
        let mut show = Show::new(false, false);
        for (stream, text) in [
            (Stream::Setup, &b"get "[..]),
            (Stream::Setup, b"tools\n"),
            (Stream::Setup, b"no end"),
            (Stream::Install, b"added 3 packages\n"),
            (Stream::Install, b"done?"),
            (Stream::Stdout, b"hello\n"),
            (Stream::Stderr, b"oops\n"),
        ] {
            show.record(&record(stream, text), &mut printer).unwrap();
        }
        printer.flush().unwrap();
        assert_eq!(out.text(), "hello\n");
        assert_eq!(
            err.text(),
            "setup | get tools\nsetup | no end\ninstall | added 3 packages\ninstall | done?\noops\n"
        );
        let json = Captured::default();
        let mut printer = Printer::to(json.clone(), io::sink());
        Show::new(true, false).record(&record(Stream::Setup, b"x\n"), &mut printer).unwrap();
        printer.flush().unwrap();
        assert!(json.text().contains(r#""stream":"setup""#), "{}", json.text());
    }

    #[test]
    fn bytes_that_are_no_text_come_out_as_they_went_in() {
        let out = Captured::default();
        let mut printer = Printer::to(out.clone(), io::sink());
        let mut show = Show::new(false, false);
        show.record(&record(Stream::Stdout, b"\xff\x00\n"), &mut printer).unwrap();
        printer.flush().unwrap();
        assert_eq!(out.bytes(), b"\xff\x00\n");
    }
}
