//! From an image and a config entry to a machine: pure, but for the reading of a project's folder.

use std::time::Duration;

use iii_protocol::api::{ErrorBody, ErrorCode, Resources};
use iii_protocol::guest::ProcessPlan;
use nix::sys::signal::Signal;

use crate::config::engine::ENGINE_VARIABLES;
use crate::config::schema::{Source, WorkerConfig};
use crate::image::types::{Image, ImageConfig};
use crate::project::scripts::Variable;
use crate::project::{self, ProjectSpec};
use crate::vm::spec::MachineSpec;

/// `PATH` of a workload whose image and config set none, as other OCI runtimes have it.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long a boot may take when config.yaml does not say.
pub const BOOT_TIMEOUT: Duration = Duration::from_secs(30);
/// The same where the processor is emulated and everything takes many times longer.
pub const BOOT_TIMEOUT_EMULATED: Duration = Duration::from_secs(120);
/// The argument whose value is the engine's address, in images that take it on their command line.
const URL_FLAG: &str = "--url";
/// SIGRTMIN and SIGRTMAX as glibc guests and other OCI runtimes number them.
const RT_SIGNALS: std::ops::RangeInclusive<i32> = 34..=64;

/// What of this host bounds a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostLimits {
    /// CPUs this process may use.
    pub cpus: u8,
    /// Whether the processor is emulated.
    pub emulated: bool,
}

/// What a spec needs besides the worker's entry and the image.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances {
    /// The worker's start counter.
    pub generation: u64,
    /// Bounds of the host.
    pub host: HostLimits,
    /// How long the machine outlives its daemon.
    pub orphan_grace: Duration,
}

/// What a worker is made of, as far as it is known without its image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// What the configuration says; an edit makes another recipe of it.
    pub source: Source,
    /// Reference of the image that the machine starts from.
    pub image: String,
    /// What is run of a local project.
    pub project: Option<project::scripts::Plan>,
}

/// The recipe of a worker that can be run, or why this one cannot be, whatever is tried. Blocks: a project is read.
pub fn recipe(config: &WorkerConfig) -> Result<Recipe, ErrorBody> {
    let name = &config.name;
    config.env.as_ref().map_err(Clone::clone)?;
    let source = config.source.clone();
    match &config.source {
        Source::Oci { image } => Ok(Recipe { image: image.clone(), source, project: None }),
        Source::Local { path, .. } => {
            let plan = project::read(path, Some(name)).map_err(|error| ErrorBody::from(&error))?;
            Ok(Recipe { image: plan.base_image.value.clone(), source, project: Some(plan) })
        }
        Source::None => Err(ErrorBody {
            code: ErrorCode::BadConfig,
            message: format!("worker `{name}` has neither `image:` nor `worker_path:`"),
            hint: Some(format!("add `image: <reference>` to worker `{name}` in the configuration")),
        }),
    }
}

/// Decides everything about the machine of one start.
pub fn machine_spec(
    config: &WorkerConfig,
    recipe: &Recipe,
    image: &Image,
    around: Circumstances,
) -> Result<MachineSpec, ErrorBody> {
    let own_env = config.env.as_ref().map_err(Clone::clone)?;
    let boot_timeout = config.boot_timeout.unwrap_or(match around.host.emulated {
        true => BOOT_TIMEOUT_EMULATED,
        false => BOOT_TIMEOUT,
    });
    let engine_url = config.engine.in_guest();
    Ok(MachineSpec {
        worker: config.name.clone(),
        generation: around.generation,
        resources: resources(config, recipe, around.host),
        root_disk: image.root_disk.clone(),
        process: match &recipe.project {
            None => ProcessPlan {
                argv: argv(&image.config, &engine_url),
                env: environment(&image.config.env, &[], own_env, &config.name, &engine_url),
                cwd: match image.config.working_dir.as_str() {
                    "" => "/".to_owned(),
                    dir => dir.to_owned(),
                },
                user: image.config.user.clone(),
            },
            // All of a project is its owner's: whatever user the image has for what it runs itself.
            Some(plan) => ProcessPlan {
                argv: ["/bin/sh", "-c", &plan.start.value].map(str::to_owned).into(),
                env: environment(&image.config.env, &plan.env, own_env, &config.name, &engine_url),
                cwd: project::WORKSPACE.to_owned(),
                user: String::new(),
            },
        },
        project: project_of(config, recipe, image),
        network: config.network.clone(),
        engine: config.engine.engine().clone(),
        stop_signal: match recipe.project {
            None => stop_signal(&image.config.stop_signal)?,
            Some(_) => Signal::SIGTERM as i32,
        },
        stop_timeout_ms: millis(config.stop_timeout),
        boot_timeout_ms: millis(boot_timeout),
        orphan_grace_ms: millis(around.orphan_grace),
    })
}

