//! How the daemon ends: first signal politely, second by force, and nothing is left behind.

use std::time::{Duration, Instant};

use iii::daemon::{self, EVENT_QUEUE, Root};
use nix::sys::signal::{Signal, raise};
use ractor::Actor;
use tokio::sync::mpsc;

use crate::fake::{Fake, Project};

// One test, because signals reach all of a process.
#[test]
fn the_first_signal_asks_the_second_kills_and_no_socket_is_left() {
    let project = Project::new("workers: []\n");
    let ctx = project.ctx.clone();
    let world = project.world.clone();
    let running = std::thread::spawn(move || {
        daemon::run_with(
            ctx.home.clone(),
            &ctx.config,
            Box::new(|_| {
                Box::pin(async move {
                    let (supervisor, ended) = Actor::spawn(None, Fake, world).await.unwrap();
                    let (_, events) = mpsc::channel(EVENT_QUEUE);
                    Ok(Root { supervisor, ended, events })
                })
            }),
        )
    });
    let socket = project.ctx.home.daemon_socket(&project.ctx.project);
    // Signals are listened for before the socket is there.
    until("the daemon listens", || socket.exists());
    raise(Signal::SIGTERM).unwrap();
    until("the tree is asked to end", || project.asked() == ["shutdown false"]);
    assert!(!running.is_finished());
    raise(Signal::SIGINT).unwrap();
    until("it is told to hurry", || project.asked() == ["shutdown false", "shutdown true"]);
    running.join().unwrap().unwrap();
    assert!(!socket.exists());
}

fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !happened() {
        assert!(begun.elapsed() < Duration::from_secs(10), "{what}: not within 10 s");
        std::thread::yield_now();
    }
}
