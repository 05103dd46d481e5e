//! Whatever way a stream is cut, the same frames come out; what is not a stream of frames is refused.

use std::io::{self, Read};

use iii_protocol::frame::{
    Frame, FrameDecoder, FrameError, HEADER_BYTES, MAX_FRAME_BYTES, MAX_PAYLOAD_BYTES, encode, read_frame,
    write_frame,
};
use proptest::prelude::*;

fn frames() -> impl Strategy<Value = Vec<Frame>> {
    let payload = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..40),
        1 => (any::<u8>(), 0usize..70_000).prop_map(|(byte, length)| vec![byte; length]),
    ];
    prop::collection::vec((any::<u8>(), payload).prop_map(|(kind, payload)| Frame { kind, payload }), 0..8)
}

fn wire(frames: &[Frame]) -> Vec<u8> {
    frames.iter().flat_map(|frame| frame.to_bytes().expect("under the limit")).collect()
}

/// Gives the stream out in portions of the sizes in `cuts`, over and over.
struct Portions<'a> {
    rest: &'a [u8],
    cuts: std::iter::Cycle<std::slice::Iter<'a, usize>>,
}

impl Read for Portions<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let portion = self.cuts.next().copied().unwrap_or(1).min(self.rest.len()).min(into.len());
        into[..portion].copy_from_slice(&self.rest[..portion]);
        self.rest = &self.rest[portion..];
        Ok(portion)
    }
}

