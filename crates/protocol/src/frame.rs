//! The frame every stream of this project is cut into: `u32 length (big endian) | u8 kind | payload`.
//!
//! `length` counts the kind byte and the payload, so it is never 0, and never more than
//! [`MAX_FRAME_BYTES`]: a peer that announces more is broken or hostile and its stream is given up.

use std::io::{self, Read, Write};

/// The largest `length` a frame may announce, in bytes (kind and payload).
pub const MAX_FRAME_BYTES: usize = 1024 * 1024;
/// The largest payload of one frame, in bytes.
pub const MAX_PAYLOAD_BYTES: usize = MAX_FRAME_BYTES - 1;
/// Bytes in front of a payload: the length and the kind.
pub const HEADER_BYTES: usize = 5;

/// One frame, as received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What the payload is; each link has its own table of kinds.
    pub kind: u8,
    /// JSON for control kinds, raw bytes for data kinds.
    pub payload: Vec<u8>,
}

/// Why a stream of frames cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The peer announced an empty frame; even an empty payload has a kind.
    #[error("a frame of length 0 (every frame has a kind byte)")]
    Empty,
    /// The frame is over the limit, on either side.
    #[error("a frame of {length} bytes (the limit is {limit})")]
    TooLarge {
        /// The announced length, in bytes.
        length: usize,
        /// What this link allows, in bytes.
        limit: usize,
    },
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame ({have} bytes of it had arrived)")]
    Truncated {
        /// How many bytes of the unfinished frame had arrived, header included.
        have: usize,
    },
    /// A control frame's payload is not the JSON its kind promises.
    #[error("a frame of kind {kind} does not hold what its kind promises: {source}")]
    Payload {
        /// The frame's kind.
        kind: u8,
        /// What the JSON reader said.
        source: serde_json::Error,
    },
    /// The carrier failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Frame {
    /// A control frame: `value` as JSON.
    pub fn json<T: serde::Serialize>(kind: u8, value: &T) -> Frame {
        let payload = serde_json::to_vec(value).expect("protocol types always serialise");
        Frame { kind, payload }
    }

    /// Reads the payload of a control frame.
    pub fn parse<T: serde::de::DeserializeOwned>(&self) -> Result<T, FrameError> {
        serde_json::from_slice(&self.payload)
            .map_err(|source| FrameError::Payload { kind: self.kind, source })
    }

    /// The frame's bytes on the wire.
    pub fn to_bytes(&self) -> Result<Vec<u8>, FrameError> {
        let mut out = Vec::with_capacity(HEADER_BYTES + self.payload.len());
        encode(self.kind, &self.payload, &mut out)?;
        Ok(out)
    }
}

/// What goes in front of a payload of so many bytes.
pub fn header(kind: u8, payload_bytes: usize) -> Result<[u8; HEADER_BYTES], FrameError> {
    let length = payload_bytes.saturating_add(1);
    if length > MAX_FRAME_BYTES {
        return Err(FrameError::TooLarge { length, limit: MAX_FRAME_BYTES });
    }
    let [a, b, c, d] = u32::try_from(length).expect("1 MiB fits in 32 bits").to_be_bytes();
    Ok([a, b, c, d, kind])
}

/// Appends one frame to `out`.
pub fn encode(kind: u8, payload: &[u8], out: &mut Vec<u8>) -> Result<(), FrameError> {
    out.extend_from_slice(&header(kind, payload.len())?);
    out.extend_from_slice(payload);
    Ok(())
}

/// Cuts frames out of bytes that arrive in any portions.
#[derive(Debug)]
pub struct FrameDecoder {
    buffer: Vec<u8>,
    start: usize,
    limit: usize,
}

impl Default for FrameDecoder {
    fn default() -> FrameDecoder {
        FrameDecoder::with_limit(MAX_FRAME_BYTES)
    }
}

