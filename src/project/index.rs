//! What a machine has of its project: an index beside the disk, so that the next start sends only what changed.
//!
//! On disk (`managed/<worker>/files`), bytes in lines, sorted by path:
//!
//! ```text
//! iii-files 1 TAKEN_NS
//! d MODE PATH
//! f MODE SIZE MTIME_NS SHA256 PATH
//! l MODE TARGET PATH
//! end COUNT
//! ```
//!
//! Mode is octal, the hash hexadecimal, all else decimal. In paths and targets `%XX` stands for a byte up to
//! space, DEL and `%`; other bytes are themselves. The last line shows a file that was cut off.
//!
//! | reader | writer 1 |
//! |---|---|
//! | 1 | reads it |
//!
//! A reader refuses every other version, and whoever holds the index then sends all files again: an index is a
//! cache and is never migrated.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use super::files::MAX_ENTRIES;
use crate::fsutil::{PathError, write_atomic};

/// The first word of the file.
const MAGIC: &str = "iii-files";
/// The version that is written, and the only one that is read.
pub const INDEX_VERSION: u32 = 1;
/// Longest index that is read, bytes: some hundred for each of the most entries there can be.
const MAX_INDEX_BYTES: u64 = 512 * 1024 * 1024;
/// Room for a usual line, bytes.
const USUAL_LINE_BYTES: usize = 160;

/// Its name in the folder of the machine's disk.
pub const INDEX_NAME: &str = "files";
/// A SHA-256.
pub type Hash = [u8; 32];

/// What the machine has at one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Indexed {
    /// Relative to the project, with `/` in between.
    pub path: Vec<u8>,
    /// What is there.
    pub kind: IndexedKind,
    /// Permission bits.
    pub mode: u32,
}

/// What one entry was when it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IndexedKind {
    /// A folder.
    Folder,
    /// A regular file.
    File {
        /// Its length, bytes.
        size: u64,
        /// When it had been changed: nanoseconds since 1970.
        mtime_ns: i128,
        /// Of what was sent.
        sha256: Hash,
    },
    /// A symbolic link.
    Link {
        /// What it says.
        target: Vec<u8>,
    },
}

/// All that a machine has of its project.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Index {
    /// When the project was listed for it: nanoseconds since 1970, by the clock that dates its files.
    pub taken_ns: i128,
    /// Sorted by path, each path once.
    pub entries: Vec<Indexed>,
}

/// Why there is no index to go by.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The file cannot be read.
    #[error(transparent)]
    Path(#[from] PathError),
    /// Another version wrote it.
    #[error("the index of the machine's files is not of version {INDEX_VERSION}")]
    Version,
    /// Damaged.
    #[error("the index of the machine's files is damaged in line {line}")]
    Damaged {
        /// From 1.
        line: usize,
    },
}

impl Index {
    /// Reads an index; `None` if there is none.
    pub fn read(path: &Path) -> Result<Option<Index>, IndexError> {
        let mut bytes = Vec::new();
        let read = fs::File::open(path).and_then(|file| file.take(MAX_INDEX_BYTES).read_to_end(&mut bytes));
        match read {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(PathError::new("read", path))?,
        };
        Index::parse(&bytes).map(Some)
    }

    /// Writes it, whole or not at all.
    pub fn write(&self, path: &Path) -> Result<(), PathError> {
        let bytes = self.to_bytes().map_err(PathError::new("write", path))?;
        write_atomic(path, &bytes)
    }

    /// The content of the file.
    pub(super) fn to_bytes(&self) -> io::Result<Vec<u8>> {
        let mut out = Vec::with_capacity((self.entries.len() + 2) * USUAL_LINE_BYTES);
        writeln!(out, "{MAGIC} {INDEX_VERSION} {}", self.taken_ns)?;
        for Indexed { path, kind, mode } in &self.entries {
            match kind {
                IndexedKind::Folder => write!(out, "d {mode:o} ")?,
                IndexedKind::File { size, mtime_ns, sha256 } => {
                    write!(out, "f {mode:o} {size} {mtime_ns} ")?;
                    push_hex(&mut out, sha256);
                    out.push(b' ');
                }
                IndexedKind::Link { target } => {
                    write!(out, "l {mode:o} ")?;
                    push_escaped(&mut out, target);
                    out.push(b' ');
                }
            }
            push_escaped(&mut out, path);
            out.push(b'\n');
        }
        writeln!(out, "end {}", self.entries.len())?;
        Ok(out)
    }

