//! Cuts a tar stream into entries.
//!
//! The `tar` crate reads the headers. Its iterator over entries is not used: it breaks PAX records at
//! newlines inside binary values, even the one that says where the next header is, and knows no sparse files
//! in PAX. Where readers of tar disagree, this one does what Go's `archive/tar` does, because the tools that
//! make and push images are written with it: what it skips or refuses is
//! never part of an image. Copies between host and guest are read with the same eyes.

mod pax;
mod source;

use std::collections::BTreeMap;
use std::io;

use tar::{GnuExtSparseHeader, Header};

use self::pax::{Pax, PaxSparse};
pub use self::source::{HeadersTooLong, Malformed, Plain, ReadError, Source};

/// Bytes of a header, and what bodies are padded to.
pub(crate) const BLOCK: usize = 512;

/// Extended attributes by name.
pub type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// Part of a sparse file that has data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where in the file, bytes.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
}

/// What an entry is, by its type flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// Bytes, maybe with holes.
    File,
    /// One more name of an earlier entry.
    HardLink,
    /// A name for another name.
    Symlink,
    /// A device of characters.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A device of blocks.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A folder.
    Folder,
    /// A named pipe.
    Fifo,
}

/// One entry, its extension headers taken in; the body follows in the stream.
#[derive(Debug)]
pub struct Entry {
    /// The name as the archive spells it.
    pub path: Vec<u8>,
    /// Target of a hard or symbolic link.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permissions and the three bits above them.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since the epoch and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes that Linux has a meaning for.
    pub xattrs: Xattrs,
    /// Size of a file with its holes.
    pub size: u64,
    /// Where the body's bytes belong, in order; together as long as the body. One for a file without holes.
    pub segments: Vec<Segment>,
}

/// A tar stream, read forward only.
#[derive(Debug)]
pub struct Archive<S> {
    source: S,
    /// Bytes of the current body that have not been taken.
    body: u64,
    /// Padding behind it.
    padding: u64,
    /// Name of the current entry, for messages.
    place: Vec<u8>,
    ended: bool,
}

/// Extension headers that wait for their entry.
#[derive(Default)]
struct Pending {
    pax: Option<Pax>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    /// Bytes they took.
    bytes: u64,
}

impl<S: Source> Archive<S> {
    /// Begins with the first entry of `source`.
    pub fn new(source: S) -> Archive<S> {
        Archive { source, body: 0, padding: 0, place: Vec::new(), ended: false }
    }

    /// Name of the entry last read, or as much of it as is known; empty between entries.
    pub fn place(&self) -> &[u8] {
        &self.place
    }

    /// Gives the stream back.
    pub fn into_source(self) -> S {
        self.source
    }

    /// The next entry, what is left of the last one's body skipped. After `None` the whole stream has been
    /// read, also what follows the end marker. `header_bytes` bounds what extension headers may cost.
    pub fn next(&mut self, header_bytes: u64) -> Result<Option<Entry>, S::Error> {
        let mut pending = Pending::default();
        loop {
            self.skip_body()?;
            self.place.clear();
            let Some(header) = self.read_header()? else {
                if pending.bytes > 0 {
                    return Err(Malformed::Truncated.into());
                }
                return Ok(None);
            };
            self.place = header.path_bytes().into_owned();
            let size = number(&header.as_old().size, header.entry_size())?;
            // The crate's own type takes the oldest flag, 0, for a file.
            match header.as_old().linkflag[0] {
                // Global headers are comments (of `git archive`, say): image tools pass over them too.
                b'g' => self.set_body(size),
                kind @ (b'x' | b'L' | b'K') => {
                    let data = self.extension(size, &mut pending.bytes, header_bytes)?;
                    let twice = match kind {
                        b'x' => pending.pax.replace(pax::parse(&data)?).is_some(),
                        b'L' => pending.long_name.replace(until_nul(data)).is_some(),
                        _ => pending.long_link.replace(until_nul(data)).is_some(),
                    };
                    if twice {
                        return Err(Malformed::BadArchive("two extension headers of one kind").into());
                    }
                }
                _ => return self.entry(&header, size, pending, header_bytes).map(Some),
            }
        }
    }

