//! What a user sees of `list`, `status`, `start`, `stop` and `restart`.

use std::fs;
use std::time::Duration;

use iii::cli::args::{ListArgs, StartArgs, StatusArgs, StopArgs};
use iii::cli::commands;
use iii::fsutil::LockFile;
use iii_protocol::api::{ErrorBody, ErrorCode, Phase, WorkerStatus};
use iii_protocol::exit::ExitCause;

use crate::fake::{Project, exited, printer, status};

const CONFIG: &str = "workers:\n  - name: web\n    image: redis:7\n  - name: db\n    image: postgres:17\n";

fn start(names: &[&str]) -> StartArgs {
    StartArgs { names: names.iter().map(|&name| name.to_owned()).collect(), no_wait: false }
}

fn stop(names: &[&str]) -> StopArgs {
    let StartArgs { names, no_wait } = start(names);
    StopArgs { names, no_wait, timeout: Some(Duration::from_millis(1500)) }
}

#[tokio::test]
async fn a_start_shows_its_phases_and_ends_when_the_worker_runs() {
    let project = Project::new(CONFIG);
    project.add(status("web", Phase::Stopped));
    let mut preparing = status("web", Phase::Preparing);
    preparing.detail = Some("pulling redis:7: 1/5 layers".to_owned());
    project.script("web", [preparing, status("web", Phase::Booting), status("web", Phase::Running)]);
    let daemon = project.serve().await;
    let (mut printer, out, err) = printer();
    commands::start(&project.ctx, &start(&["web"]), &mut printer).await.unwrap();
    assert_eq!(out.text(), "");
    let said = err.text();
    assert!(said.ends_with("web: booting\nweb: running\n"), "{said}");
    assert_eq!(project.asked(), ["start web"]);
    daemon.end().await;
}

#[tokio::test]
async fn a_start_that_cannot_be_is_told_with_cause_and_hint() {
    let project = Project::new(CONFIG);
    project.add(status("web", Phase::Stopped));
    let failed = WorkerStatus {
        cause: Some(ErrorBody {
            code: ErrorCode::Host,
            message: "/dev/kvm cannot be opened: permission denied".to_owned(),
            hint: Some("add yourself to the group `kvm`".to_owned()),
        }),
        ..status("web", Phase::Failed)
    };
    project.script("web", [status("web", Phase::Booting), failed]);
    let daemon = project.serve().await;
    let (mut printer, _, _) = printer();
    let failure = commands::start(&project.ctx, &start(&["web"]), &mut printer).await.unwrap_err();
    assert_eq!(failure.code(), 1);
    assert_eq!(
        failure.text().unwrap(),
        "error: `web`: /dev/kvm cannot be opened: permission denied\n\nhint: add yourself to the group `kvm`"
    );
    daemon.end().await;
}

#[tokio::test]
async fn one_failure_of_several_is_said_in_its_place_and_the_others_go_on() {
    let project = Project::new(CONFIG);
    project.add(status("web", Phase::Running));
    project.add(status("db", Phase::Stopped));
    let crashed = exited(status("db", Phase::Backoff), ExitCause::Exit { code: 7 });
    project.script("db", [status("db", Phase::Booting), crashed]);
    let daemon = project.serve().await;
    let (mut printer, _, err) = printer();
    let failure =
        commands::start(&project.ctx, &start(&["nope", "db", "web"]), &mut printer).await.unwrap_err();
    assert_eq!((failure.code(), failure.text()), (1, None));
    let said = err.text();
    assert!(said.contains("error: there is no worker `nope`\n\nhint: did you mean `web`?"), "{said}");
    assert!(said.contains("error: `db` ended right away (exit 7); it is started again"), "{said}");
    assert!(said.ends_with("web: running\n"), "{said}");
    daemon.end().await;
}

#[tokio::test]
async fn a_stop_passes_its_grace_on_and_waits_for_the_end() {
    let project = Project::new(CONFIG);
    project.add(status("web", Phase::Running));
    let stopped = exited(status("web", Phase::Stopped), ExitCause::Signal { signal: 15 });
    project.script("web", [status("web", Phase::Stopping), stopped]);
    let daemon = project.serve().await;
    let (mut printer, _, err) = printer();
    commands::stop(&project.ctx, &stop(&["web"]), &mut printer).await.unwrap();
    assert!(err.text().ends_with("web: stopped (signal 15)\n"), "{}", err.text());
    assert_eq!(project.asked(), ["stop web Some(1500)"]);
    daemon.end().await;
}

#[tokio::test]
async fn a_restart_waits_for_the_new_machine() {
    let project = Project::new(CONFIG);
    project.add(status("web", Phase::Running));
    let old_end = exited(status("web", Phase::Booting), ExitCause::Exit { code: 1 });
    let new = WorkerStatus { generation: 2, ..status("web", Phase::Running) };
    project.script("web", [status("web", Phase::Stopping), old_end, new]);
    let daemon = project.serve().await;
    let (mut printer, _, err) = printer();
    commands::restart(&project.ctx, &stop(&["web"]), &mut printer).await.unwrap();
    assert!(err.text().ends_with("web: running\n"), "{}", err.text());
    daemon.end().await;
}

#[tokio::test]
async fn a_daemon_that_dies_while_it_is_waited_for_is_an_error() {
    for orderly in [true, false] {
        let project = Project::new(CONFIG);
        project.add(status("web", Phase::Stopped));
        project.script("web", [status("web", Phase::Booting)]);
        let daemon = project.serve().await;
        let ctx = project.ctx.clone();
        let waiting = tokio::spawn(async move {
            let (mut printer, _, _) = printer();
            commands::start(&ctx, &start(&["web"]), &mut printer).await
        });
        while project.asked().is_empty() {
            tokio::task::yield_now().await;
        }
        if orderly {
            daemon.end().await
        } else {
            daemon.vanish().await
        }
        let failure = waiting.await.unwrap().unwrap_err();
        assert_eq!(failure.code(), 1);
        let text = failure.text().unwrap();
        // Which words depends on how far it had come; that it says so and what to do does not.
        assert!(text.contains("daemon"), "{text}");
        assert!(text.contains("hint: start it"), "{text}");
    }
}