/// What the configuration says, else what the project's manifest says; never more CPUs than the host has.
pub fn resources(config: &WorkerConfig, recipe: &Recipe, host: HostLimits) -> Resources {
    let resources = match &recipe.project {
        Some(plan) => config.own_resources.or(plan.resources()),
        None => config.resources,
    };
    Resources { cpus: resources.cpus.clamp(1, host.cpus.max(1)), ..resources }
}

fn project_of(config: &WorkerConfig, recipe: &Recipe, image: &Image) -> Option<ProjectSpec> {
    let (Some(plan), Source::Local { path, exclude }) = (&recipe.project, &config.source) else {
        return None;
    };
    Some(ProjectSpec {
        folder: path.clone(),
        exclude: exclude.clone(),
        kind: plan.known_kind(),
        base_image: image.digest.clone(),
        setup: plan.setup.value.clone(),
        install: plan.install.value.clone(),
    })
}

/// Whole milliseconds, at the type's limit for absurdly long times.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Entrypoint ++ Cmd, with the engine's address behind `--url`; a shell for an image that has neither.
fn argv(image: &ImageConfig, engine_url: &str) -> Vec<String> {
    let mut argv: Vec<String> = image.entrypoint.iter().chain(&image.cmd).cloned().collect();
    if argv.is_empty() {
        return vec!["/bin/sh".to_owned()];
    }
    let mut is_value = false;
    for word in argv.iter_mut().skip(1) {
        if std::mem::take(&mut is_value) {
            engine_url.clone_into(word);
        } else if word == URL_FLAG {
            is_value = true;
        } else if word.strip_prefix(URL_FLAG).is_some_and(|rest| rest.starts_with('=')) {
            *word = format!("{URL_FLAG}={engine_url}");
        }
    }
    argv
}

/// The image's variables, then the manifest's, then `config:`, then ours. A later value takes the place of an earlier
/// one.
fn environment(
    image: &[String],
    manifest: &[Variable],
    own: &[(String, String)],
    worker: &str,
    engine_url: &str,
) -> Vec<(String, String)> {
    let image = image.iter().map(|entry| match entry.split_once('=') {
        Some((key, value)) => (key.to_owned(), value.to_owned()),
        None => (entry.clone(), String::new()),
    });
    let ours = [("III_ISOLATION", "libkrun"), ("III_WORKER_NAME", worker)];
    let ours = ours.into_iter().chain(ENGINE_VARIABLES.map(|name| (name, engine_url)));
    let ours = ours.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let mut env: Vec<(String, String)> = Vec::new();
    let manifest = manifest.iter().map(|variable| (variable.name.clone(), variable.value.clone()));
    for (key, value) in image.chain(manifest).chain(own.iter().cloned()).chain(ours) {
        match env.iter_mut().find(|(k, _)| *k == key) {
            Some((_, old)) => *old = value,
            None => env.push((key, value)),
        }
    }
    if !env.iter().any(|(key, _)| key == "PATH") {
        env.push(("PATH".to_owned(), DEFAULT_PATH.to_owned()));
    }
    env
}

