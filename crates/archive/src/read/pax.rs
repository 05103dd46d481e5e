//! PAX extended headers (POSIX.1-2001 `pax`, with the vendors' keys that layers use).
//!
//! The `tar` crate's own reader of these splits them at newlines, but a record says its length and a binary
//! value (a file capability with a 0x0a in it) may contain one.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::{Malformed, Segment, Xattrs};
use crate::name::EntryPath;

/// libarchive leaves the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What the extended header of one entry says about it.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Pax {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u64>,
    pub(crate) gid: Option<u64>,
    /// Seconds and nanoseconds.
    pub(crate) mtime: Option<(i64, u32)>,
    /// Extended attributes, but for those that mean nothing.
    pub(crate) xattrs: Xattrs,
    pub(crate) sparse: PaxSparse,
}

/// The `GNU.sparse.*` records, all three generations of them.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct PaxSparse {
    /// 1.0 keeps its map before the data.
    pub(crate) major: Option<u64>,
    pub(crate) name: Option<Vec<u8>>,
    /// Size of the file with its holes (`size` in 0.0 and 0.1, `realsize` in 1.0).
    pub(crate) real_size: Option<u64>,
    /// The map of 0.0 (repeated records) or 0.1 (one list).
    pub(crate) map: Option<Vec<Segment>>,
    /// An `offset` that waits for its `numbytes`.
    offset: Option<u64>,
}

/// Reads all records of one extended header.
pub(crate) fn parse(mut data: &[u8]) -> Result<Pax, Malformed> {
    let mut pax = Pax::default();
    let mut libarchive = Xattrs::new();
    while !data.is_empty() {
        let (key, value, rest) = record(data).ok_or_else(|| bad(&data[..data.len().min(40)]))?;
        data = rest;
        apply(&mut pax, &mut libarchive, key, value).ok_or_else(|| bad(key))?;
    }
    for (name, value) in libarchive {
        pax.xattrs.entry(name).or_insert(value);
    }
    Ok(pax)
}

fn bad(key: &[u8]) -> Malformed {
    Malformed::BadPax(EntryPath(key.to_vec()))
}

/// Splits `<length> <key>=<value>\n` off, where the length counts the whole record.
fn record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().take(20).position(|&b| b == b' ')?;
    let length = usize::try_from(number(&data[..space])?).ok()?;
    if length <= space + 1 || length > data.len() || data[length - 1] != b'\n' {
        return None;
    }
    let body = &data[space + 1..length - 1];
    let equals = body.iter().position(|&b| b == b'=').filter(|&at| at > 0)?;
    Some((&body[..equals], &body[equals + 1..], &data[length..]))
}

/// Takes one record in; `None` if its value makes no sense. Keys nobody needs are passed over.
fn apply(pax: &mut Pax, libarchive: &mut Xattrs, key: &[u8], value: &[u8]) -> Option<()> {
    let sparse = &mut pax.sparse;
    match key {
        // An empty value takes a record back.
        b"path" => pax.path = text(value),
        b"linkpath" => pax.link = text(value),
        b"size" => pax.size = optional(value, number)?,
        b"uid" => pax.uid = optional(value, number)?,
        b"gid" => pax.gid = optional(value, number)?,
        b"mtime" => pax.mtime = optional(value, time)?,
        b"GNU.sparse.major" => sparse.major = Some(number(value)?),
        b"GNU.sparse.name" => sparse.name = text(value),
        b"GNU.sparse.size" | b"GNU.sparse.realsize" => sparse.real_size = Some(number(value)?),
        b"GNU.sparse.offset" => sparse.offset = Some(number(value)?),
        b"GNU.sparse.numbytes" => {
            let segment = Segment { offset: sparse.offset.take()?, length: number(value)? };
            sparse.map.get_or_insert_default().push(segment);
        }
        b"GNU.sparse.map" => sparse.map = Some(map(value)?),
        _ => {
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                insert(&mut pax.xattrs, name, || Some(value.to_vec()))?;
            } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                insert(libarchive, &percent_decoded(name), || BASE64.decode(value).ok())?;
            }
        }
    }
    Some(())
}

fn insert(xattrs: &mut Xattrs, name: &[u8], value: impl FnOnce() -> Option<Vec<u8>>) -> Option<()> {
    if is_kept(name) {
        xattrs.insert(name.into(), value()?.into());
    }
    Some(())
}

