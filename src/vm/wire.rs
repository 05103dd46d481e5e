//! Frames on asynchronous streams.

use iii_protocol::frame::{Frame, FrameDecoder, FrameError, MAX_FRAME_BYTES};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Bytes read at a time; also about what an idle link holds.
const READ_BYTES: usize = 64 * 1024;

/// Reads frames. Cancelling [`next`](Self::next) loses nothing.
#[derive(Debug)]
pub(crate) struct FrameReader<R> {
    stream: R,
    decoder: FrameDecoder,
    buffer: Vec<u8>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(crate) fn new(stream: R) -> FrameReader<R> {
        FrameReader::with_limit(stream, MAX_FRAME_BYTES)
    }

    /// For a link whose frames are all smaller.
    pub(crate) fn with_limit(stream: R, limit: usize) -> FrameReader<R> {
        let (decoder, buffer) = (FrameDecoder::with_limit(limit), Vec::with_capacity(READ_BYTES));
        FrameReader { stream, decoder, buffer }
    }

    /// The next frame; `None` at a clean end of the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(Some(frame));
            }
            self.buffer.clear();
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                self.decoder.finish()?;
                return Ok(None);
            }
            self.decoder.feed(&self.buffer);
        }
    }
}

/// Writes one frame.
pub(crate) async fn write_frame<W: AsyncWrite + Unpin>(
    stream: &mut W,
    frame: &Frame,
) -> Result<(), FrameError> {
    stream.write_all(&frame.to_bytes()?).await?;
    Ok(())
}
