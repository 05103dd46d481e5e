//! Who the workload runs as: the image's `User` against the image's own `/etc/passwd` and `/etc/group`.
//!
//! The rules are those of Docker: a name or a number, optionally `:group`; a number needs no entry (its
//! group is then 0); supplementary groups are taken from `/etc/group` only when no group was named. Both
//! files are read as bytes and lines that make no sense are passed over, as the C library does
//! (passwd(5), group(5)).

/// The largest user or group id accepted; the same limit as Docker's.
const MAX_ID: u64 = i32::MAX as u64;

/// Numbers to run with, and the home folder if there is an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// User id.
    pub(crate) uid: u32,
    /// Group id.
    pub(crate) gid: u32,
    /// Supplementary groups, in the order of `/etc/group`.
    pub(crate) groups: Vec<u32>,
    /// From `/etc/passwd`.
    pub(crate) home: Option<String>,
}

/// Why a `User` cannot be run as.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UserError {
    /// A name without an entry.
    #[error("user `{0}` is not in the image's /etc/passwd")]
    NoSuchUser(String),
    /// A name without an entry.
    #[error("group `{0}` is not in the image's /etc/group")]
    NoSuchGroup(String),
    /// A number no kernel knows.
    #[error("id {0} is out of range (0 to {MAX_ID})")]
    OutOfRange(String),
}

struct PasswdEntry<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

struct GroupEntry<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

/// Resolves `user` (`""`, `name`, `uid`, `name:group`, `uid:gid`...) with the files' contents.
pub(crate) fn resolve(user: &str, passwd: &[u8], group: &[u8]) -> Result<Identity, UserError> {
    let (user, group_wanted) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (user, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = id(user)?;
    let entry = passwd_entries(passwd)
        .find(|entry| entry.name == user.as_bytes() || number.is_some_and(|uid| entry.uid == uid));
    let (uid, own_gid) = match (&entry, number) {
        (Some(entry), _) => (entry.uid, entry.gid),
        (None, Some(uid)) => (uid, 0),
        (None, None) => return Err(UserError::NoSuchUser(user.to_owned())),
    };
    let (gid, groups) = match group_wanted {
        Some(wanted) => (resolve_group(wanted, group)?, Vec::new()),
        None => {
            let groups = entry.as_ref().map(|entry| memberships(entry.name, group)).unwrap_or_default();
            (own_gid, groups)
        }
    };
    let home =
        entry.and_then(|entry| String::from_utf8(entry.home.to_vec()).ok()).filter(|home| !home.is_empty());
    Ok(Identity { uid, gid, groups, home })
}

fn resolve_group(wanted: &str, group: &[u8]) -> Result<u32, UserError> {
    let number = id(wanted)?;
    group_entries(group)
        .find(|entry| entry.name == wanted.as_bytes() || number.is_some_and(|gid| entry.gid == gid))
        .map(|entry| entry.gid)
        .or(number)
        .ok_or_else(|| UserError::NoSuchGroup(wanted.to_owned()))
}

fn memberships(name: &[u8], group: &[u8]) -> Vec<u32> {
    let mut gids = Vec::new();
    for entry in group_entries(group) {
        let is_member = entry.members.split(|&byte| byte == b',').any(|member| member.trim_ascii() == name);
        if is_member && !gids.contains(&entry.gid) {
            gids.push(entry.gid);
        }
    }
    gids
}

/// A number in range, or `None` when it is no number at all.
fn id(text: &str) -> Result<Option<u32>, UserError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<u64>() {
        Ok(number) if number <= MAX_ID => Ok(u32::try_from(number).ok()),
        _ => Err(UserError::OutOfRange(text.to_owned())),
    }
}

fn number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.trim().parse().ok()
}

fn lines(file: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    file.split(|&byte| byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.is_empty() && !line.starts_with(b"#"))
        .map(|line| line.split(|&byte| byte == b':').collect())
}