    /// Reads what [`Index::to_bytes`] gives.
    pub(super) fn parse(bytes: &[u8]) -> Result<Index, IndexError> {
        let mut lines = bytes.split(|&b| b == b'\n');
        let mut head = Words(lines.next().unwrap_or_default());
        if head.next() != Some(MAGIC.as_bytes()) || head.number::<u32>() != Some(INDEX_VERSION) {
            return Err(IndexError::Version);
        }
        let damaged = |line| IndexError::Damaged { line };
        let taken_ns = head.number().ok_or(damaged(1))?;
        let mut entries: Vec<Indexed> = Vec::new();
        for (line, text) in (2..).zip(lines) {
            let mut words = Words(text);
            if let Some(rest) = text.strip_prefix(b"end ") {
                return match Words(rest).number::<usize>() {
                    Some(count) if entries.len() == count => Ok(Index { taken_ns, entries }),
                    _ => Err(damaged(line)),
                };
            }
            let entry =
                words.entry().filter(|entry| entries.last().is_none_or(|last| last.path < entry.path));
            entries.push(entry.ok_or(damaged(line))?);
            if entries.len() > MAX_ENTRIES {
                return Err(damaged(line));
            }
        }
        Err(damaged(entries.len() + 2))
    }
}

/// The words of one line.
struct Words<'l>(&'l [u8]);

impl<'l> Words<'l> {
    fn next(&mut self) -> Option<&'l [u8]> {
        if self.0.is_empty() {
            return None;
        }
        let end = self.0.iter().position(|&b| b == b' ').unwrap_or(self.0.len());
        let (word, rest) = self.0.split_at(end);
        self.0 = rest.get(1..).unwrap_or_default();
        Some(word)
    }

    fn text(&mut self) -> Option<&'l str> {
        self.next().and_then(|word| std::str::from_utf8(word).ok())
    }

    fn number<T: std::str::FromStr>(&mut self) -> Option<T> {
        self.text()?.parse().ok()
    }

    fn entry(&mut self) -> Option<Indexed> {
        let kind = self.next()?;
        let mode = u32::from_str_radix(self.text()?, 8).ok()?;
        let kind = match kind {
            b"d" => IndexedKind::Folder,
            b"f" => IndexedKind::File {
                size: self.number()?,
                mtime_ns: self.number()?,
                sha256: unhex(self.next()?)?,
            },
            b"l" => IndexedKind::Link { target: unescape(self.next()?)? },
            _ => return None,
        };
        let path = unescape(self.next()?).filter(|path| !path.is_empty())?;
        self.next().is_none().then_some(Indexed { path, kind, mode })
    }
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

