//! `add PATH`: what a project is run by, and with `--dry-run` what it would be, without a daemon and without a trace.

use std::fs;
use std::path::{Path, PathBuf};

use iii::cli::args::AddArgs;
use iii::cli::commands;
use iii::cli::exit::Failure;
use iii_protocol::api::{
    ErrorBody, ErrorCode, Phase, PullEvent, PulledImage, ResourceHints, WorkerStatus, WorkerType,
};
use serde_json::{Value, json};

use crate::fake::{Project, printer, status};

const CONFIG: &str = "workers: []\n";
const MANIFEST: &str = "name: my-worker
runtime:
  kind: python
  language: python
scripts:
  install: |
    pip install -r requirements.txt
    touch done
env:
  LOG_LEVEL: debug
";

/// A folder of that name with these files in it, below the test's own.
fn folder(project: &Project, name: &str, files: &[(&str, &str)]) -> PathBuf {
    let folder = project.ctx.config.parent().unwrap().join(name);
    fs::create_dir_all(&folder).unwrap();
    for (name, content) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    folder
}

fn args(paths: &[&Path]) -> AddArgs {
    AddArgs {
        references: paths.iter().map(|path| path.to_str().unwrap().to_owned()).collect(),
        name: None,
        force: false,
        reset_config: false,
        no_wait: false,
        exclude: Vec::new(),
        dry_run: true,
        json: false,
    }
}

async fn run(project: &Project, args: &AddArgs) -> (Result<(), Failure>, String, String) {
    let (mut printer, out, err) = printer();
    let result = commands::add(&project.ctx, args, &mut printer).await;
    assert_eq!(fs::read_to_string(&project.ctx.config).unwrap(), CONFIG, "nothing is changed");
    (result, out.text(), err.text())
}

