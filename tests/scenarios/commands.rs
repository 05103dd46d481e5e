//! Manners of the command line.

use super::bed::{Bed, shell_layer};
use super::lifecycle::SERVE;
use crate::support::registry::{image, layer_of};

#[test]
fn every_command_has_help_with_an_example() {
    let bed = Bed::new();
    for verb in ["add", "remove", "list", "start", "stop", "restart", "status", "logs", "exec"] {
        let help = bed.ok(&["worker", verb, "--help"]);
        assert!(help.contains("Example"), "{help}");
    }
}

#[test]
fn usage_errors_exit_with_2() {
    let bed = Bed::new();
    for args in [&["worker", "fly"][..], &["worker", "add"], &["worker", "logs"], &["--nonsense"]] {
        assert_eq!(bed.iii(args).code, Some(2), "{args:?}");
    }
}

#[test]
fn a_reference_that_is_none_is_refused_before_anything_happens() {
    let bed = Bed::new();
    for reference in ["lower/UPPER", "a b", "x@sha256:123", ""] {
        let run = bed.iii(&["worker", "add", reference]);
        assert!(matches!(run.code, Some(1 | 2)), "{reference}: {run:?}");
        assert!(run.stderr.contains("error: "), "{}", run.stderr);
    }
}

#[test]
fn image_env_goes_into_the_entry_without_system_variables_and_old_values_win() {
    let bed = Bed::new();
    let config = serde_json::json!({
        "Entrypoint": ["/bin/sh", "-c", SERVE],
        "Env": ["PATH=/bin", "HOME=/x", "FOO=bar", "PRICE=5$ or ${X}"],
    });
    let built = crate::support::registry::image(&[super::bed::shell_layer()], config);
    let reference = bed.push("envy", &built);
    bed.ok(&["worker", "add", &reference]);
    let text = std::fs::read_to_string(bed.config()).unwrap();
    assert!(text.contains("FOO: bar") && !text.contains("PATH") && !text.contains("HOME"), "{text}");
    assert!(text.contains("5$$ or $${X}"), "a dollar of the image stays a dollar: {text}");
    let edited = text.replace("FOO: bar", "FOO: mine # keep this");
    bed.write_config(&edited);
    bed.ok(&["worker", "add", &reference, "--force"]);
    let text = std::fs::read_to_string(bed.config()).unwrap();
    assert!(text.contains("FOO: mine # keep this"), "{text}");
    bed.ok(&["worker", "add", &reference, "--force", "--reset-config"]);
    let text = std::fs::read_to_string(bed.config()).unwrap();
    assert!(text.contains("FOO: bar"), "{text}");
}

#[test]
fn resources_that_an_image_asks_for_go_into_the_new_entry_and_old_ones_win() {
    let bed = Bed::new();
    let push = |manifest: &str| {
        let hints = layer_of(&[("iii/worker.yaml", manifest.as_bytes())]);
        let config = serde_json::json!({ "Entrypoint": ["/bin/sh", "-c", SERVE] });
        bed.push("hinting", &image(&[shell_layer(), hints], config))
    };
    let reference = push("name: w\nresources:\n  memory: 256\n  cpus: 1\n");
    bed.ok(&["worker", "add", &reference]);
    let text = || std::fs::read_to_string(bed.config()).unwrap();
    assert!(text().contains("    resources:\n      memory: 256\n      cpus: 1\n"), "{}", text());

    bed.write_config(&text().replace("memory: 256", "memory: 128 # mine"));
    push("resources: {memory: 192, cpus: many}");
    let daemon = bed.daemon();
    let run = bed.iii(&["worker", "add", &reference, "--force"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(text().contains("memory: 128 # mine\n      cpus: 1\n"), "{}", text());
    assert!(
        run.stderr.contains("warning: hinting: `resources.cpus` in `/iii/worker.yaml`"),
        "{}",
        run.stderr
    );
    bed.ok(&["worker", "add", &reference, "--force", "--reset-config"]);
    assert!(text().contains("    resources:\n      memory: 192\n"), "{}", text());
    assert!(!text().contains("cpus"), "{}", text());
    assert_eq!(bed.status("hinting").unwrap().resources.memory_mib, 192);
    daemon.stop();
}

#[test]
fn status_tells_everything_for_people_and_programs() {
    let bed = Bed::new();
    let reference = bed.script_image("web", SERVE);
    bed.configure(&[bed.entry("web", &reference, &[])]);
    let _daemon = bed.daemon();
    bed.wait_log("web", "ready");
    let text = bed.ok(&["worker", "status", "web"]);
    for part in ["running", "sha256:", "256", &reference, "logs"] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&bed.ok(&["worker", "status", "web", "--json"])).unwrap();
    assert_eq!(json["name"], "web");
    let unknown = bed.iii(&["worker", "status", "weeb"]);
    assert_eq!(unknown.code, Some(1));
    assert!(unknown.stderr.contains("web"), "{}", unknown.stderr);
}
