//! Questions and answers, well formed and not.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr as _;

use hickory_proto::op::Query;
use hickory_proto::rr::RecordType;
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use proptest::prelude::*;

use super::*;

fn named(name: &str) -> Name {
    Name::from_str(name).unwrap()
}

fn question(name: &str) -> Vec<u8> {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.queries.push(Query::query(named(name), RecordType::A));
    message.to_vec().unwrap()
}

fn read(message: &[u8]) -> Question {
    match read_question(message) {
        Asked::Question(question) => question,
        other => panic!("{other:?}"),
    }
}

fn answer(name: &str, records: Vec<Record>) -> Vec<u8> {
    let mut message = Message::new(77, MessageType::Response, OpCode::Query);
    message.queries.push(Query::query(named(name), RecordType::A));
    message.answers = records;
    message.to_vec().unwrap()
}

#[test]
fn a_question_is_read_and_refused_in_its_own_words() {
    let message = question("WWW.Example.COM.");
    let question = read(&message);
    assert_eq!(question.name, "www.example.com");
    let refused = refusal(&message, Some(&question), Code::Refused);
    assert!(is_answer(&message, &question, &refused) && is_failure(&refused));
    let parsed = Message::from_vec(&refused).unwrap();
    assert_eq!(parsed.metadata.response_code, ResponseCode::Refused);
    assert_eq!(parsed.metadata.id, 77);
    assert!(parsed.metadata.recursion_desired && parsed.metadata.recursion_available);
    assert_eq!(parsed.queries.len(), 1);
}

#[test]
fn what_is_no_plain_question_is_not_passed_on() {
    let message = question("a.example.");
    assert_eq!(read_question(&message[..11]), Asked::Nonsense);
    assert_eq!(read_question(&message[..20]), Asked::Refused(Code::FormErr));
    let mut response = message.clone();
    response[2] |= 0x80;
    assert_eq!(read_question(&response), Asked::Nonsense);
    let mut update = message.clone();
    update[2] |= 5 << 3;
    assert!(matches!(read_question(&update), Asked::Refused(_)));
    let mut two = message.clone();
    two[5] = 2;
    two.extend_from_slice(&message[12..]);
    assert_eq!(read_question(&two), Asked::Refused(Code::FormErr));
    // A name that points into the header, where it may read as another.
    let mut pointing = message[..12].to_vec();
    pointing.extend_from_slice(&[0xc0, 0x04, 0, 1, 0, 1]);
    assert!(matches!(read_question(&pointing), Asked::Refused(_) | Asked::Nonsense));
}

#[test]
fn addresses_are_found_by_way_of_aliases_and_strangers_are_not_believed() {
    let message = question("a.example.");
    let asked = read(&message);
    let bytes = answer(
        "a.example.",
        vec![
            Record::from_rdata(named("c.example."), 20, RData::A(A(Ipv4Addr::new(9, 9, 9, 9)))),
            Record::from_rdata(named("b.example."), 10, RData::CNAME(CNAME(named("C.example.")))),
            Record::from_rdata(named("a.example."), 300, RData::CNAME(CNAME(named("b.example.")))),
            Record::from_rdata(named("bank.example."), 300, RData::A(A(Ipv4Addr::new(6, 6, 6, 6)))),
            Record::from_rdata(named("c.example."), 5, RData::AAAA(AAAA(Ipv6Addr::LOCALHOST))),
        ],
    );
    assert!(is_answer(&message, &asked, &bytes) && !is_failure(&bytes));
    let names = ["a.example", "b.example", "c.example"].map(str::to_owned).to_vec();
    assert_eq!(
        read_answer(&asked, &bytes).unwrap(),
        vec![
            Given {
                address: Ipv4Addr::new(9, 9, 9, 9).into(),
                ttl: Duration::from_secs(10),
                names: names.clone()
            },
            Given { address: Ipv6Addr::LOCALHOST.into(), ttl: Duration::from_secs(5), names },
        ]
    );
    assert_eq!(read_answer(&asked, &bytes[..bytes.len() - 3]), None);
}

#[test]
fn aliases_in_a_ring_end() {
    let asked = read(&question("a.example."));
    let bytes = answer(
        "a.example.",
        vec![
            Record::from_rdata(named("a.example."), 1, RData::CNAME(CNAME(named("b.example.")))),
            Record::from_rdata(named("b.example."), 1, RData::CNAME(CNAME(named("a.example.")))),
        ],
    );
    assert_eq!(read_answer(&asked, &bytes), Some(Vec::new()));
}

#[test]
fn an_answer_to_another_question_is_none() {
    let message = question("a.example.");
    let asked = read(&message);
    assert!(!is_answer(&message, &asked, &answer("b.example.", Vec::new())));
    let mut other_id = answer("a.example.", Vec::new());
    assert!(is_answer(&message, &asked, &other_id));
    other_id[0] ^= 1;
    assert!(!is_answer(&message, &asked, &other_id));
    assert!(!is_answer(&message, &asked, &message));
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_harm(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), keep in 0..40_usize) {
        let valid = question("some.name.example.");
        let keep = keep.min(valid.len());
        bytes.splice(..keep.min(bytes.len()), valid[..keep].iter().copied());
        let asked = read(&valid);
        if bytes.len() >= HEADER_BYTES {
            if let Asked::Question(found) = read_question(&bytes) {
                let refused = refusal(&bytes, Some(&found), Code::ServFail);
                prop_assert!(is_answer(&bytes, &found, &refused));
            }
            if is_answer(&valid, &asked, &bytes) {
                is_failure(&bytes);
            }
        }
        read_answer(&asked, &bytes);
    }
}
