//! `add` and `remove`: the config file and the daemon go together.

use std::fs;

use iii::cli::args::{AddArgs, RemoveArgs};
use iii::cli::commands;
use iii::config::load;
use iii::config::schema::default_resources;
use iii::fsutil::LockFile;
use iii_protocol::api::{ErrorBody, ErrorCode, Phase, PullEvent, PulledImage, ResourceHints, Resources};
use iii_protocol::exit::ExitCause;

use crate::fake::{Project, exited, printer, status};

const CONFIG: &str =
    "# mine\nworkers:\n  - name: web # the front\n    image: nginx:1\n    stop_timeout: 3s\n";

fn add(references: &[&str]) -> AddArgs {
    AddArgs {
        references: references.iter().map(|&reference| reference.to_owned()).collect(),
        name: None,
        force: false,
        reset_config: false,
        no_wait: false,
        exclude: Vec::new(),
        dry_run: false,
        json: false,
    }
}

fn remove(name: &str) -> RemoveArgs {
    RemoveArgs { names: vec![name.to_owned()], yes: true }
}

fn text(project: &Project) -> String {
    fs::read_to_string(&project.ctx.config).unwrap()
}

fn pulls(project: &Project, env: &[&str]) {
    let env = env.iter().map(|&variable| variable.to_owned()).collect();
    let image = PulledImage {
        digest: "sha256:aa".to_owned(),
        env,
        root_disk_bytes: 1 << 20,
        resources: ResourceHints::default(),
        warnings: vec![],
    };
    pulls_image(project, image);
}

fn pulls_image(project: &Project, image: PulledImage) {
    project.world.lock().unwrap().pull = vec![PullEvent::Done { image }];
}

#[tokio::test]
async fn an_added_worker_is_pulled_written_and_waited_for() {
    let project = Project::new(CONFIG);
    project.add(status("cache", Phase::Stopped));
    project.script("cache", [status("cache", Phase::Booting), status("cache", Phase::Running)]);
    pulls(&project, &["PATH=/bin", "PRICE=5$", "LANG=C"]);
    let daemon = project.serve().await;
    let (mut printer, out, err) = printer();
    let args = AddArgs { name: Some("cache".to_owned()), ..add(&["redis:7"]) };
    commands::add(&project.ctx, &args, &mut printer).await.unwrap();
    assert_eq!(project.asked(), ["pull redis:7 false", "reload", "start cache"]);
    let written = text(&project);
    assert!(written.starts_with(CONFIG), "{written}");
    assert!(written.contains("name: cache") && written.contains("image: redis:7"), "{written}");
    let config = load::load(&project.ctx.config).unwrap();
    let env = config.workers[1].env.as_ref().unwrap();
    assert_eq!(*env, [("PRICE".to_owned(), "5$".to_owned())], "{written}");
    assert_eq!(out.text(), "");
    assert!(err.text().ends_with("cache: added, running\n"), "{}", err.text());
    daemon.end().await;
}

#[tokio::test]
async fn what_is_there_already_is_refused_before_anything_is_pulled() {
    let project = Project::new(CONFIG);
    let daemon = project.serve().await;
    let (mut printer, _, _) = printer();
    let other = AddArgs { name: Some("web".to_owned()), ..add(&["redis:7"]) };
    let failure = commands::add(&project.ctx, &other, &mut printer).await.unwrap_err();
    let said = failure.text().unwrap();
    assert!(said.contains("there is a worker `web` already, of the image nginx:1"), "{said}");
    assert!(said.contains("--name") && said.contains("--force"), "{said}");
    assert_eq!((failure.code(), text(&project).as_str()), (1, CONFIG));
    let same = AddArgs { name: Some("web".to_owned()), ..add(&["nginx:1"]) };
    let failure = commands::add(&project.ctx, &same, &mut printer).await.unwrap_err();
    assert!(failure.text().unwrap().contains("already, with this image"));
    assert!(project.asked().is_empty());
    daemon.end().await;
}

#[tokio::test]
async fn force_stops_wipes_and_keeps_the_other_keys() {
    let project = Project::new(CONFIG);
    project.add(status("web", Phase::Running));
    project.script("web", [exited(status("web", Phase::Stopped), ExitCause::Exit { code: 0 })]);
    pulls(&project, &[]);
    let scratch = project.ctx.home.managed("web").join("scratch.ext4");
    fs::create_dir_all(scratch.parent().unwrap()).unwrap();
    fs::write(&scratch, "disk").unwrap();
    let daemon = project.serve().await;
    let (mut printer, _, _) = printer();
    let args = AddArgs { name: Some("web".to_owned()), force: true, no_wait: true, ..add(&["nginx:2"]) };
    commands::add(&project.ctx, &args, &mut printer).await.unwrap();
    assert_eq!(project.asked(), ["pull nginx:2 true", "stop web None", "reload", "start web"]);
    assert!(!scratch.exists());
    assert_eq!(text(&project), CONFIG.replace("nginx:1", "nginx:2"));
    daemon.end().await;
}

