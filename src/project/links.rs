//! Which symbolic links lead out of a project: they would mean something else in the guest, or nothing. Pure.

use std::collections::BTreeMap;

/// How many links a way may go through before it counts as leading nowhere; the kernel's own limit.
const MAX_HOPS: usize = 40;

/// Where a link leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leads {
    /// To a place in the project, whether there is something or not.
    Inside,
    /// Above the project's folder.
    Outside,
    /// To a path that starts at the root: what is there in the guest is not what is there on this host.
    Absolute,
    /// Round in circles.
    Nowhere,
}

/// Follows the link at `path`, as the kernel would, through the project's other `links` (path to target). Paths
/// are relative to the project.
pub(super) fn leads(path: &[u8], links: &BTreeMap<&[u8], &[u8]>) -> Leads {
    // What is still to be gone through, next one last.
    let mut ahead: Vec<&[u8]> = Vec::new();
    let mut here: Vec<u8> = parent(path).to_vec();
    let mut next = links.get(path).copied();
    let mut hops = 0;
    loop {
        if let Some(target) = next.take() {
            if target.starts_with(b"/") {
                return Leads::Absolute;
            }
            hops += 1;
            if hops > MAX_HOPS {
                return Leads::Nowhere;
            }
            ahead.extend(target.split(|&b| b == b'/').rev());
        }
        match ahead.pop() {
            None => return Leads::Inside,
            Some(b"" | b".") => {}
            Some(b"..") => {
                if here.is_empty() {
                    return Leads::Outside;
                }
                here.truncate(parent(&here).len());
            }
            Some(step) => {
                let above = here.len();
                if !here.is_empty() {
                    here.push(b'/');
                }
                here.extend(step);
                next = links.get(here.as_slice()).copied();
                if next.is_some() {
                    here.truncate(above);
                }
            }
        }
    }
}

/// The path up to the last step; empty for one at the top.
fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|&b| b == b'/').map_or(b"", |at| &path[..at])
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;

    use super::*;

    fn leads_of(path: &str, links: &[(&str, &str)]) -> Leads {
        leads(path.as_bytes(), &links.iter().map(|(p, t)| (p.as_bytes(), t.as_bytes())).collect())
    }

    #[test]
    fn a_link_is_followed_as_the_kernel_does() {
        for (target, expected) in [
            ("c", Leads::Inside),
            ("../c", Leads::Inside),
            ("..", Leads::Inside),
            ("../..", Leads::Outside),
            ("../../p/a", Leads::Outside),
            ("./.././c//", Leads::Inside),
            ("x/../../..", Leads::Outside),
            ("/etc/passwd", Leads::Absolute),
            ("l", Leads::Nowhere),
        ] {
            assert_eq!(leads_of("a/l", &[("a/l", target)]), expected, "{target}");
        }
        // Each looks harmless, and the second leads out through the first.
        let links = [("deep/up", ".."), ("x", "deep/up/.."), ("y", "deep/up/deep"), ("z", "x/etc")];
        assert_eq!(leads_of("x", &links), Leads::Outside);
        assert_eq!(leads_of("y", &links), Leads::Inside);
        assert_eq!(leads_of("z", &links), Leads::Outside);
        assert_eq!(leads_of("a", &[("a", "b"), ("b", "a")]), Leads::Nowhere);
        assert_eq!(leads_of("a", &[("a", "b/x"), ("b", "/usr")]), Leads::Absolute);
    }

    proptest! {
        /// Against the kernel, in a tree of folders a, a/b and a/b/c with links in them.
        #[test]
        fn the_kernel_agrees(targets in proptest::collection::vec("(\\.\\./){0,3}(a|b|c|l0|l1|l2|\\.)(/(\\.\\.|b|c|l0|l1|l2)){0,3}", 3)) {
            let top = tempfile::tempdir().unwrap();
            let top = top.path().canonicalize().unwrap();
            let project = top.join("p");
            std::fs::create_dir_all(project.join("a/b/c")).unwrap();
            let paths = ["l0", "a/l1", "a/b/l2"];
            for (path, target) in paths.iter().zip(&targets) {
                symlink(target, project.join(path)).unwrap();
            }
            let links: Vec<(&str, &str)> = paths.iter().copied().zip(targets.iter().map(String::as_str)).collect();
            for path in paths {
                // Where the kernel finds nothing, the two may differ about what would be there.
                if let Ok(real) = project.join(path).canonicalize() {
                    let expected = if real.starts_with(&project) { Leads::Inside } else { Leads::Outside };
                    let found = leads_of(path, &links);
                    // A way that leaves the project and comes back counts as one that leaves it.
                    prop_assert!(found == expected || found == Leads::Outside, "{path} in {links:?}: {found:?}");
                }
            }
        }
    }
}