#[tokio::test]
async fn every_value_is_shown_with_where_it_comes_from() {
    let project = Project::new(CONFIG);
    let files = [
        ("iii.worker.yaml", MANIFEST),
        ("requirements.txt", "iii-sdk\n"),
        ("worker.py", "pass\n"),
        ("src/a.py", ""),
        ("node_modules/x/y", ""),
        ("b.log", ""),
        (".iiiignore", "*.log\n"),
    ];
    let folder = folder(&project, "app", &files);
    std::os::unix::fs::symlink("/etc/passwd", folder.join("passwords")).unwrap();
    let (result, out, err) = run(&project, &args(&[&folder])).await;
    result.unwrap();
    let shown = |text: &str| text.replace(&folder.canonicalize().unwrap().display().to_string(), "/APP");
    insta::assert_snapshot!(shown(&out), @r"
    WHAT             IS                               FROM
    project          /APP
    name             my-worker                        manifest line 1
    kind             python                           manifest line 3
    package manager  pip                              default for kind python
    base image       iiidev/python:latest             default for kind python
    memory           2048 MiB                         default
    cpus             2                                default
    disk             16 GiB                           default
    setup            (none)                           default for kind python
    install          pip install -r requirements.txt  manifest line 6
                     touch done
    start            python3 worker.py                worker.py
    env              LOG_LEVEL=debug                  manifest line 10
    copied           5 files, 1 folder (175 B)
    left out         b.log, node_modules
    ");
    insta::assert_snapshot!(shown(&err), @r"
    warning: /APP/iii.worker.yaml:4: `runtime.language` is the old name of `runtime.kind` and has no effect beside it: rename it
    warning: passwords is a link to an absolute path, which is another one in the machine: it would not be copied
    ");
}

#[tokio::test]
async fn json_has_all_of_it() {
    let project = Project::new(CONFIG);
    let package = r#"{"scripts": {"dev": "tsx src/index.ts"}}"#;
    let folder = folder(&project, "app", &[("package.json", package), ("src/index.ts", "1"), ("x.tmp", "")]);
    let args = AddArgs { json: true, exclude: vec!["*.tmp".to_owned()], ..args(&[&folder]) };
    let (result, out, err) = run(&project, &args).await;
    result.unwrap();
    let shown: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(shown["path"], json!(folder.canonicalize().unwrap()));
    assert_eq!(shown["plan"]["name"], json!({"value": "app", "from": "name of the folder"}));
    assert_eq!(shown["plan"]["kind"], json!({"value": "typescript", "from": "package.json"}));
    assert_eq!(shown["plan"]["setup"], json!({"value": null, "from": "default for kind typescript"}));
    assert_eq!(shown["plan"]["start"], json!({"value": "npm run dev", "from": "package.json"}));
    let paths: Vec<_> =
        shown["files"].as_array().unwrap().iter().map(|f| f["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["package.json", "src", "src/index.ts"]);
    assert_eq!((&shown["files"][2]["type"], &shown["files"][2]["bytes"]), (&json!("file"), &json!(1)));
    assert_eq!((&shown["left_out"], &shown["skipped"]), (&json!(["x.tmp"]), &json!([])));
    assert_eq!(err, "");
}

#[tokio::test]
async fn what_is_wrong_with_a_project_is_a_usage_error_with_its_place() {
    let project = Project::new(CONFIG);
    let wrong = folder(&project, "wrong", &[("iii.worker.yaml", "name: w\nscripts:\n  strat: x\n")]);
    let empty = folder(&project, "empty", &[]);
    let missing = empty.join("missing");
    for (path, message) in [
        (&wrong, "iii.worker.yaml:3:3: unknown key `strat` under `scripts`; did you mean `start`?"),
        (&empty, "is no project that iii knows"),
        (&missing, "there is no folder "),
        (&project.ctx.config, "is not a folder"),
    ] {
        let (result, out, _) = run(&project, &args(&[path])).await;
        let failure = result.unwrap_err();
        let text = failure.text().unwrap();
        assert!(text.contains(message), "{text}");
        assert_eq!((failure.code(), out.as_str()), (2, ""), "{text}");
    }
}

#[tokio::test]
async fn one_of_several_that_is_wrong_does_not_keep_back_the_others() {
    let project = Project::new(CONFIG);
    let good = folder(&project, "good", &[("Cargo.toml", "")]);
    let (result, out, err) = run(&project, &args(&[&good.join("no"), &good])).await;
    assert_eq!(result.unwrap_err().code(), 1);
    assert!(out.contains("cargo run --release         default for kind rust"), "{out}");
    assert!(err.contains("error: there is no folder"), "{err}");
}

#[tokio::test]
async fn flags_of_projects_are_refused_for_images() {
    let project = Project::new(CONFIG);
    let image = AddArgs { references: vec!["redis:7".to_owned()], ..args(&[]) };
    let excluding = AddArgs { dry_run: false, exclude: vec!["x".to_owned()], ..args(&[Path::new("redis")]) };
    for (args, flag) in [(image, "--dry-run"), (excluding, "--exclude")] {
        let failure = run(&project, &args).await.0.unwrap_err();
        assert!(failure.text().unwrap().contains(&format!("`{flag}` is for local projects")), "{failure:?}");
        assert_eq!(failure.code(), 2);
    }
}

/// The image that projects of this kind start from, and what becomes of the start.
fn starts(project: &Project, name: &str, script: impl IntoIterator<Item = WorkerStatus>) {
    let image = PulledImage {
        digest: "sha256:aa".to_owned(),
        env: vec!["FROM_THE_IMAGE=1".to_owned()],
        root_disk_bytes: 1 << 20,
        resources: ResourceHints { memory_mib: Some(64), cpus: Some(1) },
        warnings: vec![],
    };
    project.world.lock().unwrap().pull = vec![PullEvent::Done { image }];
    project.add(local(name, Phase::Stopped));
    project.script(name, script);
}

fn local(name: &str, phase: Phase) -> WorkerStatus {
    WorkerStatus { worker_type: WorkerType::Local, ..status(name, phase) }
}

fn text(project: &Project) -> String {
    fs::read_to_string(&project.ctx.config).unwrap()
}

#[tokio::test]
async fn a_project_is_written_as_its_folder_and_its_scripts_are_heard() {
    let project = Project::new(CONFIG);
    let folder = folder(&project, "app", &[("package.json", r#"{"scripts": {"dev": "x"}}"#)]);
    std::os::unix::fs::symlink("/etc/passwd", folder.join("passwords")).unwrap();
    starts(&project, "app", [local("app", Phase::Booting), local("app", Phase::Running)]);
    project.log("app", 1, "added 3 packages\n");
    let daemon = project.serve().await;
    let (mut printer, out, err) = printer();
    let args = AddArgs { dry_run: false, exclude: vec!["*.log".to_owned()], ..args(&[&folder]) };
    commands::add(&project.ctx, &args, &mut printer).await.unwrap();
    assert_eq!(project.asked(), ["pull iiidev/node:latest false", "reload", "start app"]);
    let real = folder.canonicalize().unwrap();
    assert_eq!(
        text(&project),
        format!("workers:\n  - name: app\n    worker_path: {}\n    exclude: [\"*.log\"]\n", real.display())
    );
    let said = err.text();
    assert!(said.starts_with("warning: passwords is a link to an absolute path"), "{said}");
    assert!(said.contains("it is not copied\n") && said.ends_with("app: added, running\n"), "{said}");
    assert!(!said.contains("added 3 packages"), "the workload's own output is none of it: {said}");
    assert_eq!(out.text(), "");
    daemon.end().await;
}

#[tokio::test]
async fn a_failed_install_is_told_with_how_to_look_inside() {
    let project = Project::new(CONFIG);
    let folder = folder(&project, "app", &[("Cargo.toml", "")]);
    let mut failed = local("app", Phase::Failed);
    failed.vmm_pid = Some(7);
    failed.cause = Some(ErrorBody {
        code: ErrorCode::Conflict,
        message: "install failed (exit code 101)".to_owned(),
        hint: Some("look inside with `iii worker exec app -- sh`".to_owned()),
    });
    starts(&project, "app", [local("app", Phase::Booting), failed]);
    let daemon = project.serve().await;
    let (mut printer, _, _) = printer();
    let args = AddArgs { dry_run: false, ..args(&[&folder]) };
    let failure = commands::add(&project.ctx, &args, &mut printer).await.unwrap_err();
    assert_eq!(
        failure.text().unwrap(),
        "error: `app`: install failed (exit code 101)\n\nhint: look inside with `iii worker exec app -- sh`"
    );
    assert_eq!(failure.code(), 1);
    daemon.end().await;
}

#[tokio::test]
async fn what_is_wrong_is_told_before_anything_is_pulled() {
    let project = Project::new(CONFIG);
    let good = folder(&project, "good", &[("Cargo.toml", "")]);
    let wrong = folder(&project, "wrong", &[("iii.worker.yaml", "name: w\nkind: x\n")]);
    let daemon = project.serve().await;
    for (path, name, exclude, message) in [
        (&wrong, None, "x", "iii.worker.yaml:2:1: unknown key `kind`"),
        (&good, Some("a b"), "x", "cannot be a name"),
        (&good, None, "[z-a]", "is not a pattern"),
    ] {
        let (name, exclude) = (name.map(str::to_owned), vec![exclude.to_owned()]);
        let args = AddArgs { dry_run: false, name, exclude, ..args(&[path]) };
        let (result, _, _) = run(&project, &args).await;
        let failure = result.unwrap_err();
        assert!(failure.text().unwrap().contains(message), "{failure:?}");
        assert_eq!(failure.code(), 2, "{failure:?}");
    }
    assert!(project.asked().is_empty());
    daemon.end().await;
}

#[tokio::test]
async fn force_installs_from_scratch_and_keeps_what_the_entry_leaves_out() {
    let project = Project::new(CONFIG);
    let folder = folder(&project, "app", &[("Cargo.toml", ""), ("socket.tmp", "")]).canonicalize().unwrap();
    let config = "workers:\n  - name: app\n    worker_path: ./app\n    exclude: [\"*.tmp\"]\n";
    fs::write(&project.ctx.config, config).unwrap();
    let managed = project.ctx.home.managed("app");
    fs::create_dir_all(&managed).unwrap();
    for name in ["base.json", "scratch.ext4", "files", "installed.json", "state.json"] {
        fs::write(managed.join(name), "").unwrap();
    }
    let (mut printer, _, _) = printer();
    let daemon = project.serve().await;
    let again = AddArgs { dry_run: false, no_wait: true, ..args(&[&folder]) };
    let failure = commands::add(&project.ctx, &again, &mut printer).await.unwrap_err();
    let said = failure.text().unwrap();
    assert!(said.contains("already, with this folder") && said.contains("`--force` installs it"), "{said}");
    assert!(project.asked().is_empty());

    starts(&project, "app", [local("app", Phase::Stopped)]);
    let force = AddArgs { force: true, ..again };
    commands::add(&project.ctx, &force, &mut printer).await.unwrap();
    assert_eq!(
        project.asked(),
        ["pull library/rust:slim-bookworm true", "stop app None", "reload", "start app"]
    );
    let left: Vec<_> = fs::read_dir(&managed).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["state.json"]);
    assert_eq!(text(&project), config, "also the path as it was written");
    daemon.end().await;
}