    /// The next piece of the current body; empty when it is over.
    pub fn fill_body(&mut self) -> Result<&[u8], S::Error> {
        if self.body == 0 {
            return Ok(&[]);
        }
        let piece = self.source.fill()?;
        if piece.is_empty() {
            return Err(Malformed::Truncated.into());
        }
        let len = piece.len().min(usize::try_from(self.body).unwrap_or(usize::MAX));
        Ok(&piece[..len])
    }

    /// Takes `n` bytes of what `fill_body` gave.
    pub fn consume_body(&mut self, n: usize) {
        self.source.consume(n);
        self.body -= n as u64;
    }

    fn set_body(&mut self, size: u64) {
        self.body = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    fn skip_body(&mut self) -> Result<(), S::Error> {
        loop {
            let n = self.fill_body()?.len();
            if n > 0 {
                self.consume_body(n);
            } else if self.padding > 0 {
                self.body = std::mem::take(&mut self.padding);
            } else {
                return Ok(());
            }
        }
    }

    /// Fills `block`, or says that the stream was already at its end.
    fn read_block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, S::Error> {
        let mut have = 0;
        while have < BLOCK {
            let piece = self.source.fill()?;
            if piece.is_empty() {
                return if have == 0 { Ok(false) } else { Err(Malformed::Truncated.into()) };
            }
            let n = piece.len().min(BLOCK - have);
            block[have..have + n].copy_from_slice(&piece[..n]);
            self.source.consume(n);
            have += n;
        }
        Ok(true)
    }

    /// The next header, its checksum verified; `None` at the end, with or without the marker of two blocks of
    /// zeros that an archive should end with.
    fn read_header(&mut self) -> Result<Option<Header>, S::Error> {
        const ZEROS: [u8; BLOCK] = [0; BLOCK];
        let mut header = Header::new_old();
        if self.ended || !self.read_block(header.as_mut_bytes())? {
            self.ended = true;
            return Ok(None);
        }
        if header.as_bytes() == &ZEROS {
            if self.read_block(header.as_mut_bytes())? && header.as_bytes() != &ZEROS {
                return Err(Malformed::BadArchive("something follows half an end marker").into());
            }
            self.ended = true;
            loop {
                match self.source.fill()?.len() {
                    0 => return Ok(None),
                    n => self.source.consume(n),
                }
            }
        }
        let bytes = header.as_bytes();
        let outside = || bytes[..148].iter().chain(&bytes[156..]).copied();
        let spaces = 8 * i32::from(b' ');
        let unsigned = || outside().map(i32::from).sum::<i32>() + spaces;
        // Some old writers summed signed bytes.
        let signed = || outside().map(|b| i32::from(b.cast_signed())).sum::<i32>() + spaces;
        match header.cksum().map(u32::cast_signed) {
            Ok(sum) if sum == unsigned() || sum == signed() => Ok(Some(header)),
            _ => Err(Malformed::BadArchive("a header's checksum is wrong").into()),
        }
    }

    /// Reads an extension header's body whole.
    fn extension(&mut self, size: u64, spent: &mut u64, limit: u64) -> Result<Vec<u8>, S::Error> {
        *spent = spent.saturating_add(size).saturating_add(1);
        if *spent > limit {
            return Err(HeadersTooLong { at_most: limit }.into());
        }
        self.set_body(size);
        let mut data = Vec::with_capacity(size as usize);
        loop {
            let piece = self.fill_body()?;
            if piece.is_empty() {
                return Ok(data);
            }
            data.extend_from_slice(piece);
            let n = piece.len();
            self.consume_body(n);
        }
    }

    /// Makes an entry of its header and of what the extension headers say about it.
    fn entry(&mut self, header: &Header, size: u64, pending: Pending, limit: u64) -> Result<Entry, S::Error> {
        let Pending { pax, long_name, long_link, mut bytes } = pending;
        let Pax { path, link, size: pax_size, uid, gid, mtime, xattrs, mut sparse } = pax.unwrap_or_default();
        let path =
            sparse.name.take().or(path).or(long_name).unwrap_or_else(|| std::mem::take(&mut self.place));
        self.place.clone_from(&path);
        let kind = kind_of(header, &path)?;
        let stored = if kind == EntryKind::File { pax_size.unwrap_or(size) } else { 0 };
        self.set_body(stored);
        let old = header.as_old();
        let id = |pax: Option<u64>, raw: &[u8], parsed| {
            let id = pax.map_or_else(|| number(raw, parsed), Ok)?;
            // The last one stands for "no id" in Linux.
            u32::try_from(id).ok().filter(|&id| id != u32::MAX).ok_or(Malformed::BadOwner(id))
        };
        let (uid, gid) = (id(uid, &old.uid, header.uid())?, id(gid, &old.gid, header.gid())?);
        let mtime = match mtime {
            Some(mtime) => mtime,
            // Base-256 times before the epoch come out of the crate as their two's complement.
            None => (number(&old.mtime, header.mtime())?.cast_signed(), 0),
        };
        let mode = number(&old.mode, header.mode().map(u64::from))? & 0o7777;
        let (size, segments) = match kind {
            EntryKind::File => self.segments(header, stored, &sparse, &mut bytes, limit)?,
            _ => (0, Vec::new()),
        };
        let link = link.or(long_link).unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into());
        Ok(Entry { path, link, kind, mode: mode as u16, uid, gid, mtime, xattrs, size, segments })
    }