impl FrameDecoder {
    /// For a link whose frames are all smaller: no `length` above `limit`.
    pub fn with_limit(limit: usize) -> FrameDecoder {
        FrameDecoder { buffer: Vec::new(), start: 0, limit: limit.min(MAX_FRAME_BYTES) }
    }

    /// Adds bytes as they came from the carrier.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, or `None` until more bytes have come. After an error the stream is lost.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let rest = &self.buffer[self.start..];
        let Some(length) = frame_length(rest, self.limit)? else { return Ok(None) };
        let frame = Frame { kind: rest[HEADER_BYTES - 1], payload: rest[HEADER_BYTES..length].to_vec() };
        self.start += length;
        Ok(Some(frame))
    }

    /// To be called at the end of the stream: an unfinished frame is an error.
    pub fn finish(&self) -> Result<(), FrameError> {
        match self.buffer.len() - self.start {
            0 => Ok(()),
            have => Err(FrameError::Truncated { have }),
        }
    }
}

/// How many bytes the frame at the beginning of `bytes` has, header included; `None` until all of it is there.
/// For those who cut frames out of a buffer of their own, with no `length` above `limit`. After an error the stream
/// is lost.
pub fn frame_length(bytes: &[u8], limit: usize) -> Result<Option<usize>, FrameError> {
    let Some(header) = bytes.first_chunk::<4>() else { return Ok(None) };
    let announced = announced_length(*header)?;
    if announced > limit {
        return Err(FrameError::TooLarge { length: announced, limit });
    }
    let length = header.len() + announced;
    Ok((bytes.len() >= length).then_some(length))
}

/// Takes [`header`] apart: the kind, and how many bytes of payload come behind it.
pub fn parse_header(bytes: [u8; HEADER_BYTES]) -> Result<(u8, usize), FrameError> {
    let [a, b, c, d, kind] = bytes;
    Ok((kind, announced_length([a, b, c, d])? - 1))
}

fn announced_length(header: [u8; 4]) -> Result<usize, FrameError> {
    let length = u32::from_be_bytes(header) as usize;
    match length {
        0 => Err(FrameError::Empty),
        1..=MAX_FRAME_BYTES => Ok(length),
        _ => Err(FrameError::TooLarge { length, limit: MAX_FRAME_BYTES }),
    }
}

/// Reads one frame from a blocking stream; `None` at a clean end.
pub fn read_frame(stream: &mut impl Read) -> Result<Option<Frame>, FrameError> {
    let mut frame = Frame { kind: 0, payload: Vec::new() };
    Ok(read_frame_into(stream, &mut frame)?.then_some(frame))
}

/// Likewise, into the memory of an earlier frame; `false` at a clean end.
pub fn read_frame_into(stream: &mut impl Read, frame: &mut Frame) -> Result<bool, FrameError> {
    let mut header = [0u8; 4];
    let mut have = 0;
    while have < header.len() {
        match stream.read(&mut header[have..]) {
            Ok(0) if have == 0 => return Ok(false),
            Ok(0) => return Err(FrameError::Truncated { have }),
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    let length = announced_length(header)?;
    let truncated = |e: io::Error| match e.kind() {
        io::ErrorKind::UnexpectedEof => FrameError::Truncated { have: 4 },
        _ => e.into(),
    };
    // The kind apart, so that the payload need not be moved.
    let mut kind = [0u8];
    stream.read_exact(&mut kind).map_err(truncated)?;
    frame.kind = kind[0];
    frame.payload.resize(length - 1, 0);
    stream.read_exact(&mut frame.payload).map_err(truncated)?;
    Ok(true)
}

/// Writes one frame to a blocking stream, in one write.
pub fn write_frame(stream: &mut impl Write, kind: u8, payload: &[u8]) -> Result<(), FrameError> {
    let mut out = Vec::with_capacity(HEADER_BYTES + payload.len());
    encode(kind, payload, &mut out)?;
    stream.write_all(&out)?;
    Ok(())
}
