//! A layer's bytes on their way in: decompressed and hashed on a thread of their own, a few chunks ahead of
//! the one who parses them.

use std::io::{self, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use iii_archive::read::Source;
use sha2::{Digest as _, Sha256};

use super::{Fault, Usage};
use crate::image::build::{Compression, Layer};

/// Bytes of one chunk that travels between the threads.
const CHUNK: usize = 256 << 10;
/// Chunks that may wait for the parser.
const CHUNKS_AHEAD: usize = 8;
/// Bytes read from a compressed layer at a time.
const INPUT_BUFFER: usize = 256 << 10;

/// The unpacked bytes of one layer.
pub(crate) struct LayerStream<'scope, 'u, 'l> {
    chunks: Receiver<io::Result<Vec<u8>>>,
    spent: SyncSender<Vec<u8>>,
    worker: ScopedJoinHandle<'scope, Option<String>>,
    current: Vec<u8>,
    taken: usize,
    compressed: Arc<AtomicU64>,
    compressed_before: u64,
    unpacked: u64,
    usage: &'u mut Usage<'l>,
    progress: &'u mut dyn FnMut(u64),
}

impl<'scope, 'u, 'l> LayerStream<'scope, 'u, 'l> {
    /// Starts to unpack `layer`.
    pub(crate) fn spawn<'env>(
        scope: &'scope Scope<'scope, 'env>,
        layer: Layer<'env>,
        usage: &'u mut Usage<'l>,
        progress: &'u mut dyn FnMut(u64),
    ) -> Self {
        let (filled, chunks) = sync_channel(CHUNKS_AHEAD);
        let (spent, empty) = sync_channel(CHUNKS_AHEAD + 2);
        let compressed = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&compressed);
        let worker = scope.spawn(move || {
            let hasher = layer.diff_id.is_some().then(Sha256::new);
            let input = Counted { inner: layer.reader, count };
            match unpacked(layer.compression, input) {
                Ok(reader) => pump(reader, hasher, &filled, &empty),
                Err(error) => {
                    // The parser has stopped listening if this fails, and has its own reason.
                    let _ = filled.send(Err(error));
                    None
                }
            }
        });
        let compressed_before = usage.compressed;
        LayerStream {
            chunks,
            spent,
            worker,
            current: Vec::new(),
            taken: 0,
            compressed,
            compressed_before,
            unpacked: 0,
            usage,
            progress,
        }
    }

    /// After the end of the stream: its `sha256:<hex>`, if it was asked for.
    pub(crate) fn finish(self) -> Option<String> {
        let LayerStream { worker, chunks, spent, .. } = self;
        drop((chunks, spent));
        match worker.join() {
            Ok(digest) => digest,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Source for LayerStream<'_, '_, '_> {
    type Error = Fault;

    fn fill(&mut self) -> Result<&[u8], Fault> {
        if self.taken == self.current.len() {
            // A full list of spent chunks only means that this one is dropped.
            let _ = self.spent.try_send(std::mem::take(&mut self.current));
            self.taken = 0;
            // A closed channel is the end of the stream.
            if let Ok(chunk) = self.chunks.recv() {
                self.current = chunk.map_err(Fault::Read)?;
            }
            let compressed = self.compressed.load(Ordering::Relaxed);
            self.unpacked += self.current.len() as u64;
            self.usage.compressed = self.compressed_before + compressed;
            (self.progress)(self.usage.compressed);
            self.usage.unpacked(self.current.len() as u64, self.unpacked, compressed)?;
        }
        Ok(&self.current[self.taken..])
    }

    fn consume(&mut self, n: usize) {
        self.taken += n;
    }
}

/// Counts what is read through it.
struct Counted<R> {
    inner: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.count.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// The reader of the tar stream inside `input`.
fn unpacked<'r>(compression: Compression, input: impl Read + 'r) -> io::Result<Box<dyn Read + 'r>> {
    let buffered = |input| BufReader::with_capacity(INPUT_BUFFER, input);
    Ok(match compression {
        Compression::None => Box::new(input),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(buffered(input))),
        // The decoder's own limit of a 128 MiB window bounds its memory.
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(buffered(input))?),
    })
}

/// Sends `reader` on in chunks, hashing on the way; ends early when nobody listens any more.
fn pump(
    mut reader: impl Read,
    mut hasher: Option<Sha256>,
    filled: &SyncSender<io::Result<Vec<u8>>>,
    empty: &Receiver<Vec<u8>>,
) -> Option<String> {
    loop {
        let mut chunk = empty.try_recv().unwrap_or_default();
        chunk.resize(CHUNK, 0);
        let mut len = 0;
        let end = loop {
            match reader.read(&mut chunk[len..]) {
                Ok(0) => break true,
                Ok(n) => len += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let _ = filled.send(Err(error));
                    return None;
                }
            }
            if len == CHUNK {
                break false;
            }
        };
        chunk.truncate(len);
        if let Some(hasher) = &mut hasher {
            hasher.update(&chunk);
        }
        if len > 0 && filled.send(Ok(chunk)).is_err() {
            return None;
        }
        if end {
            return hasher.map(|hasher| {
                let hex: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
                format!("sha256:{hex}")
            });
        }
    }
}