#[tokio::test]
async fn what_an_image_asks_for_is_written_and_what_cannot_be_had_is_said() {
    let project = Project::new("workers: []\n");
    project.add(status("cache", Phase::Running));
    let image = PulledImage {
        digest: "sha256:aa".to_owned(),
        env: vec![],
        root_disk_bytes: 1,
        resources: ResourceHints { memory_mib: Some(512), cpus: Some(0) },
        warnings: vec!["`resources.disk` is odd".to_owned()],
    };
    pulls_image(&project, image);
    let daemon = project.serve().await;
    let (mut printer, _, err) = printer();
    commands::add(&project.ctx, &add(&["cache"]), &mut printer).await.unwrap();
    let config = load::load(&project.ctx.config).unwrap();
    let Resources { memory_mib, cpus, .. } = config.workers[0].resources;
    assert_eq!((memory_mib, cpus), (512, default_resources().cpus), "{}", text(&project));
    let said = err.text();
    assert!(said.contains("warning: cache: `resources.disk` is odd\n"), "{said}");
    assert!(said.contains("warning: cache: the image asks for 0 CPUs, which is not from 1 to 64"), "{said}");
    daemon.end().await;
}

#[tokio::test]
async fn one_of_several_that_fails_does_not_keep_back_the_others() {
    let project = Project::new("workers: []\n");
    project.add(status("redis", Phase::Running));
    pulls(&project, &[]);
    let daemon = project.serve().await;
    let (mut printer, _, err) = printer();
    let failure = commands::add(&project.ctx, &add(&["./no-such-project", "UPPER", "redis:7"]), &mut printer)
        .await
        .unwrap_err();
    assert_eq!(failure.code(), 1);
    assert!(text(&project).contains("image: redis:7"), "{}", text(&project));
    assert!(err.text().contains("error: there is no folder "), "{}", err.text());
    assert!(err.text().ends_with("redis: added, running\n"), "{}", err.text());
    daemon.end().await;
}

#[tokio::test]
async fn a_pull_that_fails_changes_nothing() {
    let project = Project::new(CONFIG);
    let error = ErrorBody {
        code: ErrorCode::Image,
        message: "docker.io/library/nope: no such image".to_owned(),
        hint: Some("check the name".to_owned()),
    };
    project.world.lock().unwrap().pull = vec![PullEvent::Failed { error }];
    let daemon = project.serve().await;
    let (mut printer, _, err) = printer();
    let failure = commands::add(&project.ctx, &add(&["nope"]), &mut printer).await.unwrap_err();
    assert_eq!(
        failure.text().unwrap(),
        "error: docker.io/library/nope: no such image\n\nhint: check the name"
    );
    assert_eq!((err.text().as_str(), text(&project).as_str()), ("", CONFIG));
    daemon.end().await;
}

#[tokio::test]
async fn a_removed_worker_is_gone_from_file_daemon_and_disk() {
    let project = Project::new(CONFIG);
    project.log("web", 1, "last words\n");
    let managed = project.ctx.home.managed("web");
    fs::create_dir_all(&managed).unwrap();
    let daemon = project.serve().await;
    let (mut printer, _, err) = printer();
    commands::remove(&project.ctx, &remove("web"), &mut printer).await.unwrap();
    assert_eq!(project.asked(), ["reload"]);
    assert!(!text(&project).contains("web"), "{}", text(&project));
    assert!(text(&project).starts_with("# mine\n"));
    assert!(!managed.exists() && !project.ctx.home.logs("web").exists());
    assert_eq!(err.text(), "web: removed\n");
    daemon.end().await;
}

#[tokio::test]
async fn removing_waits_for_a_worker_that_is_still_stopping() {
    let project = Project::new(CONFIG);
    project.add(status("web", Phase::Stopping));
    let daemon = project.serve().await;
    let ctx = project.ctx.clone();
    let removing = tokio::spawn(async move {
        let (mut printer, _, err) = printer();
        commands::remove(&ctx, &remove("web"), &mut printer).await.map(|()| err.text())
    });
    while project.asked() != ["reload"] || !watched(&project) {
        tokio::task::yield_now().await;
    }
    assert!(!removing.is_finished());
    project.world.lock().unwrap().workers.clear();
    assert_eq!(removing.await.unwrap().unwrap(), "web: stopping\nweb: removed\n");
    daemon.end().await;
}

fn watched(project: &Project) -> bool {
    project.world.lock().unwrap().workers["web"].status.receiver_count() > 0
}

#[tokio::test]
async fn removing_what_is_not_there_asks_whether_another_was_meant() {
    let project = Project::new(CONFIG);
    let (mut printer, _, _) = printer();
    let failure = commands::remove(&project.ctx, &remove("wbe"), &mut printer).await.unwrap_err();
    assert_eq!(failure.code(), 1);
    assert!(failure.text().unwrap().ends_with("hint: did you mean `web`?"));
}

/// With a mistake in `bad`.
const WRONG: &str = "workers:\n  - name: bad\n    imagee: x\n  - name: web\n    image: nginx:1\n";

