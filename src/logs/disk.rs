//! Log files of one worker: written by its shim, read by everybody.
//!
//! `output.jsonl` is the newest, `output.jsonl.1` the one before it, and so on. Each line is one
//! [`LogRecord`]. Only the shim that holds the machine's lock writes; a line that a crash tore off is cut
//! away when the next writer opens the file.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use iii_protocol::log::{LogRecord, Wanted};
use jiff::Timestamp;

use crate::fsutil::PathError;

/// Bytes after which a log file is rotated.
pub const DEFAULT_FILE_BYTES: u64 = 10 * 1024 * 1024;
/// Log files kept, the current one included.
pub const DEFAULT_FILES: u32 = 4;
/// Longest line a reader accepts, bytes: a record's payload, escaped at worst to six bytes each, and its fields.
const MAX_LINE_BYTES: u64 = 128 * 1024;

const CURRENT: &str = "output.jsonl";

fn file_path(dir: &Path, age: u32) -> PathBuf {
    if age == 0 { dir.join(CURRENT) } else { dir.join(format!("{CURRENT}.{age}")) }
}

/// The writing end.
#[derive(Debug)]
pub struct LogFiles {
    dir: PathBuf,
    file: File,
    bytes: u64,
    next_seq: u64,
    max_bytes: u64,
    max_files: u32,
}

impl LogFiles {
    /// Opens the newest file for appending and finds out how far the numbers had come.
    pub fn open(dir: &Path, max_bytes: u64, max_files: u32) -> Result<LogFiles, PathError> {
        let path = file_path(dir, 0);
        let mut file = File::options()
            .create(true)
            .read(true)
            .append(true)
            .open(&path)
            .map_err(PathError::new("open", &path))?;
        let bytes = cut_torn_line(&mut file).map_err(PathError::new("mend", &path))?;
        let mut last = None;
        for age in 0..max_files {
            last = last_record(&file_path(dir, age));
            if last.is_some() {
                break;
            }
        }
        let next_seq = last.map_or(1, |record| record.seq + 1);
        Ok(LogFiles { dir: dir.to_owned(), file, bytes, next_seq, max_bytes, max_files })
    }

    /// The number the next record is to have.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Writes records in one go; `records` carry consecutive numbers from [`next_seq`](Self::next_seq) on. The numbers count as
    /// used even if the write fails, so that a reader can see the gap.
    pub fn append(&mut self, records: &[LogRecord]) -> Result<(), PathError> {
        let Some(last) = records.last() else { return Ok(()) };
        self.next_seq = last.seq + 1;
        if self.bytes >= self.max_bytes {
            self.rotate()?;
        }
        let mut lines = Vec::new();
        for record in records {
            lines.extend_from_slice(&record.to_line());
        }
        if let Err(error) = self.file.write_all(&lines) {
            // A full disk may have taken half of it: no torn line may stay in front of later ones.
            if let Err(cut) = self.file.set_len(self.bytes) {
                tracing::warn!(%cut, "a torn log line could not be cut away");
            }
            return Err(PathError::new("write", file_path(&self.dir, 0))(error));
        }
        self.bytes += lines.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> Result<(), PathError> {
        // Missing already: an earlier rotation got this far and could not make the new file. Shifting
        // again would push out one old file per try.
        let is_due = file_path(&self.dir, 0).exists();
        for age in (0..self.max_files.saturating_sub(1)).rev().filter(|_| is_due) {
            let from = file_path(&self.dir, age);
            match fs::rename(&from, file_path(&self.dir, age + 1)) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(PathError::new("rotate", from)(e)),
            }
        }
        let path = file_path(&self.dir, 0);
        self.file = File::options()
            .create(true)
            .append(true)
            .read(true)
            .open(&path)
            .map_err(PathError::new("open", &path))?;
        self.bytes = self.file.metadata().map_err(PathError::new("look at", &path))?.len();
        Ok(())
    }
}

/// Cuts the file after its last newline; its length afterwards.
fn cut_torn_line(file: &mut File) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let tail_start = length.saturating_sub(MAX_LINE_BYTES);
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(tail_start))?;
    file.read_to_end(&mut tail)?;
    let keep = match tail.iter().rposition(|&byte| byte == b'\n') {
        Some(at) => tail_start + at as u64 + 1,
        None => tail_start,
    };
    if keep != length {
        file.set_len(keep)?;
    }
    Ok(keep)
}

