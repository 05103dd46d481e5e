use std::fs;

use notify::event::{AccessKind, AccessMode, CreateKind};
use tokio::time::timeout;

use super::*;

/// Far more than a look takes.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between the parts of one edit. A longer one makes a test weaker, not wrong.
const QUIET: Duration = Duration::from_millis(300);

/// A project of a few files.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("src/deep")).unwrap();
    fs::create_dir_all(dir.path().join("node_modules/x")).unwrap();
    fs::write(dir.path().join("src/deep/a.js"), "1").unwrap();
    dir
}

struct Watched {
    dir: tempfile::TempDir,
    told: mpsc::UnboundedReceiver<bool>,
    _watch: ProjectWatch,
}

impl Watched {
    /// After the first look.
    async fn new() -> Watched {
        let dir = folder();
        let (tell, told) = mpsc::unbounded_channel();
        let watch = ProjectWatch::start(dir.path().to_owned(), Vec::new(), move |edited| {
            let _ended = tell.send(edited);
        });
        let mut watched = Watched { dir, told, _watch: watch };
        assert_eq!(timeout(PATIENCE, watched.told.recv()).await.unwrap(), Some(false));
        watched
    }

    fn write(&self, path: &str, text: &str) {
        fs::write(self.dir.path().join(path), text).unwrap();
    }

    async fn tells(&mut self) {
        assert_eq!(timeout(PATIENCE, self.told.recv()).await.expect("an edit is told"), Some(true));
        // One edit may be told in parts; the rest of it is not about what comes next.
        while timeout(QUIET, self.told.recv()).await.is_ok() {}
    }
}

#[tokio::test]
async fn edits_at_any_depth_are_told_and_so_are_those_in_new_folders() {
    let mut watched = Watched::new().await;
    watched.write("src/deep/a.js", "22");
    watched.tells().await;
    fs::create_dir_all(watched.dir.path().join("new/er")).unwrap();
    watched.write("new/er/b.js", "1");
    watched.tells().await;
    watched.write("new/er/b.js", "22");
    watched.tells().await;
    fs::remove_dir_all(watched.dir.path().join("new")).unwrap();
    watched.tells().await;
    fs::create_dir_all(watched.dir.path().join("new/er")).unwrap();
    watched.tells().await;
    watched.write("new/er/b.js", "333");
    watched.tells().await;
}

/// What is looked at, without waiting for the system to tell of it.
struct Looked {
    dir: tempfile::TempDir,
    eyes: Eyes,
    _touched: mpsc::Receiver<()>,
}

impl Looked {
    fn new(exclude: &[&str]) -> Looked {
        let dir = folder();
        let (touch, touched) = mpsc::channel(1);
        let exclude = exclude.iter().map(|&pattern| pattern.to_owned()).collect();
        let mut eyes = Eyes::open(dir.path().to_owned(), exclude, touch);
        assert!(eyes.look().is_some());
        Looked { dir, eyes, _touched: touched }
    }

    fn write(&self, path: &str, text: &str) {
        fs::write(self.dir.path().join(path), text).unwrap();
    }

    /// Whether an event of this kind at this path is worth a look.
    fn wants(&self, kind: EventKind, path: &str) -> bool {
        self.eyes.interest.wants(&notify::Event::new(kind).add_path(self.dir.path().join(path)))
    }
}

#[test]
fn what_is_not_copied_is_no_edit() {
    let mut looked = Looked::new(&["*.log"]);
    let before = looked.eyes.look();
    looked.write("node_modules/x/index.js", "1");
    looked.write("src/x.log", "1");
    assert_eq!(looked.eyes.look(), before);
    let created = EventKind::Create(CreateKind::File);
    for (path, wanted) in
        [("node_modules/x/index.js", false), ("src/x.log", false), ("src/y.js", true), ("src", true)]
    {
        assert_eq!(looked.wants(created, path), wanted, "{path}");
    }
    looked.write(".iiiignore", "*.tmp\n");
    let before = looked.eyes.look();
    looked.write("src/x.tmp", "1");
    assert_eq!(looked.eyes.look(), before);
    looked.write("src/x.js", "1");
    assert_ne!(looked.eyes.look(), before);
}

#[test]
fn a_file_that_is_read_or_written_as_it_was_is_no_edit() {
    let mut looked = Looked::new(&[]);
    let before = looked.eyes.look();
    let path = looked.dir.path().join("src/deep/a.js");
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, fs::read(&path).unwrap()).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    assert_eq!(looked.eyes.look(), before);
    assert!(!looked.wants(EventKind::Access(AccessKind::Open(AccessMode::Read)), "src/deep/a.js"));
    assert!(!looked.wants(EventKind::Access(AccessKind::Close(AccessMode::Read)), "src/deep/a.js"));
    assert!(looked.wants(EventKind::Access(AccessKind::Close(AccessMode::Write)), "src/deep/a.js"));
}

#[tokio::test(start_paused = true)]
async fn an_editor_that_writes_in_several_steps_is_looked_at_once_and_one_that_never_stops_all_the_same() {
    let (touch, mut touched) = mpsc::channel(1);
    let step = SETTLE / 3;
    let writes = touch.clone();
    let editor = tokio::spawn(async move {
        for _ in 0..5 {
            writes.send(()).await.unwrap();
            sleep(step).await;
        }
    });
    let began = Instant::now();
    settled(&mut touched).await;
    assert_eq!(began.elapsed().as_millis(), (4 * step + SETTLE).as_millis());
    editor.await.unwrap();
    let _endless = AbortOnDropHandle::new(tokio::spawn(async move {
        while touch.send(()).await.is_ok() {
            sleep(step).await;
        }
    }));
    let began = Instant::now();
    settled(&mut touched).await;
    assert!(began.elapsed() >= SETTLE_LIMIT && began.elapsed() <= SETTLE_LIMIT + step);
}

#[test]
fn the_way_up_is_by_whole_names() {
    assert_eq!(up(b"a/bc/d").collect::<Vec<_>>(), [&b"a/bc/d"[..], b"a/bc", b"a", b""]);
    assert_eq!(up(b"a").collect::<Vec<_>>(), [&b"a"[..], b""]);
}