#[tokio::test]
async fn a_worker_is_removed_from_a_file_with_a_mistake_elsewhere_or_in_itself() {
    let project = Project::new(WRONG);
    let (mut printer, _, _) = printer();
    let managed = project.ctx.home.managed("web");
    fs::create_dir_all(&managed).unwrap();
    commands::remove(&project.ctx, &remove("web"), &mut printer).await.unwrap();
    assert_eq!(text(&project), "workers:\n  - name: bad\n    imagee: x\n");
    assert!(!managed.exists());
    commands::remove(&project.ctx, &remove("bad"), &mut printer).await.unwrap();
    assert_eq!(text(&project), "workers: []\n");
}

#[tokio::test]
async fn what_a_daemon_runs_is_not_removed_from_a_file_that_it_would_not_follow() {
    let project = Project::new(WRONG);
    project.add(status("web", Phase::Running));
    let wrong = ErrorBody { code: ErrorCode::BadConfig, message: "no".to_owned(), hint: None };
    project.world.lock().unwrap().reload_error = Some(wrong);
    let daemon = project.serve().await;
    let (mut printer, _, _) = printer();
    let failure = commands::remove(&project.ctx, &remove("web"), &mut printer).await.unwrap_err();
    let said = failure.text().unwrap();
    assert!(said.contains("imagee") && said.contains("`iii worker stop web` stops it"), "{said}");
    assert_eq!((failure.code(), text(&project).as_str()), (2, WRONG));
    assert!(project.asked().is_empty());

    // Without the mistake the file is followed again.
    project.world.lock().unwrap().reload_error = None;
    commands::remove(&project.ctx, &remove("bad"), &mut printer).await.unwrap();
    assert_eq!(project.asked(), ["reload"]);
    assert_eq!(text(&project), "workers:\n  - name: web\n    image: nginx:1\n");
    daemon.end().await;
}

#[tokio::test]
async fn what_a_daemon_does_not_know_is_removed_from_a_file_that_it_does_not_follow() {
    let project = Project::new(WRONG);
    let wrong = ErrorBody { code: ErrorCode::BadConfig, message: "no".to_owned(), hint: None };
    project.world.lock().unwrap().reload_error = Some(wrong);
    let daemon = project.serve().await;
    let (mut printer, _, err) = printer();
    commands::remove(&project.ctx, &remove("web"), &mut printer).await.unwrap();
    assert_eq!(text(&project), "workers:\n  - name: bad\n    imagee: x\n");
    assert_eq!(err.text(), "web: removed\n");
    daemon.end().await;
}

#[tokio::test]
async fn a_name_that_could_mean_two_workers_or_another_folder_is_not_removed() {
    let (mut printer, _, _) = printer();
    for (name, text_before) in [
        (
            "web",
            "workers:\n  - name: web\n    image: a\n  - name: web\n    image: b\n  - name: c\n    image: d\n",
        ),
        ("../logs", "workers:\n  - name: ../logs\n    image: a\n  - name: c\n    image: d\n"),
        ("c", "workers:\n  - name: [\n"),
    ] {
        let project = Project::new(text_before);
        let logs = project.ctx.home.managed("x").parent().unwrap().join("../logs");
        fs::create_dir_all(&logs).unwrap();
        let failure = commands::remove(&project.ctx, &remove(name), &mut printer).await.unwrap_err();
        // What is wrong with the file, and not that there is no such worker.
        assert_eq!(failure.code(), 2, "{name}: {:?}", failure.text());
        assert!(failure.text().unwrap().contains("config.yaml"), "{name}: {:?}", failure.text());
        assert_eq!(text(&project), text_before);
        assert!(logs.exists(), "{name}");
    }
}

#[tokio::test]
async fn a_machine_without_a_daemon_is_not_removed_under_its_feet() {
    let project = Project::new(CONFIG);
    let run = project.ctx.home.machine_run(&project.ctx.project, "web");
    fs::create_dir_all(&run).unwrap();
    let _lock = LockFile::try_acquire(&run.join("lock")).unwrap();
    let (mut printer, _, _) = printer();
    let failure = commands::remove(&project.ctx, &remove("web"), &mut printer).await.unwrap_err();
    assert!(failure.text().unwrap().contains("still runs"), "{:?}", failure.text());
    assert_eq!(text(&project), CONFIG);
}

#[tokio::test]
async fn another_projects_worker_of_the_same_name_keeps_its_disk() {
    let project = Project::new(CONFIG);
    let theirs = Project::new(CONFIG);
    let managed = project.ctx.home.managed("web");
    fs::create_dir_all(&managed).unwrap();
    let state = serde_json::json!({
        "version": 1, "owner": theirs.ctx.config, "desired": "running", "generation": 1, "restarts": 0,
        "exits": [],
    });
    fs::write(managed.join("state.json"), state.to_string()).unwrap();
    let (mut printer, _, err) = printer();
    commands::remove(&project.ctx, &remove("web"), &mut printer).await.unwrap();
    assert!(managed.exists());
    assert!(err.text().contains("belong to"), "{}", err.text());
}
