//! Local projects whose machine loses its power: killed at any moment, half an install never runs as a whole one.

use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::bed::{Daemon, shell_layer};
use super::project::Local;
use crate::support::registry::image;

/// Says `whole N` only where the install for the requirements `N` has run to its end.
const START: &str = "trap 'exit 0' TERM; case $(cat installed) in $(cat requirements.txt)) echo whole $(cat \
                     installed);; *) echo BROKEN;; esac; while :; do sleep 1 & wait $!; done";
/// Half of it is there for a moment.
const SCRIPTS: &str = "  setup: ''\n  install: rm -f installed; echo half > installed; sleep 0.05; cat \
                       requirements.txt > installed\n";

/// When everything is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// So long after the marker says that the install has begun.
    Into(Duration),
    /// While the marker's next version is a file beside it.
    MarkerWritten,
    /// So long after the marker says that the install has ended.
    After(Duration),
}

/// What the marker holds of the install: its key, or nothing.
fn marker(folder: &Path) -> Option<serde_json::Value> {
    let text = fs::read(folder.join("installed.json")).ok()?;
    let marker: serde_json::Value = serde_json::from_slice(&text).expect("a marker is whole at any moment");
    Some(marker["install"].clone()).filter(|key| !key.is_null())
}

fn writes(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with(".tmp-"))
    })
}

/// Spins until something holds: the moments that are looked for are shorter than any sleep.
fn spin(local: &Local, what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < local.bed.patience(), "never: {what}\n{}", local.logs());
    }
}

fn await_moment(local: &Local, folder: &Path, before: Option<&serde_json::Value>, moment: Moment) {
    let is_done = || marker(folder).is_some_and(|key| Some(&key) != before);
    spin(local, "an install has begun", || marker(folder).is_none());
    let rest = match moment {
        Moment::Into(rest) => rest,
        Moment::MarkerWritten => {
            spin(local, "a marker that is written", || writes(folder) || is_done());
            Duration::ZERO
        }
        Moment::After(rest) => {
            spin(local, "the end of an install", is_done);
            rest
        }
    };
    let reached = Instant::now();
    spin(local, "the moment", || reached.elapsed() >= rest);
}

