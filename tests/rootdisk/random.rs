//! Random stacks of layers, and streams that are damaged at random, against the model.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use crate::disk::{Nodes, build};
use crate::model::{State, attributes, is_folder, layers, links, name, stack};

fn compare(nodes: &Nodes, state: &State) -> Result<(), TestCaseError> {
    let ours: BTreeSet<_> =
        nodes.keys().skip(1).map(|path| String::from_utf8_lossy(path).into_owned()).collect();
    let theirs: BTreeSet<_> = state.keys().map(name).collect();
    prop_assert_eq!(ours, theirs);
    let mut inodes = BTreeMap::new();
    for (path, expected) in state {
        let node = &nodes[name(path).as_bytes()];
        prop_assert_eq!(node.mode, expected.mode, "mode of {}", name(path));
        prop_assert_eq!(node.mtime, (expected.mtime, 0), "time of {}", name(path));
        prop_assert!(node.content == expected.content, "content of {}", name(path));
        prop_assert_eq!(&node.xattrs, &attributes(expected), "attributes of {}", name(path));
        prop_assert_eq!(node.links as usize, links(state, path), "links of {}", name(path));
        if !is_folder(state, path) {
            prop_assert_eq!(*inodes.entry(expected.id).or_insert(node.inode), node.inode);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_stack_of_layers_makes_what_the_spec_says(layers in layers()) {
        let (tars, state) = stack(&layers);
        compare(&build(&tars).nodes(), &state)?;
    }

    #[test]
    fn any_bytes_are_a_disk_or_an_error_but_never_a_panic(
        layers in layers(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..20),
        fix_sums in any::<bool>(),
    ) {
        let (mut tars, _) = stack(&layers);
        for tar in &mut tars {
            for (at, byte) in &damage {
                let at = at.index(tar.len());
                tar[at] = *byte;
            }
            if fix_sums {
                for block in tar.as_chunks_mut::<512>().0 {
                    // What looks like a header gets a checksum that is right.
                    if &block[257..262] == b"ustar" {
                        let mut header = tar::Header::from_byte_slice(block).clone();
                        header.set_cksum();
                        block.copy_from_slice(header.as_bytes());
                    }
                }
            }
        }
        if let Ok(disk) = crate::disk::try_build(&tars, &Default::default()) {
            disk.fsck();
        }
    }
}
