//! Log records keep every byte the workload wrote, in lines that any JSON tool reads.

use iii_protocol::log::{LogLineError, LogRecord, MAX_RECORD_BYTES, Stream, Wanted};
use jiff::Timestamp;
use proptest::prelude::*;

/// All there are, by the names in the lines.
const STREAMS: [(Stream, &str); 5] = [
    (Stream::Stdout, "stdout"),
    (Stream::Stderr, "stderr"),
    (Stream::Event, "event"),
    (Stream::Setup, "setup"),
    (Stream::Install, "install"),
];

fn record(bytes: &[u8]) -> LogRecord {
    let ts = "2026-01-02T03:04:05.000000006Z".parse().expect("time");
    LogRecord { seq: 1, ts, generation: 3, stream: Stream::Stdout, bytes: bytes.to_vec() }
}

fn timestamps() -> impl Strategy<Value = Timestamp> {
    // 1970 to 2200, to the nanosecond.
    (0i64..7_258_118_400, 0i32..1_000_000_000)
        .prop_map(|(second, nanosecond)| Timestamp::new(second, nanosecond).expect("in range"))
}

proptest! {
    #[test]
    fn any_bytes_come_back_from_a_line(
        seq: u64,
        generation: u64,
        ts in timestamps(),
        stream in prop::sample::select(STREAMS.map(|(stream, _)| stream).to_vec()),
        bytes in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            any::<String>().prop_map(String::into_bytes),
        ],
    ) {
        let record = LogRecord { seq, ts, generation, stream, bytes };
        let line = record.to_line();
        prop_assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1);
        prop_assert_eq!(line.last(), Some(&b'\n'));
        prop_assert_eq!(&LogRecord::from_line(&line).expect("with its newline"), &record);
        prop_assert_eq!(&LogRecord::from_line(&line[..line.len() - 1]).expect("without"), &record);
    }

    #[test]
    fn noise_is_never_a_record_and_never_a_panic(noise in prop::collection::vec(any::<u8>(), 0..100)) {
        prop_assert!(LogRecord::from_line(&noise).is_err());
    }
}

#[test]
fn the_line_is_pinned() {
    let text = r#"{"seq":1,"ts":"2026-01-02T03:04:05.000000006Z","gen":3,"stream":"stdout","text":"hi\n"}"#;
    assert_eq!(record(b"hi\n").to_line(), format!("{text}\n").into_bytes());
    let bytes =
        r#"{"seq":1,"ts":"2026-01-02T03:04:05.000000006Z","gen":3,"stream":"stdout","base64":"//4K"}"#;
    assert_eq!(record(b"\xff\xfe\n").to_line(), format!("{bytes}\n").into_bytes());
}

#[test]
fn the_names_of_the_streams_are_pinned_and_each_is_output_or_an_event() {
    for (stream, name) in STREAMS {
        let line = LogRecord { stream, ..record(b"") }.to_line();
        let shown = String::from_utf8(line).expect("JSON");
        assert!(shown.contains(&format!(r#""stream":"{name}""#)), "{shown}");
        let is_event = stream == Stream::Event;
        let taken = [Wanted::All, Wanted::Output, Wanted::Events].map(|wanted| wanted.takes(stream));
        assert_eq!(taken, [true, !is_event, is_event], "{name}");
    }
}

#[test]
fn a_record_has_exactly_one_body() {
    let head = r#"{"seq":1,"ts":"2026-01-02T03:04:05Z","gen":3,"stream":"stderr""#;
    let parse = |tail: &str| LogRecord::from_line(format!("{head}{tail}}}").as_bytes());
    assert!(matches!(parse(""), Err(LogLineError::Body)));
    assert!(matches!(parse(r#","text":"a","base64":"YQ==""#), Err(LogLineError::Body)));
    assert!(matches!(parse(r#","base64":"*""#), Err(LogLineError::Base64(_))));
    assert!(matches!(parse(r#","text":"a","level":"info""#), Err(LogLineError::Json(_))));
    assert_eq!(parse(r#","text":"a""#).expect("a record").bytes, b"a");
}

#[test]
fn the_largest_record_fits_a_frame_even_as_base64() {
    let line = record(&vec![0xff; MAX_RECORD_BYTES]).to_line();
    assert!(line.len() < iii_protocol::frame::MAX_PAYLOAD_BYTES);
}