/// Of everything that runs for this user: the daemon, shims, machines, and what they run.
fn cut(local: &Local) {
    local.bed.until("nothing runs", || {
        let processes = local.bed.processes();
        for pid in &processes {
            // One that has ended meanwhile is as good.
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        processes.is_empty()
    });
}

/// Everything ends, and the next daemon makes round `round` whole; then that ends too, one way or the other.
fn cut_and_recover(local: &Local, daemon: Daemon, round: u64, cuts: &dyn Debug) {
    cut(local);
    daemon.kill();
    let daemon = local.bed.daemon();
    local.bed.wait_log("app", &format!("whole {round}\n"));
    assert!(!local.logs().contains("BROKEN"), "{cuts:?}\n{}", local.logs());
    match round % 2 {
        0 => cut(local),
        _ => daemon.stop(),
    }
}

#[test]
fn a_power_cut_around_the_end_of_an_install_never_makes_half_of_it_whole() {
    let local = Local::new(SCRIPTS);
    local.manifest_with(START, SCRIPTS);
    let folder: PathBuf = local.bed.home().join("managed/app");
    // A boot of a real machine takes long; its own disk loses what was not flushed, which processes do not.
    let rounds = if local.bed.is_process_tier() { 36 } else { 3 };
    let ms = Duration::from_millis;
    let mut cuts = Vec::new();
    for round in 0..rounds {
        local.write("requirements.txt", &format!("{round}\n"));
        let before = marker(&folder);
        let moment = match round % 3 {
            0 => Moment::MarkerWritten,
            1 => Moment::After(ms(round / 3 % 4)),
            _ => Moment::Into(ms(round * 3)),
        };
        let daemon = local.start();
        await_moment(&local, &folder, before.as_ref(), moment);
        let ended = marker(&folder).is_some_and(|key| Some(&key) != before.as_ref());
        cuts.push((moment, ended));
        cut_and_recover(&local, daemon, round, &cuts);
    }
    // Otherwise nothing was tried but one side of the moment.
    assert!(cuts.iter().any(|(_, ended)| *ended), "{cuts:?}");
    assert!(rounds < 36 || cuts.iter().any(|(_, ended)| !ended), "{cuts:?}");
}

/// Files of the project whose copy is cut; as [`START_OF_ALL`] counts them.
const FILES: usize = 300;
/// Says `whole N` only where all files are those of round `N`, and its setup has run to its end.
const START_OF_ALL: &str = "trap 'exit 0' TERM; if test x$(cat many/* | sort -u) = x$(cat version) && test x$(cat \
                            many/* | wc -l) = x300 && test x$(cat set-up) = x$(cat version); then echo whole $(cat \
                            version); else echo BROKEN; fi; while :; do sleep 1 & wait $!; done";

#[test]
fn a_power_cut_during_copy_or_setup_is_made_good_by_the_next_start() {
    let local = Local::new("  setup: ''\n  install: ''\n");
    let rounds = if local.bed.is_process_tier() { 15 } else { 3 };
    let mut cuts = Vec::new();
    for round in 0..rounds {
        for file in 0..FILES {
            local.write(&format!("many/{file}"), &format!("{round}\n"));
        }
        local.write("version", &format!("{round}\n"));
        // Another script each time, so that it has to run.
        let setup = format!("rm -f set-up; echo half > set-up; sleep 0.05; echo {round} > set-up");
        local.manifest_with(START_OF_ALL, &format!("  setup: {setup}\n  install: ''\n"));
        let daemon = local.start();
        let detail = || local.bed.status("app").and_then(|status| status.detail).unwrap_or_default();
        spin(&local, "the project is looked at", || !local.bed.processes_named("__prepare").is_empty());
        match round % 3 {
            0 => spin(&local, "setup runs", || detail().starts_with("setup runs (")),
            _ => std::thread::sleep(Duration::from_millis(round / 3 * 4)),
        }
        cuts.push(detail());
        cut_and_recover(&local, daemon, round, &cuts);
    }
    // Otherwise nothing was tried but one of the two.
    assert!(cuts.iter().any(|detail| detail.starts_with("setup runs (")), "{cuts:?}");
    assert!(cuts.iter().any(|detail| !detail.starts_with("setup runs (")), "{cuts:?}");
}

/// Never on what another base image's setup left.
const SETUP_OF_ONE: &str =
    "if test -e made-by && test x$(cat made-by) != x$FROM; then exit 9; fi; echo $FROM > made-by";
const START_OF_ONE: &str = "trap 'exit 0' TERM; if test x$(cat made-by) = x$FROM && test x$(cat installed) = x$FROM; \
                            then echo whole $(cat version); else echo BROKEN; fi; while :; do sleep 1 & wait $!; done";

#[test]
fn a_power_cut_while_a_disk_is_replaced_leaves_nothing_of_the_old_base_image() {
    let local = Local::new("  setup: ''\n  install: ''\n");
    let rounds = if local.bed.is_process_tier() { 15 } else { 3 };
    let folder: PathBuf = local.bed.home().join("managed/app");
    let base = || fs::read(folder.join("base.json")).unwrap_or_default();
    let mut cuts = Vec::new();
    for round in 0..rounds {
        let config = json!({ "Env": [format!("FROM=base{round}")] });
        let reference = local.bed.push(&format!("base{round}"), &image(&[shell_layer()], config));
        local.write("version", &format!("{round}\n"));
        local.manifest_of(
            &reference,
            START_OF_ONE,
            &format!(
                "  setup: {SETUP_OF_ONE}\n  install: rm -f installed; sleep 0.05; echo $FROM > installed\n"
            ),
        );
        let before = base();
        let daemon = local.start();
        spin(&local, "the disk is made", || match round % 3 {
            0 => writes(&folder) || base() != before,
            1 => base() != before,
            _ => folder.join("installed.json").exists() && base() != before,
        });
        let moment = Instant::now();
        spin(&local, "the moment", || moment.elapsed() >= Duration::from_millis(round / 3));
        cuts.push((round % 3, base() != before, marker(&folder).is_some()));
        cut_and_recover(&local, daemon, round, &cuts);
    }
}
