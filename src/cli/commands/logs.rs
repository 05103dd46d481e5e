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
    let mut show = Show { json: args.json, timestamps: args.timestamps, open: [false; 2] };
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
struct Show {
    json: bool,
    timestamps: bool,
    /// Whether the stream's last record was a part of a line: no time before the next one.
    open: [bool; 2],
}

impl Show {
    fn record(&mut self, record: &LogRecord, printer: &mut Printer) -> io::Result<()> {
        if self.json {
            return printer.write(&record.to_line());
        }
        let open = &mut self.open[usize::from(record.stream == Stream::Stderr)];
        let begins = !std::mem::replace(open, !record.bytes.ends_with(b"\n"));
        let mut bytes = Vec::with_capacity(record.bytes.len() + 32);
        if self.timestamps && begins {
            bytes.extend(format!("{:.6} ", record.ts).bytes());
        }
        bytes.extend_from_slice(&record.bytes);
        match record.stream {
            // Events are never among what the worker wrote, so they need no stream of their own.
            Stream::Stdout | Stream::Event => printer.write(&bytes),
            Stream::Stderr => printer.write_error(&bytes),
        }
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
        let mut show = Show { json: false, timestamps: true, open: [false; 2] };
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
    fn bytes_that_are_no_text_come_out_as_they_went_in() {
        let out = Captured::default();
        let mut printer = Printer::to(out.clone(), io::sink());
        let mut show = Show { json: false, timestamps: false, open: [false; 2] };
        show.record(&record(Stream::Stdout, b"\xff\x00\n"), &mut printer).unwrap();
        printer.flush().unwrap();
        assert_eq!(out.bytes(), b"\xff\x00\n");
    }
}