#[tokio::test]
async fn without_a_daemon_start_stop_and_restart_say_how_to_get_one() {
    let project = Project::new(CONFIG);
    let (mut printer, _, _) = printer();
    let expected = format!(
        "error: no daemon is running for {}\n\nhint: start it with `iii`",
        project.ctx.config.display()
    );
    let failures = [
        commands::start(&project.ctx, &start(&["web"]), &mut printer).await.unwrap_err(),
        commands::stop(&project.ctx, &stop(&["web"]), &mut printer).await.unwrap_err(),
        commands::restart(&project.ctx, &stop(&["web"]), &mut printer).await.unwrap_err(),
    ];
    for failure in failures {
        assert_eq!((failure.code(), failure.text().unwrap()), (1, expected.clone()));
    }
}

#[tokio::test]
async fn a_list_says_when_the_config_file_is_not_in_force() {
    let project = Project::new(CONFIG);
    project.add(status("web", Phase::Failed));
    project.world.lock().unwrap().config_error = Some("config.yaml:3:1: unknown key".to_owned());
    let daemon = project.serve().await;
    for json in [false, true] {
        let (mut printer, _out, err) = printer();
        let args = StatusArgs { name: Some("web".to_owned()), json };
        commands::status(&project.ctx, &args, &mut printer).await.unwrap();
        assert!(err.text().contains("config.yaml:3:1: unknown key"), "{}", err.text());
    }
    let (mut printer, out, err) = printer();
    commands::list(&project.ctx, &ListArgs { json: false }, &mut printer).await.unwrap();
    insta::assert_snapshot!(out.text(), @r"
    NAME  TYPE  STATUS  UPTIME  RESTARTS  LAST-EXIT
    web   OCI   failed  -       0         -
    ");
    assert!(err.text().starts_with("warning: the config file is not in force"), "{}", err.text());
    assert!(err.text().contains("config.yaml:3:1: unknown key"), "{}", err.text());
    daemon.end().await;
}

#[tokio::test]
async fn a_list_says_which_edit_of_a_project_is_not_in_force() {
    let project = Project::new(CONFIG);
    let why = "the project's last change is not in force: install failed (exit code 1)";
    project.add(WorkerStatus { detail: Some(why.to_owned()), ..status("web", Phase::Running) });
    // Any other detail is what is being done.
    project.add(WorkerStatus { detail: Some("install runs".to_owned()), ..status("db", Phase::Running) });
    let daemon = project.serve().await;
    let (mut printer, _, err) = printer();
    commands::list(&project.ctx, &ListArgs { json: false }, &mut printer).await.unwrap();
    assert_eq!(err.text(), format!("warning: `web`: {why}\n"));
    daemon.end().await;
}

#[tokio::test]
async fn a_list_without_a_daemon_tells_what_still_runs() {
    let project = Project::new(CONFIG);
    let run = project.ctx.home.machine_run(&project.ctx.project, "web");
    fs::create_dir_all(&run).unwrap();
    let lock = LockFile::try_acquire(&run.join("lock")).unwrap();
    let managed = project.ctx.home.managed("db");
    fs::create_dir_all(&managed).unwrap();
    let state = serde_json::json!({
        "version": 1, "owner": project.ctx.config, "desired": "stopped", "generation": 4, "restarts": 2,
        "exits": [{"generation": 4, "at": "2026-01-02T03:00:00Z", "uptime_ms": 5,
                   "cause": {"kind": "exit", "code": 7}}],
    });
    fs::write(managed.join("state.json"), state.to_string()).unwrap();

    let (mut printer, out, err) = printer();
    commands::list(&project.ctx, &ListArgs { json: false }, &mut printer).await.unwrap();
    let text = out.text();
    let rows: Vec<_> = text.lines().collect();
    assert_eq!(rows[1], "web   OCI   running (no daemon)  -       0         -");
    assert!(
        rows[2].starts_with("db    OCI   stopped              -       2         exit 7 ("),
        "{}",
        rows[2]
    );
    assert!(err.text().contains("no daemon is running"), "{}", err.text());
    drop(lock);

    let (mut printer, out, _) = super::fake::printer();
    commands::list(&project.ctx, &ListArgs { json: true }, &mut printer).await.unwrap();
    let json: serde_json::Value = serde_json::from_str(&out.text()).unwrap();
    assert_eq!(json["daemon"], false);
    assert_eq!(json["workers"][0]["phase"], "stopped");
    assert_eq!(json["workers"][1]["exits"][0]["cause"]["code"], 7);
}

#[tokio::test]
async fn status_of_one_worker_is_the_apis_own_object_in_json() {
    let project = Project::new(CONFIG);
    project.add(status("web", Phase::Running));
    let daemon = project.serve().await;
    let (mut printer, out, _) = printer();
    let args = StatusArgs { name: Some("web".to_owned()), json: true };
    commands::status(&project.ctx, &args, &mut printer).await.unwrap();
    let shown: WorkerStatus = serde_json::from_str(&out.text()).unwrap();
    assert_eq!(shown.phase, Phase::Running);
    let args = StatusArgs { name: Some("wbe".to_owned()), json: true };
    let failure = commands::status(&project.ctx, &args, &mut printer).await.unwrap_err();
    assert!(failure.text().unwrap().ends_with("hint: did you mean `web`?"));
    daemon.end().await;
}
