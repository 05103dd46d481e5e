//! Names as archives and users spell them: bytes, from anybody.

use std::fmt;

/// The name of an entry: bytes, not always text.
///
/// Shown lossily, control characters escaped, so that a name cannot write to the reader's terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryPath(pub Vec<u8>);

impl fmt::Display for EntryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in String::from_utf8_lossy(&self.0).chars() {
            if c.is_control() { write!(f, "{}", c.escape_default())? } else { write!(f, "{c}")? }
        }
        Ok(())
    }
}

/// A name that leads nowhere, or out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    /// `..` in it.
    #[error("a name in an archive must not contain `..`")]
    ParentStep,
    /// A NUL byte in it.
    #[error("a name must not contain a NUL byte")]
    Nul,
}

/// The steps of an entry's name from the top of its archive; none for the top itself.
///
/// Slashes at the start mean nothing, as for every unpacker.
pub fn steps(path: &[u8]) -> Result<Vec<&[u8]>, BadName> {
    if path.contains(&0) {
        return Err(BadName::Nul);
    }
    let steps = path.split(|&b| b == b'/').filter(|step| !matches!(*step, b"" | b"."));
    steps.map(|step| if step == b".." { Err(BadName::ParentStep) } else { Ok(step) }).collect()
}

/// What the way says in which a user wrote a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spelling<'p> {
    /// The path without `/` and `/.` at its end; never empty unless the path is.
    pub bare: &'p [u8],
    /// It ended with one of them, so a folder is meant, and a link at the end is followed.
    pub folder: bool,
    /// It ended with `.`: the content of a folder is meant and not the folder.
    pub contents: bool,
}

impl<'p> Spelling<'p> {
    /// Takes a path apart.
    pub fn of(path: &'p [u8]) -> Spelling<'p> {
        let mut spelling = Spelling { bare: path, folder: false, contents: path == b"." };
        loop {
            let bare = spelling.bare;
            if bare.len() > 1 && bare.ends_with(b"/") {
                spelling.bare = &bare[..bare.len() - 1];
                spelling.folder = true;
            } else if bare.ends_with(b"/.") {
                spelling.bare = &bare[..bare.len() - 1];
                (spelling.folder, spelling.contents) = (true, true);
            } else {
                let contents = spelling.contents || bare == b".";
                return Spelling { folder: spelling.folder || contents, contents, ..spelling };
            }
        }
    }

    /// The last step, by which the thing is called where it goes; none for `/`, `.` and `..`.
    pub fn name(&self) -> Option<&'p [u8]> {
        let name = self.bare.rsplit(|&b| b == b'/').next()?;
        (!matches!(name, b"" | b"." | b"..")).then_some(name)
    }

    /// The path up to the last step: `.` if there is no slash in it.
    pub fn parent(&self) -> &'p [u8] {
        match self.bare.iter().rposition(|&b| b == b'/') {
            None => b".",
            Some(at) => &self.bare[..at.max(1)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_path_says_what_is_meant() {
        for (path, bare, folder, contents, name, parent) in [
            ("a", "a", false, false, Some("a"), "."),
            ("a/b", "a/b", false, false, Some("b"), "a"),
            ("/a", "/a", false, false, Some("a"), "/"),
            ("a/", "a", true, false, Some("a"), "."),
            ("a//", "a", true, false, Some("a"), "."),
            ("a/.", "a", true, true, Some("a"), "."),
            ("a/./", "a", true, true, Some("a"), "."),
            ("a/.//./", "a", true, true, Some("a"), "."),
            (".", ".", true, true, None, "."),
            ("./", ".", true, true, None, "."),
            ("/", "/", false, false, None, "/"),
            ("/.", "/", true, true, None, "/"),
            ("..", "..", false, false, None, "."),
            ("a/..", "a/..", false, false, None, "a"),
            (".a", ".a", false, false, Some(".a"), "."),
            ("a.", "a.", false, false, Some("a."), "."),
            ("a/b.", "a/b.", false, false, Some("b."), "a"),
        ] {
            let spelling = Spelling::of(path.as_bytes());
            let expected = Spelling { bare: bare.as_bytes(), folder, contents };
            assert_eq!(spelling, expected, "{path}");
            assert_eq!(spelling.name(), name.map(str::as_bytes), "{path}");
            assert_eq!(spelling.parent(), parent.as_bytes(), "{path}");
        }
    }

    #[test]
    fn a_name_never_leads_up() {
        assert_eq!(steps(b"/./a//b/"), Ok(vec![&b"a"[..], b"b"]));
        assert_eq!(steps(b"./"), Ok(vec![]));
        assert_eq!(steps(b"a/../b"), Err(BadName::ParentStep));
        assert_eq!(steps(b".."), Err(BadName::ParentStep));
        assert_eq!(steps(b"..."), Ok(vec![&b"..."[..]]));
        assert_eq!(steps(b"a\0b"), Err(BadName::Nul));
    }
}
