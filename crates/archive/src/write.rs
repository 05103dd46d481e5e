//! Writes a tar stream: ustar headers, and PAX records for what does not fit into one.

use std::io::{self, Write};

use tar::{EntryType, Header};

use crate::read::{BLOCK, EntryKind};

/// Longest name or link target that a ustar header holds in one field.
const MAX_NAME: usize = 100;
/// Largest number of an 8-byte field: seven octal digits.
const MAX_SMALL: u64 = 0o7_777_777;
/// Largest number of a 12-byte field: eleven octal digits.
const MAX_LARGE: u64 = 0o77_777_777_777;

/// In a second.
const NANOSECONDS: i128 = 1_000_000_000;

/// One entry's header.
#[derive(Debug, Clone)]
pub struct Head<'a> {
    /// Its name; a folder's ends with a slash.
    pub path: &'a [u8],
    /// What it is.
    pub kind: EntryKind,
    /// Target of a hard or symbolic link, else empty.
    pub link: &'a [u8],
    /// Bytes of the body that follows; 0 for all but files.
    pub size: u64,
    /// Permissions and the three bits above them.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since the epoch, and nanoseconds after them.
    pub mtime: (i64, u32),
}

/// A tar stream that grows.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
}

impl<W: Write> Writer<W> {
    /// Begins an archive.
    pub fn new(out: W) -> Writer<W> {
        Writer { out }
    }

    /// Writes a header; exactly [`Head::size`] bytes of [`Writer::body`] and one [`Writer::pad`] follow.
    pub fn head(&mut self, head: &Head<'_>) -> io::Result<()> {
        let mut records = Records::default();
        let mut header = Header::new_ustar();
        header.set_entry_type(entry_type(head.kind));
        header.set_mode(head.mode & 0o7777);
        let old = header.as_old_mut();
        records.text("path", &mut old.name, head.path);
        records.text("linkpath", &mut old.linkname, head.link);
        header.set_uid(records.number("uid", u64::from(head.uid), MAX_SMALL));
        header.set_gid(records.number("gid", u64::from(head.gid), MAX_SMALL));
        header.set_size(records.number("size", head.size, MAX_LARGE));
        header.set_mtime(match (u64::try_from(head.mtime.0), head.mtime.1) {
            (Ok(mtime), 0) => records.number("mtime", mtime, MAX_LARGE),
            (whole, _) => {
                records.add("mtime", decimal(head.mtime).as_bytes());
                whole.unwrap_or_default().min(MAX_LARGE)
            }
        });
        if let EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } = head.kind {
            header.set_device_major(major)?;
            header.set_device_minor(minor)?;
        }
        header.set_cksum();
        if let Some(records) = records.finish() {
            self.extension(&records, head)?;
        }
        self.out.write_all(header.as_bytes())
    }

    /// Writes a part of the body.
    pub fn body(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    /// Fills the last block of a body of `size` bytes.
    pub fn pad(&mut self, size: u64) -> io::Result<()> {
        let padding = size.wrapping_neg() % BLOCK as u64;
        self.out.write_all(&[0; BLOCK][..padding as usize])
    }

    /// Writes the end marker.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok(self.out)
    }

    /// The extended header that holds `records`.
    fn extension(&mut self, records: &[u8], head: &Head<'_>) -> io::Result<()> {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        // A reader that does not know extended headers unpacks them as files of this name.
        let bare = head.path.strip_suffix(b"/").unwrap_or(head.path);
        let name = bare.rsplit(|&b| b == b'/').next().unwrap_or_default();
        let name = [b"PaxHeaders.0/", name].concat();
        put(&mut header.as_old_mut().name, &name[..name.len().min(MAX_NAME)]);
        header.set_mode(0o600);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(records.len() as u64);
        header.set_cksum();
        self.out.write_all(header.as_bytes())?;
        self.body(records)?;
        self.pad(records.len() as u64)
    }
}

fn entry_type(kind: EntryKind) -> EntryType {
    match kind {
        EntryKind::File => EntryType::Regular,
        EntryKind::HardLink => EntryType::Link,
        EntryKind::Symlink => EntryType::Symlink,
        EntryKind::CharDevice { .. } => EntryType::Char,
        EntryKind::BlockDevice { .. } => EntryType::Block,
        EntryKind::Folder => EntryType::Directory,
        EntryKind::Fifo => EntryType::Fifo,
    }
}

fn put(field: &mut [u8; MAX_NAME], bytes: &[u8]) {
    field[..bytes.len()].copy_from_slice(bytes);
}

/// PAX records.
#[derive(Default)]
struct Records {
    all: Vec<u8>,
    binary: bool,
}

