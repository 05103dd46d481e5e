//! What a person at a terminal is asked and shown.

use iii_protocol::api::Phase;
use serde_json::json;

use super::bed::{Bed, shell_layer};
use super::lifecycle::SERVE;
use super::person::Person;
use crate::support::registry::{Packing, Tree, image, layer, noise};

/// Ctrl-C and Ctrl-D.
const INTERRUPT: &str = "\x03";
const END_OF_INPUT: &str = "\x04";

/// Somebody who starts the daemon where no config.yaml is, and is asked whether there shall be one.
fn asked(bed: &Bed) -> Person {
    std::fs::remove_file(bed.config()).unwrap();
    let mut person = Person::runs(bed, &[], &[]);
    person.sees(&format!("there is no {}; create it? [Y/n] ", bed.config().display()));
    assert!(!bed.config().exists(), "it was made before the answer");
    person
}

#[test]
fn who_wants_a_config_file_gets_one_and_the_daemon_runs() {
    for answer in ["\r", "y\r", "YES\r"] {
        let bed = Bed::new();
        let mut person = asked(&bed);
        person.types(answer);
        person.sees(&format!("created {}", bed.config().display()));
        bed.until("the daemon answers", || bed.get("/v1/workers").is_some());
        let list = bed.iii(&["worker", "list"]);
        assert_eq!((list.code, list.stderr.contains("no workers yet")), (Some(0), true), "{}", list.stderr);
        person.types(INTERRUPT);
        let (code, shown) = person.leaves();
        assert_eq!(code, 0, "{answer:?}: {shown}");
        assert!(std::fs::read_to_string(bed.config()).unwrap().starts_with("# The workers"), "{answer:?}");
        bed.assert_nothing_left();
    }
}

#[test]
fn who_does_not_want_a_config_file_gets_none_and_no_daemon() {
    for answer in ["n\r", "no\r", "perhaps\r", END_OF_INPUT] {
        let bed = Bed::new();
        let mut person = asked(&bed);
        person.types(answer);
        let (code, shown) = person.leaves();
        assert_eq!(code, 1, "{answer:?}: {shown}");
        let told = format!("error: there is no {}\r\n", bed.config().display());
        assert!(shown.contains(&told) && shown.contains("iii -c FILE"), "{answer:?}: {shown}");
        assert!(!bed.config().exists() && bed.socket().is_none(), "{answer:?}");
    }
}

#[test]
fn a_pull_shows_a_bar_for_each_layer_that_grows_and_goes() {
    const BYTES: usize = 1 << 20;
    let bed = Bed::new();
    let slow = layer(&Tree::new().file("noise", &noise(BYTES, 1)).finish(), Packing::Plain);
    let bar = |layer: &str| format!("layer {}", &layer["sha256:".len()..][..12]);
    let (base, digest) = (shell_layer(), slow.digest());
    let bars = [bar(&base.digest()), bar(&digest)];
    let config = json!({ "Entrypoint": ["/bin/sh", "-c", SERVE] });
    let reference = bed.push("web", &image(&[base, slow], config));
    let gate = bed.registry.gate_after(&digest, BYTES / 2);
    let _daemon = bed.daemon();
    let mut person = Person::runs(&bed, &["worker", "add", &reference], &[("TERM", "xterm-256color")]);
    // It stands still in the middle: some has come, and not all of it.
    person.sees(&bars[1]);
    person.sees(" KiB/1.00 MiB");
    gate.open();
    person.sees("root disk");
    person.sees("web: added, running");
    let (code, shown) = person.leaves();
    assert_eq!(code, 0, "{shown}");
    assert!(bars.iter().all(|bar| shown.contains(bar)), "{shown}");
    assert!(!shown.contains("resolved sha256"), "the plain lines are for those without a terminal: {shown}");
    // The bars were wiped: what stays is the answer.
    let (bars_end, answer) = (shown.rfind("root disk").unwrap(), shown.rfind("web: added").unwrap());
    assert!(shown[bars_end..answer].contains("\x1b[2K"), "{shown:?}");
    assert_eq!(bed.status("web").unwrap().phase, Phase::Running);
}