/// Whether an extended attribute of an archive is worth anything.
///
/// Kept is what Linux knows on a root disk: `user.`, `trusted.`, `security.` and the two POSIX ACLs.
/// Others (`com.apple.`, `system.nfs4_acl`...) mean nothing to the guest. The marks of overlayfs are dropped:
/// the disk becomes the lower layer of one, and an image must not redirect or hide what is in it.
fn is_kept(name: &[u8]) -> bool {
    let overlay: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];
    if overlay.iter().any(|mark| name.starts_with(mark)) || name.contains(&0) {
        return false;
    }
    let families: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    name == b"system.posix_acl_access"
        || name == b"system.posix_acl_default"
        || families.iter().any(|family| name.len() > family.len() && name.starts_with(family))
}

fn text(value: &[u8]) -> Option<Vec<u8>> {
    (!value.is_empty()).then(|| value.to_vec())
}

/// `Some(None)` for an empty value, `None` for one that does not parse.
fn optional<T>(value: &[u8], parse: impl Fn(&[u8]) -> Option<T>) -> Option<Option<T>> {
    if value.is_empty() { Some(None) } else { parse(value).map(Some) }
}

/// A decimal number without sign or space.
pub(crate) fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// `[-]<seconds>[.<fraction>]`, rounded down to nanoseconds.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let dot = value.iter().position(|&b| b == b'.').unwrap_or(value.len());
    let seconds = i64::try_from(number(&value[..dot])?).ok()?;
    let fraction = value.get(dot + 1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanos = digits.fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    Some(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

/// The list of 0.1: `offset,length,offset,length...`.
fn map(value: &[u8]) -> Option<Vec<Segment>> {
    if value.is_empty() {
        return Some(Vec::new());
    }
    let numbers: Vec<u64> = value.split(|&b| b == b',').map(number).collect::<Option<_>>()?;
    let (pairs, rest) = numbers.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|&[offset, length]| Segment { offset, length }).collect())
}

fn percent_decoded(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&first, after)) = rest.split_first() {
        let hex = (first == b'%').then(|| after.get(..2)).flatten();
        let byte = hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        out.push(byte.unwrap_or(first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(key: &str, value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let mut length = body + 1;
        while length.to_string().len() + body != length {
            length += 1;
        }
        [length.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat()
    }

    #[test]
    fn a_binary_value_may_contain_newlines_and_nul_bytes() {
        let capability = [1, 0, 0, 2, b'\n', b'\n', 0, 0, b' ', b'=', 0, b'\n'];
        let data = [line("SCHILY.xattr.security.capability", &capability), line("path", b"after")].concat();
        let pax = parse(&data).unwrap();
        assert_eq!(&*pax.xattrs[&b"security.capability"[..]], capability);
        assert_eq!(pax.path.as_deref(), Some(&b"after"[..]));
    }

    #[test]
    fn attributes_that_would_steer_overlayfs_or_mean_nothing_to_linux_are_dropped() {
        let names = [
            "trusted.overlay.redirect",
            "user.overlay.opaque",
            "trusted.overlay.overlay.opaque",
            "com.apple.quarantine",
            "system.nfs4_acl",
            "user.",
        ];
        let data: Vec<u8> = names.iter().flat_map(|n| line(&format!("SCHILY.xattr.{n}"), b"y")).collect();
        assert_eq!(parse(&data).unwrap(), Pax::default());
        for name in ["user.x", "trusted.x", "security.ima", "system.posix_acl_access"] {
            assert_eq!(parse(&line(&format!("SCHILY.xattr.{name}"), b"")).unwrap().xattrs.len(), 1);
        }
    }

    #[test]
    fn attributes_in_the_way_of_libarchive_are_decoded_and_the_others_win() {
        let data = [
            line("SCHILY.xattr.user.both", b"plain"),
            line("LIBARCHIVE.xattr.user.both", b"bm90IHRoaXM"),
            line("LIBARCHIVE.xattr.user.a%3Db", b"AAE"),
        ]
        .concat();
        let xattrs = parse(&data).unwrap().xattrs;
        assert_eq!(&*xattrs[&b"user.both"[..]], b"plain");
        assert_eq!(&*xattrs[&b"user.a=b"[..]], [0, 1]);
    }

    #[test]
    fn times_before_the_epoch_round_down() {
        assert_eq!(time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"-3"), Some((-3, 0)));
        assert_eq!(time(b"7.1234567899"), Some((7, 123_456_789)));
        assert_eq!(time(b"7.x"), None);
        assert_eq!(time(b""), None);
    }

    #[test]
    fn malformed_records_are_refused() {
        for data in
            [&b"5 a=b\n"[..], b"99 path=x\n", b"8 pathxy\n", b"x", b"0 \n", b"11 size=-12\n", b"7 =abc\n"]
        {
            assert!(
                matches!(parse(data), Err(Malformed::BadPax(_))),
                "{:?}",
                data.escape_ascii().to_string()
            );
        }
    }
}