impl Records {
    /// Puts a name into its field, or else into a record.
    fn text(&mut self, key: &str, field: &mut [u8; MAX_NAME], value: &[u8]) {
        if value.len() <= MAX_NAME {
            put(field, value);
            return;
        }
        // What readers without PAX make of it is as good as can be.
        put(field, &value[..MAX_NAME]);
        self.binary |= std::str::from_utf8(value).is_err();
        self.add(key, value);
    }

    /// A number for its field; 0 when it goes into a record instead.
    fn number(&mut self, key: &str, value: u64, max: u64) -> u64 {
        if value <= max {
            return value;
        }
        self.add(key, value.to_string().as_bytes());
        0
    }

    fn add(&mut self, key: &str, value: &[u8]) {
        self.all.extend(record(key, value));
    }

    fn finish(self) -> Option<Vec<u8>> {
        if self.all.is_empty() {
            return None;
        }
        // Text of a record is UTF-8 unless the first one says otherwise.
        let charset = if self.binary { record("hdrcharset", b"BINARY") } else { Vec::new() };
        Some([charset, self.all].concat())
    }
}

/// A time as records have it: a decimal fraction, whose sign is that of the whole.
fn decimal((seconds, nanoseconds): (i64, u32)) -> String {
    let all = i128::from(seconds) * NANOSECONDS + i128::from(nanoseconds);
    let (sign, all) = (if all < 0 { "-" } else { "" }, all.unsigned_abs());
    let (whole, part) = (all / NANOSECONDS.unsigned_abs(), all % NANOSECONDS.unsigned_abs());
    if part == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{part:09}") }
}

/// `<length> <key>=<value>\n`, where the length counts itself too.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + " =\n".len();
    let mut length = rest + 1;
    while length.to_string().len() + rest != length {
        length += 1;
    }
    [length.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::{Archive, Plain};

    fn again(head: &Head<'_>) -> crate::read::Entry {
        let mut writer = Writer::new(Vec::new());
        writer.head(head).unwrap();
        let bytes = writer.finish().unwrap();
        let mut archive = Archive::new(Plain(&bytes[..]));
        archive.next(1 << 20).unwrap().unwrap()
    }

    #[test]
    fn what_fits_into_no_header_comes_back_from_records() {
        let long = [b"\xff/\n".repeat(400), b"end".to_vec()].concat();
        let head = Head {
            path: &long,
            kind: EntryKind::Symlink,
            link: &long,
            size: 0,
            mode: 0o104_755,
            uid: 4_000_000_000,
            gid: 3_000_000,
            mtime: (-5, 0),
        };
        let entry = again(&head);
        assert_eq!((&entry.path, &entry.link), (&long, &long));
        assert_eq!((entry.uid, entry.gid, entry.mode), (4_000_000_000, 3_000_000, 0o4755));
        assert_eq!(entry.mtime, (-5, 0));
    }

    #[test]
    fn a_time_keeps_its_nanoseconds() {
        for mtime in [(0, 0), (0, 1), (7, 999_999_999), (-4, 750_000_000), (-1, 1), (1 << 36, 5), (-9, 0)] {
            let (path, kind) = (&b"f"[..], EntryKind::File);
            let head = Head { path, kind, link: b"", size: 0, mode: 0, uid: 0, gid: 0, mtime };
            assert_eq!(again(&head).mtime, mtime);
        }
        assert_eq!(decimal((-4, 750_000_000)), "-3.250000000");
    }

    #[test]
    fn a_name_of_a_hundred_bytes_needs_no_record() {
        let name = [b'x'; MAX_NAME];
        let head = Head {
            path: &name,
            kind: EntryKind::Folder,
            link: b"",
            size: 0,
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: (1, 0),
        };
        let mut writer = Writer::new(Vec::new());
        writer.head(&head).unwrap();
        assert_eq!(writer.finish().unwrap().len(), 3 * BLOCK);
        assert_eq!(again(&head).path, name);
    }

    #[test]
    fn a_size_beyond_eight_gib_is_told() {
        let size = 1 << 40;
        let head = Head {
            path: b"f",
            kind: EntryKind::File,
            link: b"",
            size,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
        };
        assert_eq!(again(&head).size, size);
    }

    #[test]
    fn a_record_counts_its_own_length() {
        assert_eq!(record("a", b"b"), b"6 a=b\n");
        for (value, begins) in [(90, "99 path="), (91, "101 path=")] {
            let record = record("path", &vec![b'x'; value]);
            assert!(record.starts_with(begins.as_bytes()));
            assert!(begins.starts_with(&record.len().to_string()));
        }
    }
}