fn last_record(path: &Path) -> Option<LogRecord> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MAX_LINE_BYTES))).ok()?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail).ok()?;
    tail.split(|&byte| byte == b'\n').rev().find_map(|line| LogRecord::from_line(line).ok())
}

/// Which records to read; every condition must hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskQuery {
    /// Only these; what follows counts nothing else.
    pub wanted: Wanted,
    /// From this number on.
    pub from_seq: Option<u64>,
    /// Before this number.
    pub until_seq: Option<u64>,
    /// Of what is left, only the last so many.
    pub tail: Option<u64>,
    /// At or after this time.
    pub since: Option<Timestamp>,
    /// Only the generation before the newest one in the files.
    pub previous: bool,
}

/// Reads records, oldest first. A folder that does not exist has none; lines that are not records (a
/// torn one that is being written right now, foreign bytes) are passed over.
pub fn read(
    dir: &Path,
    query: &DiskQuery,
) -> io::Result<impl Iterator<Item = io::Result<LogRecord>> + use<>> {
    let query = *query;
    let generation = if query.previous { Some(previous_generation(dir, query.wanted)?) } else { None };
    let matches = move |record: &LogRecord| {
        query.wanted.takes(record.stream)
            && query.from_seq.is_none_or(|from| record.seq >= from)
            && query.until_seq.is_none_or(|until| record.seq < until)
            && query.since.is_none_or(|since| record.ts >= since)
            && generation.is_none_or(|wanted| Some(record.generation) == wanted)
    };
    let skip = match query.tail {
        None => 0,
        Some(tail) => {
            let mut count: u64 = 0;
            for record in open_all(dir)? {
                count += u64::from(matches(&record?));
            }
            count.saturating_sub(tail)
        }
    };
    let skip = usize::try_from(skip).unwrap_or(usize::MAX);
    Ok(open_all(dir)?.filter(move |item| item.as_ref().map_or(true, &matches)).skip(skip))
}

/// The newest generation but one, if the files still hold two.
fn previous_generation(dir: &Path, wanted: Wanted) -> io::Result<Option<u64>> {
    let (mut newest, mut previous) = (None, None);
    for record in open_all(dir)? {
        let record = record?;
        let generation = Some(record.generation);
        if wanted.takes(record.stream) && generation != newest {
            previous = newest;
            newest = generation;
        }
    }
    Ok(previous)
}

/// All files are opened before the first is read, newest first: a rotation in between may then show a
/// record twice to the file list but never hide one; numbers weed out the double ones.
fn open_all(dir: &Path) -> io::Result<impl Iterator<Item = io::Result<LogRecord>> + use<>> {
    let mut files = Vec::new();
    let mut age = 0;
    loop {
        match File::open(file_path(dir, age)) {
            Ok(file) => files.push(file),
            Err(e) if e.kind() == io::ErrorKind::NotFound && age == 0 => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => break,
            Err(e) => return Err(e),
        }
        age += 1;
    }
    let mut last_seq = 0;
    Ok(files.into_iter().rev().flat_map(Lines::new).filter(move |item| match item {
        Ok(record) if record.seq <= last_seq => false,
        Ok(record) => {
            last_seq = record.seq;
            true
        }
        Err(_) => true,
    }))
}

struct Lines {
    reader: BufReader<File>,
    line: Vec<u8>,
}

impl Lines {
    fn new(file: File) -> Lines {
        Lines { reader: BufReader::with_capacity(64 * 1024, file), line: Vec::new() }
    }
}

