//! The watcher with real files and folders.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Mutex;

use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;

/// Waits this long for something that should come soon.
const SOON: Duration = Duration::from_secs(5);

struct Followed {
    actor: ActorRef<WatcherMsg>,
    readings: mpsc::UnboundedReceiver<Reading>,
    /// How often the file was read.
    reads: Arc<Mutex<u32>>,
}

/// A configuration that differs with the file's text; text with `broken` in it is an error.
fn parse(text: &str) -> Result<Config, String> {
    if text.contains("broken") {
        return Err(format!("config.yaml: {text}"));
    }
    let orphan_grace = Duration::from_secs(text.len() as u64);
    Ok(Config {
        workers: Vec::new(),
        insecure_registries: vec![text.to_owned()],
        registries: BTreeMap::new(),
        orphan_grace,
    })
}

async fn follow(path: &Path) -> Followed {
    let (sender, readings) = mpsc::unbounded_channel();
    let reads = Arc::new(Mutex::new(0));
    let count = reads.clone();
    let args = WatcherArgs {
        path: path.to_owned(),
        known: parse(&fs::read_to_string(path).unwrap()),
        load: Arc::new(move |path| {
            *count.lock().unwrap() += 1;
            parse(&fs::read_to_string(path).map_err(|error| error.to_string())?)
        }),
        tell: Arc::new(move |reading| sender.send(reading).unwrap()),
    };
    let (actor, _) = Actor::spawn(None, ConfigWatcher, args).await.unwrap();
    Followed { actor, readings, reads }
}

impl Followed {
    async fn next(&mut self) -> Result<Config, String> {
        timeout(SOON, self.readings.recv()).await.expect("a reading").unwrap().result
    }

    async fn reload(&mut self) -> Result<Config, String> {
        let (reply, _answer) = ractor::concurrency::oneshot();
        self.actor.cast(WatcherMsg::Reload { reply: reply.into() }).unwrap();
        loop {
            let reading = timeout(SOON, self.readings.recv()).await.expect("a reading").unwrap();
            if !reading.replies.is_empty() {
                return reading.result;
            }
        }
    }
}

fn project() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.yaml");
    fs::write(&path, "one").unwrap();
    (dir, path)
}

#[tokio::test]
async fn edits_in_place_and_by_replacement_are_followed() {
    let (dir, path) = project();
    let mut followed = follow(&path).await;
    fs::write(&path, "two").unwrap();
    assert_eq!(followed.next().await, parse("two"));
    for text in ["three", "four"] {
        let temporary = dir.path().join("new");
        fs::write(&temporary, text).unwrap();
        fs::rename(&temporary, &path).unwrap();
        assert_eq!(followed.next().await, parse(text));
    }
}

#[tokio::test]
async fn an_edit_behind_a_link_and_a_changed_link_are_followed() {
    let (dir, path) = project();
    let elsewhere = tempfile::tempdir().unwrap();
    let (a, b) = (elsewhere.path().join("a.yaml"), dir.path().join("b.yaml"));
    fs::write(&a, "a").unwrap();
    fs::write(&b, "b").unwrap();
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&a, &path).unwrap();
    let mut followed = follow(&path).await;
    fs::write(&a, "a2").unwrap();
    assert_eq!(followed.next().await, parse("a2"));
    let temporary = dir.path().join("link");
    std::os::unix::fs::symlink(&b, &temporary).unwrap();
    fs::rename(&temporary, &path).unwrap();
    assert_eq!(followed.next().await, parse("b"));
    fs::write(&b, "b2").unwrap();
    assert_eq!(followed.next().await, parse("b2"));
}

#[tokio::test]
async fn the_same_error_is_told_once_and_its_mending_too() {
    let (_dir, path) = project();
    let mut followed = follow(&path).await;
    fs::write(&path, "broken").unwrap();
    assert_eq!(followed.next().await, parse("broken"));
    fs::write(&path, "broken").unwrap();
    assert_eq!(followed.reload().await, parse("broken"));
    fs::write(&path, "one").unwrap();
    assert_eq!(followed.next().await, parse("one"));
    assert!(followed.readings.try_recv().is_err());
}

#[tokio::test]
async fn a_file_that_goes_away_and_comes_back_is_followed() {
    let (_dir, path) = project();
    let mut followed = follow(&path).await;
    fs::remove_file(&path).unwrap();
    let error = followed.next().await.unwrap_err();
    assert!(error.ends_with("config.yaml is gone; the last good configuration stays in force"), "{error}");
    fs::write(&path, "back").unwrap();
    assert_eq!(followed.next().await, parse("back"));
}

#[tokio::test]
async fn a_storm_of_edits_is_read_seldom_but_is_read() {
    let (dir, path) = project();
    let mut followed = follow(&path).await;
    let until = Instant::now() + SETTLE_LIMIT * 3;
    let mut last = String::new();
    let mut n = 0;
    while Instant::now() < until {
        last = format!("text {n}");
        n += 1;
        let temporary = dir.path().join("new");
        fs::write(&temporary, &last).unwrap();
        fs::rename(&temporary, &path).unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut told = 0;
    while followed.next().await != parse(&last) {
        told += 1;
    }
    assert!(told >= 1, "nothing was told while the file kept changing");
    assert!(*followed.reads.lock().unwrap() < 20);
}

#[tokio::test]
async fn reading_the_file_is_no_edit() {
    let (dir, path) = project();
    let mut followed = follow(&path).await;
    followed.reload().await.unwrap();
    let before = *followed.reads.lock().unwrap();
    // A later edit of another file must not count either; then our own shows that events arrive.
    fs::write(dir.path().join("other"), "x").unwrap();
    fs::write(&path, "two").unwrap();
    assert_eq!(followed.next().await, parse("two"));
    followed.reload().await.unwrap();
    assert!(*followed.reads.lock().unwrap() <= before + 3);
}
