//! The data area: bodies of files, each in blocks of its own, written while they stream by.
//!
//! Positions only grow and each is written at most once, so the file below never has to be read and what is
//! all zeros can be left a hole.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::format::BLOCK;
use crate::image::build::{LimitHit, Limits};
use crate::image::layer::Fault;

/// Bytes gathered before they are written.
const BUFFER: usize = 1 << 20;
const BLOCK_BYTES: usize = BLOCK as usize;

/// Where a file's content is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Body {
    pub(crate) size: u64,
    /// First of its whole blocks.
    pub(crate) first_block: u32,
    /// What goes behind the inode; empty if the last block, too, is in the data area.
    pub(crate) tail: Box<[u8]>,
}

impl Body {
    /// The bytes of the data area it takes, from `first_block`.
    pub(crate) fn data_bytes(&self) -> u64 {
        (self.size - self.tail.len() as u64).next_multiple_of(BLOCK)
    }

    /// The content, from the finished disk it is on. All of it is put into memory.
    pub(crate) fn read(&self, disk: &File) -> io::Result<Vec<u8>> {
        let in_blocks = self.size - self.tail.len() as u64;
        let mut bytes = vec![0; usize::try_from(in_blocks).map_err(io::Error::other)?];
        disk.read_exact_at(&mut bytes, u64::from(self.first_block) * BLOCK)?;
        bytes.extend_from_slice(&self.tail);
        Ok(bytes)
    }
}

/// Hands out the blocks of a disk and fills them.
pub(crate) struct DataWriter<'f> {
    file: &'f File,
    limits: Limits,
    /// First block nobody has.
    next_block: u64,
    inline_left: u64,
    /// Bytes that wait to be written at `at`.
    buffer: Vec<u8>,
    at: u64,
}

impl<'f> DataWriter<'f> {
    /// Starts behind the superblock's block of an empty file.
    pub(crate) fn new(file: &'f File, limits: &Limits) -> DataWriter<'f> {
        DataWriter {
            file,
            limits: limits.clone(),
            next_block: 1,
            inline_left: limits.inline_bytes,
            buffer: Vec::with_capacity(BUFFER),
            at: 0,
        }
    }

    pub(crate) fn file(&self) -> &'f File {
        self.file
    }

    pub(crate) fn next_block(&self) -> u64 {
        self.next_block
    }

    /// Takes the next `bytes`, rounded up to blocks.
    pub(crate) fn allocate(&mut self, bytes: u64) -> Result<u32, LimitHit> {
        let at_most = self.limits.disk_bytes.min(u64::from(u32::MAX) * BLOCK);
        let hit = LimitHit { limit: "disk_bytes", at_most };
        // The number of a block has 32 bits.
        let first = u32::try_from(self.next_block).map_err(|_| hit)?;
        let end = (self.next_block * BLOCK).checked_add(bytes).filter(|&end| end <= at_most).ok_or(hit)?;
        self.next_block = end.div_ceil(BLOCK);
        Ok(first)
    }

    /// Finds a place for a file of `size` bytes whose inode, with all that follows it but a tail, takes
    /// `inode_bytes`.
    pub(crate) fn begin(&mut self, size: u64, inode_bytes: usize) -> Result<BodyWriter, LimitHit> {
        let at_most = self.limits.file_bytes;
        if size > at_most {
            return Err(LimitHit { limit: "file_bytes", at_most });
        }
        let mut tail = size % BLOCK;
        // A tail must not cross a block.
        if inode_bytes as u64 + tail > BLOCK || tail > self.inline_left {
            tail = 0;
        }
        self.inline_left -= tail;
        let first_block = match size - tail {
            0 => 0,
            bytes => self.allocate(bytes)?,
        };
        Ok(BodyWriter { body: Body { size, first_block, tail: vec![0; tail as usize].into() } })
    }