/// The number of an image's `StopSignal`: `SIGQUIT`, `QUIT`, `3`, `SIGRTMIN+3`; empty is SIGTERM.
pub fn stop_signal(declared: &str) -> Result<i32, ErrorBody> {
    let unknown = || ErrorBody {
        code: ErrorCode::Image,
        message: format!("the image declares the stop signal `{declared}`, which is no signal"),
        hint: Some("correct STOPSIGNAL in the image's build file and build it again".to_owned()),
    };
    let word = declared.trim();
    if word.is_empty() {
        return Ok(Signal::SIGTERM as i32);
    }
    if let Ok(number) = word.parse::<i32>() {
        return Some(number).filter(|n| (1..=*RT_SIGNALS.end()).contains(n)).ok_or_else(unknown);
    }
    let upper = word.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |from: i32, sign: i32, rest: &str| -> Option<i32> {
        let offset = match rest {
            "" => 0,
            _ => rest.strip_prefix(if sign > 0 { '+' } else { '-' })?.parse::<i32>().ok()?,
        };
        from.checked_add(sign * offset).filter(|n| offset >= 0 && RT_SIGNALS.contains(n))
    };
    if let Some(rest) = bare.strip_prefix("RTMIN") {
        return real_time(*RT_SIGNALS.start(), 1, rest).ok_or_else(unknown);
    }
    if let Some(rest) = bare.strip_prefix("RTMAX") {
        return real_time(*RT_SIGNALS.end(), -1, rest).ok_or_else(unknown);
    }
    format!("SIG{bare}").parse::<Signal>().map(|signal| signal as i32).map_err(|_| unknown())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::worker::tests::{image, worker_config};

    fn spec_of(
        config: &WorkerConfig,
        image: &Image,
        around: Circumstances,
    ) -> Result<MachineSpec, ErrorBody> {
        machine_spec(config, &recipe(config)?, image, around)
    }

    fn around() -> Circumstances {
        Circumstances {
            generation: 3,
            host: HostLimits { cpus: 4, emulated: false },
            orphan_grace: Duration::from_secs(60),
        }
    }

    fn with_image(change: impl FnOnce(&mut ImageConfig)) -> MachineSpec {
        let mut image = image();
        change(&mut image.config);
        spec_of(&worker_config("w"), &image, around()).unwrap()
    }

    #[test]
    fn the_command_is_entrypoint_then_cmd_or_a_shell() {
        let words = |list: &[&str]| list.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let argv = |entrypoint: &[&str], cmd: &[&str]| {
            let spec = with_image(|c| {
                c.entrypoint = words(entrypoint);
                c.cmd = words(cmd);
            });
            spec.process.argv.join(" ")
        };
        assert_eq!(argv(&["/bin/e", "-x"], &["a", "b"]), "/bin/e -x a b");
        assert_eq!(argv(&[], &["a"]), "a");
        assert_eq!(argv(&[], &[]), "/bin/sh");
    }

    #[test]
    fn config_wins_over_the_image_and_ours_wins_over_both() {
        let mut config = worker_config("w");
        config.env = Ok(vec![("B".into(), "own".into()), ("III_WORKER_NAME".into(), "liar".into())]);
        let mut image = image();
        image.config.env = vec!["A=1".into(), "B=2".into(), "EMPTY".into(), "A=x=y".into()];
        let spec = spec_of(&config, &image, around()).unwrap();
        let env: Vec<String> = spec.process.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let path = format!("PATH={DEFAULT_PATH}");
        let url = "ws://localhost:49134";
        assert_eq!(
            env,
            [
                "A=x=y",
                "B=own",
                "EMPTY=",
                "III_WORKER_NAME=w",
                "III_ISOLATION=libkrun",
                &format!("III_ENGINE_URL={url}"),
                &format!("III_URL={url}"),
                &path
            ]
        );
    }

    #[test]
    fn the_guest_is_told_of_its_own_loopback_wherever_the_engine_is() {
        for (own, url, engine) in [
            ("", "ws://localhost:49134", "localhost:49134"),
            ("III_URL: 'ws://10.0.0.5:5000/x'", "ws://localhost:5000/x", "10.0.0.5:5000"),
            ("iii_engine_url: 'wss://e.lan'", "wss://localhost:443", "e.lan:443"),
            ("III_URL: 'ws://a:1', III_ENGINE_URL: 'ws://b:2'", "ws://localhost:2", "b:2"),
            ("III_URL: 'ws://a:1', III_ENGINE_URL: ''", "ws://localhost:1", "a:1"),
            ("III: {URL: 'ws://a:1'}", "ws://localhost:1", "a:1"),
        ] {
            let text = format!("workers: [{{name: w, image: x, config: {{{own}}}}}]");
            let config = crate::config::load::parse(&text, "c.yaml".as_ref(), &|_| None).unwrap();
            let mut image = image();
            image.config.env = vec!["III_URL=ws://evil:1".into(), "III_ENGINE_URL=x".into()];
            let spec = spec_of(&config.workers[0], &image, around()).unwrap();
            assert_eq!(spec.engine.to_string(), engine, "{own}");
            for name in ["III_URL", "III_ENGINE_URL"] {
                let values: Vec<_> = spec.process.env.iter().filter(|(key, _)| key == name).collect();
                assert_eq!(values, [&(name.to_owned(), url.to_owned())], "{own}");
            }
        }
    }

    #[test]
    fn an_address_on_the_images_command_line_is_replaced_and_never_added() {
        let url = "ws://localhost:49134";
        for (entrypoint, cmd, want) in [
            (&["/w"][..], &["--url", "ws://x:1"][..], format!("/w --url {url}")),
            (&["/w", "--url=ws://x:1", "-v"], &[], format!("/w --url={url} -v")),
            (&["/w"], &["--url=", "--urls", "a"], format!("/w --url={url} --urls a")),
            (&["/w"], &["--url"], "/w --url".to_owned()),
            (&["/w", "--url"], &["a", "b"], format!("/w --url {url} b")),
            (&["/w"], &["url", "-u", "x"], "/w url -u x".to_owned()),
            (&["--url", "x"], &[], "--url x".to_owned()),
        ] {
            let words = |list: &[&str]| list.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
            let spec = with_image(|c| {
                c.entrypoint = words(entrypoint);
                c.cmd = words(cmd);
            });
            assert_eq!(spec.process.argv.join(" "), want);
        }
    }

    #[test]
    fn a_machine_is_another_one_with_another_network_or_engine() {
        let spec = with_image(|_| {});
        let mut config = worker_config("w");
        let hash = |config: &WorkerConfig| spec_of(config, &image(), around()).unwrap().hash();
        assert_eq!(hash(&config), spec.hash());
        config.network.egress = iii_protocol::network::Egress::None;
        assert_ne!(hash(&config), spec.hash());
        config = worker_config("w");
        config.engine = crate::config::engine::EngineUrl::parse("ws://other:49134").unwrap();
        assert_ne!(hash(&config), spec.hash());
    }

    #[test]
    fn a_path_of_the_image_is_kept() {
        let spec = with_image(|c| c.env = vec!["PATH=/x".into()]);
        assert!(spec.process.env.contains(&("PATH".into(), "/x".into())));
    }

    #[test]
    fn vcpus_are_bounded_by_the_host() {
        let mut config = worker_config("w");
        config.resources.cpus = 64;
        assert_eq!(spec_of(&config, &image(), around()).unwrap().resources.cpus, 4);
        config.resources.cpus = 0;
        assert_eq!(spec_of(&config, &image(), around()).unwrap().resources.cpus, 1);
    }

    #[test]
    fn an_emulated_host_gets_more_time_to_boot_unless_the_user_said() {
        let mut slow = around();
        slow.host.emulated = true;
        let mut config = worker_config("w");
        let boot = |config: &WorkerConfig, around| spec_of(config, &image(), around).unwrap().boot_timeout_ms;
        assert_eq!(boot(&config, around()), 30_000);
        assert_eq!(boot(&config, slow), 120_000);
        config.boot_timeout = Some(Duration::from_secs(5));
        assert_eq!(boot(&config, slow), 5_000);
    }

    #[test]
    fn stop_signals_are_known_by_name_and_number() {
        let cases = [
            ("", Some(15)),
            ("SIGQUIT", Some(3)),
            ("quit", Some(3)),
            ("3", Some(3)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMIN", Some(34)),
            ("SIGRTMAX-1", Some(63)),
            ("SIGRTMIN+31", None),
            ("SIGRTMIN-1", None),
            ("SIGRTMIN+-1", None),
            ("0", None),
            ("65", None),
            ("SIGNONSENSE", None),
        ];
        for (word, number) in cases {
            assert_eq!(stop_signal(word).ok(), number, "{word}");
        }
    }

    #[test]
    fn a_project_is_run_in_its_workspace_and_the_configuration_wins_over_its_manifest() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = "name: other\nruntime: {kind: python, base_image: my/python}\nresources: {memory: 100, cpus: 3, disk: 1GiB}\n\
                        scripts: {setup: s, install: i, start: run}\nenv: {A: manifest, B: manifest, PATH: /m}\n";
        std::fs::write(dir.path().join("iii.worker.yaml"), manifest).unwrap();
        let mut config = worker_config("w");
        config.source = Source::Local { path: dir.path().into(), exclude: vec!["*.log".into()] };
        config.env = Ok(vec![("B".into(), "config".into())]);
        let recipe = recipe(&config).unwrap();
        assert_eq!(recipe.image, "my/python");
        let mut image = image();
        image.config =
            ImageConfig { env: vec!["A=image".into(), "C=image".into()], user: "me".into(), ..image.config };
        let spec = machine_spec(&config, &recipe, &image, around()).unwrap();
        assert_eq!(spec.process.argv, ["/bin/sh", "-c", "run"]);
        assert_eq!((&*spec.process.cwd, &*spec.process.user), ("/workspace", ""));
        for (name, value) in
            [("A", "manifest"), ("B", "config"), ("C", "image"), ("PATH", "/m"), ("III_WORKER_NAME", "w")]
        {
            assert!(
                spec.process.env.contains(&(name.into(), value.into())),
                "{name}: {:?}",
                spec.process.env
            );
        }
        assert_eq!(spec.resources, Resources { memory_mib: 100, cpus: 3, disk_bytes: 1 << 30 });
        let project = spec.project.clone().unwrap();
        assert_eq!((project.setup.as_deref(), project.install.as_deref()), (Some("s"), Some("i")));
        assert_eq!((project.exclude, project.base_image), (vec!["*.log".to_owned()], image.digest.clone()));
        config.own_resources.memory_mib = Some(4096);
        config.own_resources.disk_bytes = Some(2 << 30);
        let other = machine_spec(&config, &recipe, &image, around()).unwrap();
        assert_eq!(other.resources, Resources { memory_mib: 4096, cpus: 3, disk_bytes: 2 << 30 });
    }

    #[test]
    fn what_cannot_run_says_why() {
        let mut config = worker_config("w");
        config.source = Source::Local { path: "/no/such/project".into(), exclude: Vec::new() };
        assert!(recipe(&config).unwrap_err().message.contains("/no/such/project"));
        config.source = Source::None;
        assert!(recipe(&config).unwrap_err().message.contains("neither"));
        let unset = ErrorBody { code: ErrorCode::BadConfig, message: "FOO is not set".into(), hint: None };
        config = worker_config("w");
        config.env = Err(unset.clone());
        assert_eq!(recipe(&config), Err(unset));
    }
}