    /// A file's size and where the bytes of its body belong.
    fn segments(
        &mut self,
        header: &Header,
        stored: u64,
        sparse: &PaxSparse,
        spent: &mut u64,
        limit: u64,
    ) -> Result<(u64, Vec<Segment>), S::Error> {
        let (size, segments) = if header.entry_type().is_gnu_sparse() {
            self.gnu_map(header, spent, limit)?
        } else if sparse.major == Some(1) {
            let size = sparse.real_size.ok_or(Malformed::BadSparseMap("it has no size"))?;
            (size, self.map_in_body(spent, limit)?)
        } else if sparse.major.is_some_and(|major| major > 1) {
            return Err(Malformed::BadSparseMap("its version is unknown").into());
        } else if sparse.map.is_some() || sparse.real_size.is_some() {
            let size = sparse.real_size.ok_or(Malformed::BadSparseMap("it has no size"))?;
            (size, sparse.map.clone().unwrap_or_default())
        } else {
            return Ok((stored, vec![Segment { offset: 0, length: stored }]));
        };
        let mut end = 0;
        let mut data = 0u64;
        for segment in &segments {
            if segment.offset < end {
                return Err(Malformed::BadSparseMap("its parts overlap").into());
            }
            end = segment
                .offset
                .checked_add(segment.length)
                .ok_or(Malformed::BadSparseMap("a part has no end"))?;
            data = data.saturating_add(segment.length);
        }
        if end > size || data != self.body {
            return Err(Malformed::BadSparseMap("it does not fit the file's size").into());
        }
        Ok((size, segments))
    }

    /// The map of GNU's own sparse type: in the header, then in blocks between it and the body.
    fn gnu_map(
        &mut self,
        header: &Header,
        spent: &mut u64,
        limit: u64,
    ) -> Result<(u64, Vec<Segment>), S::Error> {
        let bad = |_| Malformed::BadSparseMap("a number in it is malformed");
        let gnu = header.as_gnu().ok_or(Malformed::BadSparseMap("its header is not GNU's"))?;
        let mut segments = Vec::new();
        let mut add = |parts: &[tar::GnuSparseHeader]| -> Result<(), Malformed> {
            for part in parts.iter().filter(|part| !part.is_empty()) {
                segments.push(Segment {
                    offset: part.offset().map_err(bad)?,
                    length: part.length().map_err(bad)?,
                });
            }
            Ok(())
        };
        add(&gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            *spent += BLOCK as u64;
            if *spent > limit {
                return Err(HeadersTooLong { at_most: limit }.into());
            }
            let mut extension = GnuExtSparseHeader::new();
            if !self.read_block(extension.as_mut_bytes())? {
                return Err(Malformed::Truncated.into());
            }
            add(extension.sparse())?;
            more = extension.is_extended();
        }
        Ok((gnu.real_size().map_err(bad)?, segments))
    }

