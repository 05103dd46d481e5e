//! What an event of the file system is worth to those who follow files.

use notify::event::{AccessKind, AccessMode, EventKind};

/// Whether something may be another than before. What was only read or opened is not: that is how we look at it.
pub(super) fn may_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write))
        | EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Remove(_)
        | EventKind::Other => true,
        EventKind::Access(_) => false,
    }
}