impl Iterator for Lines {
    type Item = io::Result<LogRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            self.line.clear();
            match (&mut self.reader).take(MAX_LINE_BYTES).read_until(b'\n', &mut self.line) {
                Ok(0) => return None,
                Ok(_) => {
                    if let Ok(record) = LogRecord::from_line(&self.line) {
                        return Some(Ok(record));
                    }
                }
                Err(e) => return Some(Err(e)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use iii_protocol::log::Stream;

    use super::*;

    fn record(seq: u64, generation: u64, text: &str) -> LogRecord {
        let ts = Timestamp::from_second(i64::try_from(seq).unwrap()).unwrap();
        LogRecord { seq, ts, generation, stream: Stream::Stdout, bytes: text.as_bytes().to_vec() }
    }

    fn texts(dir: &Path, query: &DiskQuery) -> Vec<String> {
        read(dir, query).unwrap().map(|r| String::from_utf8(r.unwrap().bytes).unwrap()).collect()
    }

    #[test]
    fn numbers_go_on_across_writers_and_rotations_and_the_oldest_file_goes() {
        let dir = tempfile::tempdir().unwrap();
        for seq in 1..=40 {
            let mut files = LogFiles::open(dir.path(), 300, 3).unwrap();
            assert_eq!(files.next_seq(), seq);
            files.append(&[record(seq, 1, &format!("{seq}\n"))]).unwrap();
        }
        let kept = texts(dir.path(), &DiskQuery::default());
        assert_eq!(kept.last().unwrap(), "40\n");
        assert!(kept.len() < 20, "{kept:?}");
        assert!(!dir.path().join("output.jsonl.3").exists());
        let first: u64 = kept[0].trim().parse().unwrap();
        assert_eq!(kept.len() as u64, 40 - first + 1, "no hole");
    }

    #[test]
    fn a_torn_last_line_is_cut_and_what_follows_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = LogFiles::open(dir.path(), 1 << 20, 2).unwrap();
        files.append(&[record(1, 1, "whole\n")]).unwrap();
        let mut raw = File::options().append(true).open(dir.path().join(CURRENT)).unwrap();
        raw.write_all(b"{\"seq\":2,\"ts\":\"2026").unwrap();
        let mut files = LogFiles::open(dir.path(), 1 << 20, 2).unwrap();
        assert_eq!(files.next_seq(), 2);
        files.append(&[record(2, 1, "next\n")]).unwrap();
        assert_eq!(texts(dir.path(), &DiskQuery::default()), ["whole\n", "next\n"]);
    }

    #[test]
    fn a_rotation_that_fails_halfway_pushes_out_no_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = LogFiles::open(dir.path(), 1, 3).unwrap();
        files.append(&[record(1, 1, "one")]).unwrap();
        files.append(&[record(2, 1, "two")]).unwrap();
        // What a rotation leaves whose new file the disk had no room for, twice.
        fs::rename(dir.path().join("output.jsonl.1"), dir.path().join("output.jsonl.2")).unwrap();
        fs::rename(dir.path().join(CURRENT), dir.path().join("output.jsonl.1")).unwrap();
        files.append(&[record(3, 1, "three")]).unwrap();
        assert_eq!(texts(dir.path(), &DiskQuery::default()), ["one", "two", "three"]);
    }

    #[test]
    fn queries_narrow_by_number_time_count_and_generation() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = LogFiles::open(dir.path(), 1 << 20, 2).unwrap();
        let all: Vec<_> = (1..=9).map(|n| record(n, n.div_ceil(3), &format!("{n}"))).collect();
        files.append(&all).unwrap();
        let query = DiskQuery::default();
        assert_eq!(texts(dir.path(), &DiskQuery { tail: Some(2), ..query }), ["8", "9"]);
        assert_eq!(texts(dir.path(), &DiskQuery { previous: true, ..query }), ["4", "5", "6"]);
        assert_eq!(
            texts(dir.path(), &DiskQuery { from_seq: Some(3), until_seq: Some(5), ..query }),
            ["3", "4"]
        );
        // An event counts only for those who want events.
        let event = LogRecord { stream: Stream::Event, ..record(10, 4, "e") };
        files.append(&[event]).unwrap();
        let output = DiskQuery { wanted: Wanted::Output, ..query };
        assert_eq!(texts(dir.path(), &DiskQuery { tail: Some(2), ..output }), ["8", "9"]);
        assert_eq!(texts(dir.path(), &DiskQuery { previous: true, ..output }), ["4", "5", "6"]);
        assert_eq!(texts(dir.path(), &DiskQuery { wanted: Wanted::Events, tail: Some(2), ..query }), ["e"]);
        assert_eq!(texts(dir.path(), &DiskQuery { tail: Some(2), ..query }), ["9", "e"]);
        let query = DiskQuery { wanted: Wanted::Output, ..query };
        let since = Some(Timestamp::from_second(8).unwrap());
        assert_eq!(texts(dir.path(), &DiskQuery { since, ..query }), ["8", "9"]);
        assert!(texts(&dir.path().join("none"), &query).is_empty());
    }
}
