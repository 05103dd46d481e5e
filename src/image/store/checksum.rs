//! What tells a root disk that is as it was built from one that was damaged since.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use sha2::{Digest as _, Sha256};

use crate::fsutil::next_data;
use crate::image::digest::Digest;

/// The unit of what counts, bytes: that of the file system on the disk.
const BLOCK_BYTES: usize = 4096;
/// What a hole holds.
static ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
/// Bytes read at a time.
const READ_BYTES: usize = 64 * BLOCK_BYTES;

/// The checksum of a disk: its length, and each block that is not all zeros with its number. So a hole and the zeros
/// it stands for are the same, and a disk of hundreds of GiB takes no longer than what is in it.
///
/// `progress` is told how far it is in the file, in bytes, and its length at last. Blocks the calling thread.
pub(super) fn checksum(disk: &File, progress: &mut dyn FnMut(u64)) -> io::Result<Digest> {
    let length = disk.metadata()?.len();
    let mut sum = Sha256::new_with_prefix(length.to_le_bytes());
    let mut buffer = vec![0; READ_BYTES];
    let mut at = 0;
    while let Some(data) = next_data(disk, at)? {
        // Where the file system's own blocks are smaller, a hole may begin within one of ours.
        at = at.max(data.start - data.start % BLOCK_BYTES as u64);
        while at < data.end {
            progress(at);
            let portion = &mut buffer[..READ_BYTES.min(usize::try_from(length - at).unwrap_or(READ_BYTES))];
            disk.read_exact_at(portion, at)?;
            for (index, block) in portion.chunks(BLOCK_BYTES).enumerate() {
                if *block != ZEROS[..block.len()] {
                    sum.update((at / BLOCK_BYTES as u64 + index as u64).to_le_bytes());
                    sum.update(block);
                }
            }
            at += READ_BYTES as u64;
        }
    }
    progress(length);
    Ok(Digest::finish(sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = BLOCK_BYTES as u64;

    fn disk(length: u64, writes: &[(u64, &[u8])]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        for (at, bytes) in writes {
            file.write_all_at(bytes, *at).unwrap();
        }
        file
    }

    fn sum(file: &File) -> Digest {
        checksum(file, &mut |_| ()).unwrap()
    }

    #[test]
    fn holes_are_zeros_and_everything_else_counts() {
        let length = READ_BYTES as u64 * 4;
        let far = length - 3 * BLOCK;
        let content: [(u64, &[u8]); 2] = [(10, b"head"), (far, b"body")];
        let good = sum(&disk(length, &content));
        let zeros = vec![0; length as usize];
        let solid = [(0, zeros.as_slice()), content[0], content[1]];
        assert_eq!(sum(&disk(length, &solid)), good, "zeros that are written");
        let partly = [(BLOCK * 3, &zeros[..READ_BYTES]), content[0], content[1]];
        assert_eq!(sum(&disk(length, &partly)), good, "some of them");

        let zeroed = [(far, b"body".as_slice())];
        let flipped: [(u64, &[u8]); 2] = [(10, b"heae"), (far, b"body")];
        let moved: [(u64, &[u8]); 2] = [(10, b"head"), (far + BLOCK, b"body")];
        for (what, length, writes) in [
            ("the first block is zeroed", length, zeroed.as_slice()),
            ("a bit is flipped", length, &flipped),
            ("a block is elsewhere", length, &moved),
            ("it is shorter", length - BLOCK, &content),
            ("it is empty", 0, &[]),
        ] {
            assert_ne!(sum(&disk(length, writes)), good, "{what}");
        }
    }

    #[test]
    fn a_disk_that_is_mostly_holes_takes_no_time_and_progress_ends_at_its_length() {
        let length = 1 << 40;
        let mut told = Vec::new();
        checksum(&disk(length, &[(1 << 39, b"x")]), &mut |at| told.push(at)).unwrap();
        assert!(told.len() < 10 && told.is_sorted(), "{told:?}");
        assert_eq!(told.last(), Some(&length));
    }
}
