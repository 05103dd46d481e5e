//! How long a project of 50,000 small files takes before anything is sent: listing it, comparing it with the index
//! of what the machine has, and reading and writing that index.
//!
//! `cargo bench --bench project`. Numbers are for comparing with earlier ones on the same machine.

use std::convert::Infallible;
use std::fs;
use std::hint::black_box;
use std::time::{Duration, Instant};

use iii::project::files::{self, Files};
use iii::project::index::Index;
use iii::project::sync::diff;

const FOLDERS: usize = 500;
const FILES_PER_FOLDER: usize = 100;
const ROUNDS: usize = 5;

fn main() {
    let dir = tempfile::tempdir().expect("a folder");
    let project = dir.path().join("project");
    for folder in 0..FOLDERS {
        let folder = project.join(format!("package-{folder}"));
        fs::create_dir_all(&folder).expect("a folder");
        for file in 0..FILES_PER_FOLDER {
            fs::write(folder.join(format!("module-{file}.py")), "pass\n").expect("a file");
        }
    }
    fs::write(project.join(files::IGNORE_FILE), "*.log\n/build/\n!keep.log\n").expect("a file");

    let list = || files::list(&project, &["*.tmp".to_owned()]).expect("a list");
    let listed: Files = list();
    println!("{} entries, best of {ROUNDS}:", listed.entries.len());
    report("list", list);
    let none = Index::default();
    let first = || diff(&listed.entries, &none, |_| Ok::<_, Infallible>([0; 32])).expect("a plan");
    report("compare with nothing", first);
    // Taken long after the files were written, so that none has to be hashed.
    let index = first().finish(i128::MAX, |_| Some([7; 32]));
    report("compare with the same", || {
        let plan = diff(&listed.entries, &index, |_| Ok::<_, Infallible>([7; 32])).expect("a plan");
        assert!(plan.is_empty());
    });
    let path = dir.path().join("files");
    report("write the index", || index.write(&path).expect("a file"));
    println!("  ({} KiB)", fs::metadata(&path).expect("a file").len() / 1024);
    report("read the index", || Index::read(&path).expect("an index"));
}

fn report<T>(what: &str, work: impl Fn() -> T) {
    let time = || {
        let began = Instant::now();
        black_box(work());
        began.elapsed()
    };
    let best = (0..ROUNDS).map(|_| time()).min().unwrap_or(Duration::ZERO);
    println!("{what:24} {best:>10.1?}");
}
