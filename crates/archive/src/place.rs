//! Where a copy goes: the rules that `docker cp` documents, and nothing else.

/// What is copied, or what is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thing {
    /// A folder.
    Folder,
    /// A file, or whatever else is not a folder; a link too.
    Other,
}

/// What the copy becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The destination, which is a folder, gets what is in the source.
    Into,
    /// The destination, which is a folder, gets the source under its name.
    Below,
    /// The source becomes the destination.
    At,
}

/// Why there is no place for the copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Misplaced {
    /// A file, and the destination ends with a slash but is not there.
    #[error("the folder does not exist")]
    NoSuchFolder,
    /// The destination ends with a slash, but is there and no folder.
    #[error("it is not a folder")]
    NotAFolder,
    /// A folder, and the destination is there and no folder.
    #[error("cannot copy a folder onto a file")]
    FolderOntoFile,
    /// The content of what has none.
    #[error("the source is not a folder, so it has no content to copy")]
    ContentsOfFile,
}

/// Says where `source` goes.
///
/// `contents`: the source was written with `/.` at its end. `there`: what the destination is, if it exists.
/// `folder`: it was written with a slash at its end.
pub fn place(source: Thing, contents: bool, there: Option<Thing>, folder: bool) -> Result<Place, Misplaced> {
    match (source, there) {
        (Thing::Other, _) if contents => Err(Misplaced::ContentsOfFile),
        (Thing::Folder, Some(Thing::Folder)) if contents => Ok(Place::Into),
        (_, Some(Thing::Folder)) => Ok(Place::Below),
        (Thing::Folder, None) => Ok(Place::At),
        (Thing::Folder, Some(Thing::Other)) => Err(Misplaced::FolderOntoFile),
        (Thing::Other, None) if folder => Err(Misplaced::NoSuchFolder),
        (Thing::Other, Some(Thing::Other)) if folder => Err(Misplaced::NotAFolder),
        (Thing::Other, None | Some(Thing::Other)) => Ok(Place::At),
    }
}

#[cfg(test)]
mod tests {
    use super::Misplaced::*;
    use super::Place::*;
    use super::Thing::{Folder, Other};
    use super::*;
    use crate::name::Spelling;

    /// One line per rule of the reference of `docker cp`, in its order.
    #[test]
    fn things_go_where_docker_cp_puts_them() {
        for (source, spelled, there, destination, expected) in [
            // SRC_PATH is a file: DEST_PATH does not exist; likewise with a slash; is a file; is a folder.
            (Other, "f", None, "x", Ok(At)),
            (Other, "f", None, "x/", Err(NoSuchFolder)),
            (Other, "f", Some(Other), "x", Ok(At)),
            (Other, "f", Some(Folder), "x", Ok(Below)),
            (Other, "f", Some(Folder), "x/", Ok(Below)),
            (Other, "f", Some(Folder), ".", Ok(Below)),
            // SRC_PATH is a folder: DEST_PATH does not exist; is a file; is a folder, without and with `/.`.
            (Folder, "d", None, "x", Ok(At)),
            (Folder, "d", None, "x/", Ok(At)),
            (Folder, "d/.", None, "x", Ok(At)),
            (Folder, "d", Some(Other), "x", Err(FolderOntoFile)),
            (Folder, "d/.", Some(Other), "x", Err(FolderOntoFile)),
            (Folder, "d", Some(Folder), "x", Ok(Below)),
            (Folder, "d/", Some(Folder), "x/", Ok(Below)),
            (Folder, "d/.", Some(Folder), "x", Ok(Into)),
            (Folder, ".", Some(Folder), "x", Ok(Into)),
            // What its text leaves to the system's own rules of paths.
            (Other, "f", Some(Other), "x/", Err(NotAFolder)),
            (Other, "f", None, "x/.", Err(NoSuchFolder)),
            (Other, "f/.", Some(Folder), "x", Err(ContentsOfFile)),
        ] {
            let contents = Spelling::of(spelled.as_bytes()).contents;
            let folder = Spelling::of(destination.as_bytes()).folder;
            let answer = place(source, contents, there, folder);
            assert_eq!(answer, expected, "{spelled} ({source:?}) to {destination} ({there:?})");
        }
    }
}