fn decode_in_portions(wire: &[u8], cuts: &[usize]) -> Result<Vec<Frame>, FrameError> {
    let mut decoder = FrameDecoder::default();
    let (mut rest, mut found) = (wire, Vec::new());
    for cut in cuts.iter().cycle() {
        let (portion, after) = rest.split_at((*cut).min(rest.len()));
        decoder.feed(portion);
        while let Some(frame) = decoder.next_frame()? {
            found.push(frame);
        }
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    decoder.finish()?;
    Ok(found)
}

fn read_in_portions(wire: &[u8], cuts: &[usize]) -> Result<Vec<Frame>, FrameError> {
    let mut stream = Portions { rest: wire, cuts: cuts.iter().cycle() };
    let mut found = Vec::new();
    while let Some(frame) = read_frame(&mut stream)? {
        found.push(frame);
    }
    Ok(found)
}

proptest! {
    #[test]
    fn any_cut_of_the_stream_gives_the_same_frames(
        frames in frames(),
        cuts in prop::collection::vec(1usize..5000, 1..20),
    ) {
        let wire = wire(&frames);
        prop_assert_eq!(&decode_in_portions(&wire, &cuts).expect("decoder"), &frames);
        prop_assert_eq!(&read_in_portions(&wire, &cuts).expect("reader"), &frames);
    }

    #[test]
    fn both_writers_make_the_same_bytes(kind: u8, payload in prop::collection::vec(any::<u8>(), 0..2000)) {
        let (mut written, mut encoded) = (Vec::new(), Vec::new());
        write_frame(&mut written, kind, &payload).expect("written");
        encode(kind, &payload, &mut encoded).expect("encoded");
        prop_assert_eq!(&written, &encoded);
        prop_assert_eq!(written, Frame { kind, payload }.to_bytes().expect("frame"));
    }

    #[test]
    fn a_stream_that_ends_inside_a_frame_is_an_error_for_both_readers(
        frames in frames(),
        last in prop::collection::vec(any::<u8>(), 0..40),
        missing in 1usize..100,
        cuts in prop::collection::vec(1usize..5000, 1..20),
    ) {
        let mut wire = wire(&frames);
        let whole = wire.len();
        encode(9, &last, &mut wire).expect("encoded");
        // At least one byte of the last frame stays, and at least one is missing.
        let missing = missing.min(wire.len() - whole - 1);
        wire.truncate(wire.len() - missing);
        let arrived = match decode_in_portions(&wire, &cuts) {
            Err(FrameError::Truncated { have }) => Some(have),
            _ => None,
        };
        prop_assert_eq!(arrived, Some(wire.len() - whole));
        let is_truncated = matches!(read_in_portions(&wire, &cuts), Err(FrameError::Truncated { .. }));
        prop_assert!(is_truncated);
    }

    #[test]
    fn noise_never_panics_and_both_readers_judge_it_alike(
        noise in prop::collection::vec(any::<u8>(), 0..200),
        small in any::<bool>(),
        cuts in prop::collection::vec(1usize..50, 1..5),
    ) {
        // Small lengths make frames of the noise likely.
        let mut noise = noise;
        if small && noise.len() > 4 {
            noise[..3].fill(0);
        }
        match (decode_in_portions(&noise, &cuts), read_in_portions(&noise, &cuts)) {
            (Ok(decoded), Ok(read)) => prop_assert_eq!(decoded, read),
            (Err(decoded), Err(read)) => {
                prop_assert_eq!(std::mem::discriminant(&decoded), std::mem::discriminant(&read));
            }
            (decoded, read) => prop_assert!(false, "decoder {decoded:?}, reader {read:?}"),
        }
    }
}

#[test]
fn an_empty_frame_is_refused() {
    let wire = [0, 0, 0, 0, 1, 2, 3];
    assert!(matches!(decode_in_portions(&wire, &[1]), Err(FrameError::Empty)));
    assert!(matches!(read_in_portions(&wire, &[7]), Err(FrameError::Empty)));
}

#[test]
fn a_frame_over_the_limit_is_refused_as_soon_as_it_is_announced() {
    let announced = u32::try_from(MAX_FRAME_BYTES + 1).expect("small").to_be_bytes();
    for length in [announced, [0xff; 4]] {
        let mut decoder = FrameDecoder::default();
        decoder.feed(&length);
        assert!(matches!(decoder.next_frame(), Err(FrameError::TooLarge { .. })));
        assert!(matches!(read_frame(&mut &length[..]), Err(FrameError::TooLarge { .. })));
    }
}

#[test]
fn the_largest_payload_passes_and_one_byte_more_is_not_sent() {
    let largest = vec![7u8; MAX_PAYLOAD_BYTES];
    let mut wire = Vec::new();
    write_frame(&mut wire, 1, &largest).expect("fits");
    assert_eq!(wire.len(), HEADER_BYTES + MAX_PAYLOAD_BYTES);
    assert_eq!(read_frame(&mut &wire[..]).expect("reads").expect("a frame").payload, largest);
    let mut nothing = Vec::new();
    let error = write_frame(&mut nothing, 1, &vec![7u8; MAX_PAYLOAD_BYTES + 1]).unwrap_err();
    assert!(matches!(error, FrameError::TooLarge { length, .. } if length == MAX_FRAME_BYTES + 1));
    assert!(nothing.is_empty());
}

#[test]
fn the_bytes_of_a_frame_are_pinned() {
    let frame = Frame { kind: 16, payload: b"hi".to_vec() };
    assert_eq!(frame.to_bytes().expect("frame"), b"\0\0\0\x03\x10hi");
    let empty = Frame { kind: 6, payload: Vec::new() };
    assert_eq!(empty.to_bytes().expect("frame"), b"\0\0\0\x01\x06");
}

#[test]
fn a_clean_end_is_no_frame_and_no_error() {
    assert!(read_frame(&mut &b""[..]).expect("clean").is_none());
    FrameDecoder::default().finish().expect("clean");
}

#[test]
fn a_payload_that_is_not_what_its_kind_promises_names_the_kind() {
    let frame = Frame { kind: 3, payload: b"{".to_vec() };
    let error = frame.parse::<iii_protocol::guest::Started>().unwrap_err();
    assert!(error.to_string().starts_with("a frame of kind 3 does not hold what its kind promises"));
}

/// Seconds of the test at random unless `III_FUZZ_SECONDS` says otherwise.
const SECONDS: u64 = 1;

/// Damages a stream of frames: a changed, lost or doubled piece, or nothing.
fn damage(stream: &mut Vec<u8>, mut dice: impl FnMut(usize) -> usize) {
    if stream.is_empty() {
        return;
    }
    let at = dice(stream.len());
    match dice(5) {
        0 => stream[at] ^= 1 << dice(8),
        1 => stream.truncate(at),
        2 => drop(stream.drain(at..(at + dice(9)).min(stream.len()))),
        3 => stream.insert(at, dice(256) as u8),
        _ => {}
    }
}

#[test]
fn bytes_at_random_give_the_same_frames_to_both_readers() {
    let seconds = std::env::var("III_FUZZ_SECONDS").ok().map_or(SECONDS, |it| it.parse().expect("seconds"));
    let end = std::time::Instant::now() + std::time::Duration::from_secs(seconds);
    let seed = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_nanos() as u64 | 1;
    eprintln!("seed {seed}");
    let mut state = seed;
    let mut dice = move |limit: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % limit as u64) as usize
    };
    let mut whole = 0;
    while std::time::Instant::now() < end {
        let mut stream = Vec::new();
        for _ in 0..dice(5) {
            let payload: Vec<u8> = (0..dice(300)).map(|_| dice(256) as u8).collect();
            encode(dice(256) as u8, &payload, &mut stream).expect("small");
        }
        for _ in 0..dice(3) {
            damage(&mut stream, &mut dice);
        }

        let mut blocking = Vec::new();
        let mut rest = stream.as_slice();
        let blocking_end = loop {
            match read_frame(&mut rest) {
                Ok(Some(frame)) => blocking.push(frame),
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        let mut decoder = FrameDecoder::default();
        let mut decoded = Vec::new();
        let mut failure = None;
        let mut rest = stream.as_slice();
        while !rest.is_empty() && failure.is_none() {
            let (portion, behind) = rest.split_at(1 + dice(rest.len()));
            rest = behind;
            decoder.feed(portion);
            failure = loop {
                match decoder.next_frame() {
                    Ok(Some(frame)) => decoded.push(frame),
                    Ok(None) => break None,
                    Err(error) => break Some(error),
                }
            };
        }
        let decoder_end = failure.map_or_else(|| decoder.finish(), Err);
        assert_eq!(blocking, decoded, "{stream:?}");
        let name = |end: Result<(), FrameError>| end.map_err(|error| std::mem::discriminant(&error));
        assert_eq!(name(blocking_end), name(decoder_end), "{stream:?}");
        let again = wire(&decoded);
        assert!(stream.starts_with(&again), "frames are what was sent");
        whole += decoded.len();
    }
    assert!(whole > 100, "hardly a frame was whole");
}