fn push_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    for byte in bytes {
        out.extend([DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
}

/// A hash as people write it.
pub(super) fn hex(hash: &Hash) -> String {
    let mut out = Vec::with_capacity(2 * hash.len());
    push_hex(&mut out, hash);
    out.into_iter().map(char::from).collect()
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

fn unhex(text: &[u8]) -> Option<Hash> {
    let mut hash = Hash::default();
    if text.len() != 2 * hash.len() {
        return None;
    }
    for (byte, pair) in hash.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(hash)
}

fn push_escaped(out: &mut Vec<u8>, bytes: &[u8]) {
    for &byte in bytes {
        if byte <= b' ' || matches!(byte, b'%' | 0x7f) {
            out.push(b'%');
            push_hex(out, &[byte]);
        } else {
            out.push(byte);
        }
    }
}

fn unescape(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => digit(bytes.next()?)? << 4 | digit(bytes.next()?)?,
            byte => byte,
        });
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry() -> impl Strategy<Value = Indexed> {
        let bytes = || proptest::collection::vec(any::<u8>(), 1..12);
        let file = (any::<u64>(), any::<i64>(), any::<Hash>()).prop_map(|(size, mtime, sha256)| {
            IndexedKind::File { size, mtime_ns: i128::from(mtime), sha256 }
        });
        let link = bytes().prop_map(|target| IndexedKind::Link { target });
        let kind = prop_oneof![Just(IndexedKind::Folder), file, link];
        (bytes(), kind, 0..0o10000u32).prop_map(|(path, kind, mode)| Indexed { path, kind, mode })
    }

    fn index() -> impl Strategy<Value = Index> {
        (any::<i64>(), proptest::collection::vec(entry(), 0..8)).prop_map(|(taken, mut entries)| {
            entries.sort_by(|a, b| a.path.cmp(&b.path));
            entries.dedup_by(|a, b| a.path == b.path);
            Index { taken_ns: taken.into(), entries }
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(index in index()) {
            prop_assert_eq!(Index::parse(&index.to_bytes().unwrap()).unwrap(), index);
        }

        #[test]
        fn a_damaged_index_is_refused_or_read_without_a_panic(index in index(), at in any::<prop::sample::Index>(), by in any::<u8>()) {
            let mut bytes = index.to_bytes().unwrap();
            let cut = at.index(bytes.len());
            prop_assert!(cut == bytes.len() - 1 || Index::parse(&bytes[..cut]).is_err());
            bytes[cut] = by;
            let _ = Index::parse(&bytes);
        }
    }

    #[test]
    fn the_format_is_what_the_head_of_the_file_says() {
        let file = IndexedKind::File { size: 5, mtime_ns: -7, sha256: [0xa0; 32] };
        let index = Index {
            taken_ns: 12,
            entries: vec![
                Indexed { path: b"a b%\n".to_vec(), kind: file, mode: 0o4755 },
                Indexed { path: b"d".to_vec(), kind: IndexedKind::Folder, mode: 0o700 },
                Indexed {
                    path: b"d/\xff".to_vec(),
                    kind: IndexedKind::Link { target: b"../x y".to_vec() },
                    mode: 0o777,
                },
            ],
        };
        let hash = "a0".repeat(32);
        let expected = format!("iii-files 1 12\nf 4755 5 -7 {hash} a%20b%25%0a\nd 700 d\nl 777 ../x%20y d/");
        let bytes = index.to_bytes().unwrap();
        assert_eq!(bytes, [expected.as_bytes(), b"\xff\nend 3\n"].concat());
    }

    #[test]
    fn other_versions_and_damage_are_told_apart() {
        for text in ["", "iii-files 2 0\nend 0\n", "iii-files 0 0\n", "{}"] {
            assert!(matches!(Index::parse(text.as_bytes()), Err(IndexError::Version)), "{text}");
        }
        let line = |text: &str| match Index::parse(text.as_bytes()) {
            Err(IndexError::Damaged { line }) => line,
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(line("iii-files 1 x\n"), 1);
        assert_eq!(line("iii-files 1 0\n"), 2);
        assert_eq!(line("iii-files 1 0\nd 700 a\nend 2\n"), 3);
        assert_eq!(line("iii-files 1 0\nd 700 b\nd 700 a\nend 2\n"), 3, "not sorted");
        assert_eq!(line("iii-files 1 0\nd 800 a\nend 1\n"), 2);
        assert_eq!(line("iii-files 1 0\nd 700 a b\nend 1\n"), 2);
        assert_eq!(line("iii-files 1 0\nf 700 1 1 00 a\nend 1\n"), 2);
        assert_eq!(line("iii-files 1 0\nd 700 %0\nend 1\n"), 2);
    }

    #[test]
    fn it_is_kept_in_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("files");
        assert_eq!(Index::read(&path).unwrap(), None);
        let index = Index { taken_ns: 1, entries: vec![] };
        index.write(&path).unwrap();
        assert_eq!(Index::read(&path).unwrap(), Some(index));
    }
}