    /// The map of PAX 1.0: decimal lines at the start of the body, padded to a block.
    fn map_in_body(&mut self, spent: &mut u64, limit: u64) -> Result<Vec<Segment>, S::Error> {
        let malformed = Malformed::BadSparseMap("a number in it is malformed");
        let mut numbers = Vec::new();
        let mut line = Vec::new();
        let mut block = [0; BLOCK];
        // Until the first line is read, it alone is expected.
        let mut expected = 1;
        while numbers.len() < expected {
            *spent += BLOCK as u64;
            if *spent > limit {
                return Err(HeadersTooLong { at_most: limit }.into());
            }
            if self.body < BLOCK as u64 || !self.read_block(&mut block)? {
                return Err(Malformed::BadSparseMap("it is longer than the body").into());
            }
            self.body -= BLOCK as u64;
            for &byte in &block {
                if numbers.len() == expected {
                    break;
                } else if byte != b'\n' {
                    line.push(byte);
                    continue;
                }
                let value = pax::number(&line).ok_or_else(|| malformed.clone())?;
                line.clear();
                if numbers.is_empty() {
                    // More than the limit has room for will not come.
                    let parts = usize::try_from(value.min(limit)).unwrap_or(usize::MAX);
                    expected = parts.saturating_mul(2).saturating_add(1);
                }
                numbers.push(value);
            }
        }
        let (pairs, _) = numbers[1..].as_chunks::<2>();
        Ok(pairs.iter().map(|&[offset, length]| Segment { offset, length }).collect())
    }
}

/// A header's number; a field left blank is 0.
fn number(raw: &[u8], parsed: io::Result<u64>) -> Result<u64, Malformed> {
    match parsed {
        Ok(number) => Ok(number),
        Err(_) if raw.iter().all(|&byte| byte == 0 || byte == b' ') => Ok(0),
        Err(_) => Err(Malformed::BadArchive("a field is not a number")),
    }
}

fn kind_of(header: &Header, path: &[u8]) -> Result<EntryKind, Malformed> {
    let device = || -> Result<(u32, u32), Malformed> {
        let number = |field: io::Result<Option<u32>>| {
            field.ok().flatten().ok_or(Malformed::BadArchive("a device has no number"))
        };
        let (major, minor) = (number(header.device_major())?, number(header.device_minor())?);
        if major >= 1 << 12 || minor >= 1 << 20 {
            return Err(Malformed::BadDevice { major, minor });
        }
        Ok((major, minor))
    };
    Ok(match header.as_old().linkflag[0] {
        // Before there was a type for folders, a slash at the end made one.
        0 if path.ends_with(b"/") => EntryKind::Folder,
        0 | b'0' | b'7' | b'S' => EntryKind::File,
        b'1' => EntryKind::HardLink,
        b'2' => EntryKind::Symlink,
        b'3' => device().map(|(major, minor)| EntryKind::CharDevice { major, minor })?,
        b'4' => device().map(|(major, minor)| EntryKind::BlockDevice { major, minor })?,
        b'5' => EntryKind::Folder,
        b'6' => EntryKind::Fifo,
        other => return Err(Malformed::UnsupportedType(other)),
    })
}

/// GNU's long names end at a NUL.
fn until_nul(mut data: Vec<u8>) -> Vec<u8> {
    let end = data.iter().position(|&b| b == 0).unwrap_or(data.len());
    data.truncate(end);
    data
}