    /// Writes at a position that is not before the end of the last write.
    pub(crate) fn write(&mut self, at: u64, mut bytes: &[u8]) -> Result<(), Fault> {
        let gap = at - (self.at + self.buffer.len() as u64);
        if gap < BLOCK && self.buffer.len() + (gap as usize) < BUFFER {
            // The end of a file's last block: not worth a write of its own.
            self.buffer.resize(self.buffer.len() + gap as usize, 0);
        } else {
            self.flush()?;
            self.at = at;
        }
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BUFFER - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == BUFFER {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Writes what waits, but for blocks of zeros.
    pub(crate) fn flush(&mut self) -> Result<(), Fault> {
        // Blocks are the disk's, wherever the buffer begins.
        let first = (BLOCK - self.at % BLOCK).min(self.buffer.len() as u64) as usize;
        let (head, rest) = self.buffer.split_at(first);
        let mut run = 0..0;
        let mut end = 0;
        for block in std::iter::once(head).chain(rest.chunks(BLOCK_BYTES)) {
            end += block.len();
            if is_zero(block) {
                write_all_at(self.file, &self.buffer[run], self.at, end - block.len())?;
                run = end..end;
            } else {
                run.end = end;
            }
        }
        write_all_at(self.file, &self.buffer[run], self.at, end)?;
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

/// Writes the run that ends `end` bytes behind `at`.
fn write_all_at(file: &File, run: &[u8], at: u64, end: usize) -> Result<(), Fault> {
    if run.is_empty() {
        return Ok(());
    }
    file.write_all_at(run, at + end as u64 - run.len() as u64).map_err(Fault::Write)
}

fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
    // Compares as memory does, and mostly ends at the first word.
    bytes == &ZEROS[..bytes.len()]
}

/// A file on its way to its place.
pub(crate) struct BodyWriter {
    body: Body,
}

impl BodyWriter {
    /// Writes at an offset of the file that is not before the end of the last write; what is left out is
    /// zeros.
    pub(crate) fn write(
        &mut self,
        data: &mut DataWriter<'_>,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), Fault> {
        let Body { size, first_block, tail } = &mut self.body;
        if offset + bytes.len() as u64 > *size {
            return Err(Fault::Write(io::Error::from(io::ErrorKind::InvalidInput)));
        }
        let tail_at = *size - tail.len() as u64;
        let in_blocks =
            usize::try_from(tail_at.saturating_sub(offset)).unwrap_or(usize::MAX).min(bytes.len());
        let (blocks, rest) = bytes.split_at(in_blocks);
        if !blocks.is_empty() {
            data.write(u64::from(*first_block) * BLOCK + offset, blocks)?;
        }
        if !rest.is_empty() {
            let from = (offset + in_blocks as u64 - tail_at) as usize;
            tail[from..from + rest.len()].copy_from_slice(rest);
        }
        Ok(())
    }

    pub(crate) fn finish(self) -> Body {
        self.body
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

        #[test]
        fn bodies_written_in_any_pieces_are_in_their_place(
            bodies in prop::collection::vec(
                (prop::collection::vec((0..3_000usize, 1..30_000usize, 0..3u8), 0..6), 64..5000usize),
                1..8,
            ),
        ) {
            let file = tempfile::tempfile().unwrap();
            let mut data = DataWriter::new(&file, &Limits::default());
            let mut all = Vec::new();
            for (pieces, inode_bytes) in bodies {
                let size: usize = pieces.iter().map(|(gap, len, _)| gap + len).sum();
                let mut whole = vec![0; size];
                let mut body = data.begin(size as u64, inode_bytes).unwrap();
                let mut at = 0;
                for (gap, len, byte) in pieces {
                    at += gap;
                    whole[at..at + len].fill(byte);
                    body.write(&mut data, at as u64, &whole[at..at + len]).unwrap();
                    at += len;
                }
                all.push((body.finish(), whole));
            }
            data.flush().unwrap();
            file.set_len(data.next_block() * BLOCK).unwrap();
            for (body, whole) in all {
                prop_assert!(body.read(&file).unwrap() == whole);
            }
        }
    }

    #[test]
    fn zeros_become_holes() {
        let file = tempfile::tempfile().unwrap();
        let mut data = DataWriter::new(&file, &Limits::default());
        let size = 8 << 20;
        let mut body = data.begin(size, 64).unwrap();
        body.write(&mut data, 0, &vec![0; size as usize]).unwrap();
        data.flush().unwrap();
        assert_eq!(file.metadata().unwrap().blocks(), 0);
    }
}