/// `name:password:uid:gid:comment:home:shell`.
fn passwd_entries(file: &[u8]) -> impl Iterator<Item = PasswdEntry<'_>> {
    lines(file).filter_map(|fields| {
        let home = fields.get(5).copied().unwrap_or_default();
        Some(PasswdEntry {
            name: fields[0],
            uid: number(fields.get(2)?)?,
            gid: number(fields.get(3)?)?,
            home,
        })
    })
}

/// `name:password:gid:member,member`.
fn group_entries(file: &[u8]) -> impl Iterator<Item = GroupEntry<'_>> {
    lines(file).filter_map(|fields| {
        let members = fields.get(3).copied().unwrap_or_default();
        Some(GroupEntry { name: fields[0], gid: number(fields.get(2)?)?, members })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] =
        b"# a comment\nroot:x:0:0:root:/root:/bin/sh\nbroken line\nnobody:x:65534:65534::/:/sbin/nologin\n\
        app:x:1000:1001:App \xff:/srv/app:/bin/sh\n1234:x:77:78::/numbered:/bin/sh";
    const GROUP: &[u8] = b"root:x:0:root\nwheel:x:10:root,app\naudio:x:63:other\ndocker:x:999: app ,other\n\
        also:x:999:app\nbad:x:notanumber:app\nnogroup:x:65534:";

    fn resolved(user: &str) -> (u32, u32, Vec<u32>, Option<String>) {
        let it = resolve(user, PASSWD, GROUP).expect(user);
        (it.uid, it.gid, it.groups, it.home)
    }

    #[test]
    fn no_user_means_root_with_its_groups_and_home() {
        assert_eq!(resolved(""), (0, 0, vec![0, 10], Some("/root".into())));
        assert_eq!(resolved("root"), resolved(""));
        assert_eq!(resolved("0"), resolved(""));
    }

    #[test]
    fn a_name_brings_its_group_and_supplementary_groups() {
        assert_eq!(resolved("app"), (1000, 1001, vec![10, 999], Some("/srv/app".into())));
        assert_eq!(resolved("1000"), resolved("app"));
        assert_eq!(resolved("app:"), resolved("app"));
    }

    #[test]
    fn a_number_needs_no_entry_and_gets_group_zero() {
        assert_eq!(resolved("4242"), (4242, 0, vec![], None));
        assert_eq!(resolved("4242:4343"), (4242, 4343, vec![], None));
    }

    #[test]
    fn a_named_group_replaces_the_supplementary_ones() {
        assert_eq!(resolved("app:wheel"), (1000, 10, vec![], Some("/srv/app".into())));
        assert_eq!(resolved("app:5000"), (1000, 5000, vec![], Some("/srv/app".into())));
        assert_eq!(resolved(":wheel"), (0, 10, vec![], Some("/root".into())));
    }

    #[test]
    fn a_name_of_digits_is_still_a_name() {
        assert_eq!(resolved("1234"), (77, 78, vec![], Some("/numbered".into())));
    }

    #[test]
    fn names_without_an_entry_and_impossible_numbers_are_errors() {
        let error = |user| resolve(user, PASSWD, GROUP).unwrap_err();
        assert_eq!(error("ghost"), UserError::NoSuchUser("ghost".into()));
        assert_eq!(error("app:ghosts"), UserError::NoSuchGroup("ghosts".into()));
        assert_eq!(error("4294967296"), UserError::OutOfRange("4294967296".into()));
        assert_eq!(error("-1"), UserError::NoSuchUser("-1".into()));
        assert_eq!(error("0:99999999999999999999"), UserError::OutOfRange("99999999999999999999".into()));
    }

    #[test]
    fn images_without_the_files_run_as_numbers() {
        let it = resolve("", b"", b"").expect("root needs no files");
        assert_eq!((it.uid, it.gid, it.groups.len(), it.home), (0, 0, 0, None));
        assert!(resolve("root", b"", b"").is_err());
    }
}
