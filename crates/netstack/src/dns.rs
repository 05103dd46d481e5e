//! DNS messages, as far as they must be understood: whose addresses a question asks for, and which addresses an answer
//! gives. Pure. The bytes that pass are never changed (RFC 1035 is the format; EDNS and the rest pass unread).

use std::net::IpAddr;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::svcb::SvcParamValue;
use hickory_proto::rr::{Name, RData, Record};
use hickory_proto::serialize::binary::BinEncodable as _;

/// The shortest message: its header.
const HEADER_BYTES: usize = 12;
/// Aliases that are followed in one answer.
const MAX_ALIASES: usize = 16;

/// A question of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Question {
    /// The name as rules write it: lower case, no dot at the end.
    pub(crate) name: String,
    /// The question as it stands in the message.
    wire: Vec<u8>,
}

/// What a message of the guest is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asked {
    /// A question.
    Question(Question),
    /// Something that is answered with this code.
    Refused(Code),
    /// Nothing that could be answered.
    Nonsense,
}

/// Response codes that are ours to say (RFC 1035, 4.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Code {
    /// The message could not be read.
    FormErr = 1,
    /// No resolver answered.
    ServFail = 2,
    /// Only queries are understood.
    NotImp = 4,
    /// The policy says no.
    Refused = 5,
}

/// An address that an answer gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Given {
    /// It.
    pub(crate) address: IpAddr,
    /// How long it is good: the least on the way.
    pub(crate) ttl: Duration,
    /// All the names that led there: the question's, and its aliases.
    pub(crate) names: Vec<String>,
}

/// Reads a message of the guest.
pub(crate) fn read_question(message: &[u8]) -> Asked {
    // A response (the first bit of the flags) is never answered, or two resolvers could talk for ever.
    if message.len() < HEADER_BYTES || message[2] & 0x80 != 0 {
        return Asked::Nonsense;
    }
    let Ok(parsed) = Message::from_vec(message) else {
        return Asked::Refused(Code::FormErr);
    };
    if parsed.metadata.op_code != OpCode::Query {
        return Asked::Refused(Code::NotImp);
    }
    let [query] = parsed.queries.as_slice() else {
        return Asked::Refused(Code::FormErr);
    };
    // What we judge must be what a resolver reads: a question that is written in another way than ours would be
    // (compressed, say) is not passed on.
    match query.to_bytes() {
        Ok(wire) if message[HEADER_BYTES..].starts_with(&wire) => {
            Asked::Question(Question { name: plain(query.name()), wire })
        }
        _ => Asked::Refused(Code::FormErr),
    }
}

/// Our own answer to a message of the guest, which is at least a header long.
pub(crate) fn refusal(message: &[u8], question: Option<&Question>, code: Code) -> Vec<u8> {
    let wire = question.map_or(&[][..], |question| &question.wire);
    let mut answer = Vec::with_capacity(HEADER_BYTES + wire.len());
    answer.extend_from_slice(&message[..2]);
    // A response; opcode and "recursion desired" as in the question, "recursion available".
    answer.extend_from_slice(&[0x80 | (message[2] & 0x79), 0x80 | code as u8]);
    answer.extend_from_slice(&[0, u8::from(!wire.is_empty()), 0, 0, 0, 0, 0, 0]);
    answer.extend_from_slice(wire);
    answer
}

/// Whether these bytes answer this message: same id, a response, same question.
pub(crate) fn is_answer(message: &[u8], question: &Question, answer: &[u8]) -> bool {
    answer.len() >= HEADER_BYTES && answer[..2] == message[..2] && answer[2] & 0x80 != 0 && {
        let count = u16::from_be_bytes([answer[4], answer[5]]);
        // An error may come without the question.
        let body = &answer[HEADER_BYTES..];
        let same =
            body.get(..question.wire.len()).is_some_and(|echo| echo.eq_ignore_ascii_case(&question.wire));
        (count == 1 && same) || (count == 0 && answer[3] & 0x0f != 0)
    }
}

/// Whether another resolver may know better: this one failed, refused, or does not do it.
pub(crate) fn is_failure(answer: &[u8]) -> bool {
    matches!(answer[3] & 0x0f, 2 | 4 | 5)
}

/// The addresses an answer gives for its question: A, AAAA, and the hints of SVCB and HTTPS (RFC 9460), by way of
/// aliases. `None` if the answer cannot be read, which is when it must not pass where names are ruled.
pub(crate) fn read_answer(question: &Question, answer: &[u8]) -> Option<Vec<Given>> {
    let parsed = Message::from_vec(answer).ok()?;
    if parsed.metadata.message_type != MessageType::Response {
        return None;
    }
    if parsed.metadata.response_code != ResponseCode::NoError {
        return Some(Vec::new());
    }
    let mut ttl = Duration::MAX;
    let mut names = vec![question.name.clone()];
    while names.len() <= MAX_ALIASES {
        let alias = parsed.answers.iter().find_map(|record| match &record.data {
            RData::CNAME(to) if names.contains(&plain(&record.name)) && !names.contains(&plain(&to.0)) => {
                Some((plain(&to.0), record.ttl))
            }
            _ => None,
        });
        let Some((name, seconds)) = alias else { break };
        ttl = ttl.min(Duration::from_secs(u64::from(seconds)));
        names.push(name);
    }
    let given =
        parsed.answers.iter().filter(|record| names.contains(&plain(&record.name))).flat_map(|record| {
            let ttl = ttl.min(Duration::from_secs(u64::from(record.ttl)));
            addresses(record).into_iter().map(move |address| (address, ttl))
        });
    Some(given.map(|(address, ttl)| Given { address, ttl, names: names.clone() }).collect())
}

fn addresses(record: &Record) -> Vec<IpAddr> {
    let hints = |params: &[(_, SvcParamValue)]| {
        let mut found = Vec::new();
        for (_, value) in params {
            match value {
                SvcParamValue::Ipv4Hint(hint) => found.extend(hint.0.iter().map(|a| IpAddr::V4(a.0))),
                SvcParamValue::Ipv6Hint(hint) => found.extend(hint.0.iter().map(|a| IpAddr::V6(a.0))),
                _ => {}
            }
        }
        found
    };
    match &record.data {
        RData::A(a) => vec![IpAddr::V4(a.0)],
        RData::AAAA(a) => vec![IpAddr::V6(a.0)],
        RData::SVCB(svcb) => hints(&svcb.svc_params),
        RData::HTTPS(https) => hints(&https.0.svc_params),
        _ => Vec::new(),
    }
}

/// A name as rules write it.
fn plain(name: &Name) -> String {
    let mut text = name.to_ascii();
    text.make_ascii_lowercase();
    if text.ends_with('.') {
        text.pop();
    }
    text
}

#[cfg(test)]
#[path = "dns_tests.rs"]
mod tests;
