//! Whether a session has ended so that another one may follow on its connection to the guest: seen by the heads of the
//! frames alone. Either end may be hostile; what is out of order only means that the connection is not used again.

use iii_protocol::frame::HEADER_BYTES;
use iii_protocol::session::{KIND_AGAIN, KIND_END, KIND_OPEN};

/// Cuts a stream into frames without keeping their payloads.
#[derive(Debug, Default)]
struct Heads {
    head: [u8; HEADER_BYTES],
    /// How much of `head` has come.
    have: usize,
    /// How much of the payload behind it has not.
    missing: usize,
    /// How many frames have come whole.
    whole: usize,
}

impl Heads {
    /// Takes bytes up to the end of a frame, and gives its kind; `None` when they end before that.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<u8> {
        if self.have < HEADER_BYTES {
            let take = bytes.len().min(HEADER_BYTES - self.have);
            self.head[self.have..self.have + take].copy_from_slice(&bytes[..take]);
            (self.have, *bytes) = (self.have + take, &bytes[take..]);
            if self.have < HEADER_BYTES {
                return None;
            }
            let [a, b, c, d, _] = self.head;
            // It counts the kind too. One of 0 is no frame, and nothing comes behind it.
            self.missing = (u32::from_be_bytes([a, b, c, d]) as usize).checked_sub(1).unwrap_or(usize::MAX);
        }
        let take = bytes.len().min(self.missing);
        (self.missing, *bytes) = (self.missing - take, &bytes[take..]);
        if self.missing > 0 {
            return None;
        }
        self.have = 0;
        self.whole += 1;
        Some(self.head[HEADER_BYTES - 1])
    }

    fn place(&self) -> Place {
        let missing = match self.have {
            0 => 0,
            HEADER_BYTES => self.missing,
            have => HEADER_BYTES - have,
        };
        Place { whole: self.whole, missing }
    }

    /// Whether no frame is cut off here.
    fn is_between(&self) -> bool {
        self.have == 0
    }
}

/// Where a stream is in its frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// So many have come whole.
    pub(super) whole: usize,
    /// So many bytes of the last one are still to come, as far as its head tells.
    pub(super) missing: usize,
}

/// What a client sends.
#[derive(Debug, Default)]
pub(super) struct Up {
    heads: Heads,
    opened: usize,
}

impl Up {
    pub(super) fn look(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.heads.next(&mut bytes) == Some(KIND_OPEN) {
                self.opened += 1;
            }
        }
    }

    pub(super) fn place(&self) -> Place {
        self.heads.place()
    }

    /// Whether it was one session, and whole frames of it.
    pub(super) fn is_in_order(&self) -> bool {
        self.opened == 1 && self.heads.is_between()
    }
}

/// What a guest sends.
#[derive(Debug, Default)]
pub(super) struct Down {
    heads: Heads,
    ended: bool,
    again: usize,
    others: usize,
}

impl Down {
    /// Returns how many of the last of these bytes come behind END.
    pub(super) fn look(&mut self, mut bytes: &[u8]) -> usize {
        while !self.ended && !bytes.is_empty() {
            self.ended = self.heads.next(&mut bytes) == Some(KIND_END);
        }
        let behind = bytes.len();
        while !bytes.is_empty() {
            match self.heads.next(&mut bytes) {
                Some(KIND_AGAIN) => self.again += 1,
                Some(_) => self.others += 1,
                None => {}
            }
        }
        behind
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    pub(super) fn place(&self) -> Place {
        self.heads.place()
    }

    /// Whether the guest has said so, and nothing else behind END.
    pub(super) fn takes_another(&self) -> bool {
        self.again == 1 && self.others == 0 && self.heads.is_between()
    }
}

#[cfg(test)]
mod tests {
    use iii_protocol::frame::encode;
    use iii_protocol::session::{KIND_CREDIT, KIND_STDOUT};
    use proptest::prelude::*;

    use super::*;

    fn frames(frames: &[(u8, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (kind, payload) in frames {
            encode(*kind, payload, &mut bytes).unwrap();
        }
        bytes
    }

    proptest! {
        #[test]
        fn what_is_behind_the_end_is_found_whatever_the_pieces_are(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8),
            cuts in prop::collection::vec(1usize..30, 1..60),
        ) {
            let mut before: Vec<(u8, &[u8])> = payloads.iter().map(|it| (KIND_STDOUT, &it[..])).collect();
            before.push((KIND_END, b"{}"));
            let (before, again) = (frames(&before), frames(&[(KIND_AGAIN, b"")]));
            let all = [before.clone(), again].concat();
            let (mut down, mut passed, mut rest) = (Down::default(), Vec::new(), &all[..]);
            for cut in cuts.into_iter().chain([all.len()]) {
                prop_assert!(!down.takes_another() || rest.is_empty());
                let (piece, others) = rest.split_at(cut.min(rest.len()));
                let behind = down.look(piece);
                passed.extend_from_slice(&piece[..piece.len() - behind]);
                rest = others;
            }
            prop_assert_eq!(passed, before);
            prop_assert!(down.has_ended() && down.takes_another());
        }
    }

    #[test]
    fn only_a_session_in_order_has_another_one_behind_it() {
        let takes_another = |bytes: &[u8]| {
            let mut down = Down::default();
            down.look(bytes);
            down.takes_another()
        };
        let end: (u8, &[u8]) = (KIND_END, b"{}");
        let again: (u8, &[u8]) = (KIND_AGAIN, b"");
        assert!(takes_another(&frames(&[end, again])));
        assert!(!takes_another(&frames(&[end])));
        assert!(!takes_another(&frames(&[again])), "before END it means nothing");
        assert!(!takes_another(&frames(&[end, again, again])));
        assert!(!takes_another(&frames(&[end, again, (KIND_STDOUT, b"late")])));
        assert!(!takes_another(&[&frames(&[end, again])[..], &[0, 0]].concat()));
        assert!(!takes_another(&[0; 64]), "a frame of length 0");

        let is_in_order = |bytes: &[u8]| {
            let mut up = Up::default();
            up.look(bytes);
            up.is_in_order()
        };
        let open: (u8, &[u8]) = (KIND_OPEN, b"{}");
        let credit: (u8, &[u8]) = (KIND_CREDIT, b"1234");
        assert!(is_in_order(&frames(&[open, credit])));
        assert!(!is_in_order(&frames(&[credit])));
        assert!(!is_in_order(&frames(&[open, open])), "a session behind our back");
        let whole = frames(&[open, credit]);
        assert!(
            (1..whole.len()).all(|cut| is_in_order(&whole[..cut]) == (cut == 7)),
            "a frame that is cut off"
        );
    }
}
