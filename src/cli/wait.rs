//! When a waiting command knows its answer: pure, from the statuses that `watch` brings.

use iii_protocol::api::{ErrorBody, ErrorCode, Phase, WorkerStatus};
use iii_protocol::exit::{ExitCause, ExitRecord};

/// What is known so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing yet.
    Pending,
    /// It is as asked for; the text says how.
    Done(String),
    /// It will not be, or not by itself.
    Failed(ErrorBody),
}

/// Answers "does it run?" after a start, a restart or an add.
#[derive(Debug, Clone)]
pub struct StartWait {
    /// The newest end that was known when the start was accepted.
    known: Option<(u64, jiff::Timestamp)>,
    /// A machine of this generation was still to end when a restart was accepted.
    old_generation: Option<u64>,
}

impl StartWait {
    /// From the status right after the request was accepted.
    pub fn new(accepted: &WorkerStatus) -> StartWait {
        StartWait {
            known: accepted.exits.first().map(|exit| (exit.generation, exit.at)),
            old_generation: (accepted.phase == Phase::Stopping).then_some(accepted.generation),
        }
    }

    /// For a worker that was not there before: every end counts.
    pub fn fresh() -> StartWait {
        StartWait { known: None, old_generation: None }
    }

    fn new_end<'a>(&self, status: &'a WorkerStatus) -> Option<&'a ExitRecord> {
        status.exits.first().filter(|exit| {
            !exit.requested
                && self.known.is_none_or(|known| known != (exit.generation, exit.at))
                && self.old_generation.is_none_or(|old| exit.generation > old)
        })
    }

    /// What `status` says.
    pub fn judge(&self, status: &WorkerStatus) -> Verdict {
        let end = self.new_end(status);
        match status.phase {
            Phase::Running => Verdict::Done("running".to_owned()),
            Phase::Failed => Verdict::Failed(failure(status, end)),
            // Ends are only told once: what follows is not waited for, whatever the restart policy.
            Phase::Preparing | Phase::Booting | Phase::Backoff | Phase::CrashLoop | Phase::Stopped
                if end.is_some_and(|end| end.cause.is_success()) =>
            {
                Verdict::Done("ran and ended (exit 0)".to_owned())
            }
            Phase::Preparing | Phase::Booting if end.is_none() => Verdict::Pending,
            Phase::Preparing | Phase::Booting | Phase::Backoff | Phase::CrashLoop => {
                Verdict::Failed(failure(status, end))
            }
            Phase::Stopped if end.is_some() => Verdict::Failed(failure(status, end)),
            Phase::Stopped => Verdict::Failed(ErrorBody {
                code: ErrorCode::Conflict,
                message: format!("`{}` was stopped before it ran", status.name),
                hint: Some(format!("start it again with `iii worker start {}`", status.name)),
            }),
            Phase::Stopping => Verdict::Pending,
        }
    }
}

/// Answers "has it ended?" after a stop.
pub fn judge_stop(status: &WorkerStatus) -> Verdict {
    match status.phase {
        Phase::Failed if is_up_for_a_look(status) => Verdict::Pending,
        Phase::Stopped | Phase::Failed => Verdict::Done(match status.exits.first() {
            Some(exit) => format!("stopped ({})", exit.cause),
            None => "stopped".to_owned(),
        }),
        _ => Verdict::Pending,
    }
}

/// Its project could not be made ready, and its machine waits for somebody to look.
fn is_up_for_a_look(status: &WorkerStatus) -> bool {
    status.phase == Phase::Failed && status.vmm_pid.is_some()
}

fn failure(status: &WorkerStatus, end: Option<&ExitRecord>) -> ErrorBody {
    let name = &status.name;
    // A machine that is there has not ended: its cause says what is wrong, and how to look inside.
    let end = end.filter(|_| !is_up_for_a_look(status));
    let retried = match status.phase {
        Phase::Backoff | Phase::CrashLoop | Phase::Preparing | Phase::Booting => "; it is started again",
        _ => "",
    };
    let logs = || Some(format!("see what it wrote: `iii worker logs {name}`"));
    match (end.map(|end| &end.cause), &status.cause) {
        (Some(ExitCause::CouldNotStart { message, hint, .. }), cause) => ErrorBody {
            code: cause.as_ref().map_or(ErrorCode::Host, |cause| cause.code),
            message: format!("`{name}` could not start: {message}{retried}"),
            hint: hint.clone().or_else(|| cause.as_ref().and_then(|cause| cause.hint.clone())),
        },
        (Some(ExitCause::VmmDied { detail }), _) => ErrorBody {
            code: ErrorCode::Host,
            message: format!("the machine of `{name}` died: {detail}{retried}"),
            hint: logs(),
        },
        (Some(cause), _) => ErrorBody {
            code: ErrorCode::Conflict,
            message: format!("`{name}` ended right away ({cause}){retried}"),
            hint: logs(),
        },
        (None, Some(cause)) => {
            let hint = cause.hint.clone().or_else(logs);
            // Never as "wrong usage": the command was right, the worker is not.
            let code = match cause.code {
                ErrorCode::BadRequest | ErrorCode::BadConfig => ErrorCode::Conflict,
                code => code,
            };
            ErrorBody { code, message: format!("`{name}`: {}{retried}", cause.message), hint }
        }
        (None, None) => ErrorBody {
            code: ErrorCode::Conflict,
            message: format!("`{name}` does not run ({}){retried}", status.phase),
            hint: logs(),
        },
    }
}

/// One line for the person who waits, when it differs from the one before.
#[derive(Debug, Default)]
pub struct Phases {
    said: Option<(Phase, Option<String>)>,
}

impl Phases {
    /// The line, if there is something new in it. Counters within a detail are no news on a
    /// plain stream (`every` is false) where each line stays.
    pub fn line(&mut self, status: &WorkerStatus, every: bool) -> Option<String> {
        let detail = if every { status.detail.as_deref() } else { status.step() };
        let now = (status.phase, detail.map(str::to_owned));
        if self.said.as_ref() == Some(&now) {
            return None;
        }
        let name = &status.name;
        let line = match &status.detail {
            Some(detail) => format!("{name}: {}, {detail}", status.phase),
            None => format!("{name}: {}", status.phase),
        };
        self.said = Some(now);
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::super::output::tests::{exit, worker};
    use super::*;

    fn with_exit(phase: Phase, end: ExitRecord) -> WorkerStatus {
        WorkerStatus { exits: vec![end], ..worker("web", phase) }
    }

    #[test]
    fn a_start_waits_through_preparing_and_booting_until_it_runs() {
        let old = exit(4, -60, ExitCause::Exit { code: 1 });
        let wait = StartWait::new(&with_exit(Phase::Preparing, old.clone()));
        assert_eq!(wait.judge(&with_exit(Phase::Preparing, old.clone())), Verdict::Pending);
        assert_eq!(wait.judge(&with_exit(Phase::Booting, old.clone())), Verdict::Pending);
        assert_eq!(wait.judge(&with_exit(Phase::Running, old)), Verdict::Done("running".to_owned()));
    }

    #[test]
    fn a_worker_that_crashes_at_once_fails_its_start_even_while_it_boots_again() {
        let wait = StartWait::fresh();
        for phase in [Phase::Booting, Phase::Backoff, Phase::CrashLoop, Phase::Stopped, Phase::Failed] {
            let verdict = wait.judge(&with_exit(phase, exit(1, 0, ExitCause::Exit { code: 7 })));
            let Verdict::Failed(error) = verdict else { panic!("{phase}: {verdict:?}") };
            assert!(error.message.contains("ended right away (exit 7)"), "{}", error.message);
            assert!(error.hint.unwrap().contains("logs web"));
        }
    }

    #[test]
    fn a_short_job_that_ends_well_is_a_success() {
        let wait = StartWait::fresh();
        let verdict = wait.judge(&with_exit(Phase::Stopped, exit(1, 0, ExitCause::Exit { code: 0 })));
        assert_eq!(verdict, Verdict::Done("ran and ended (exit 0)".to_owned()));
    }

    #[test]
    fn what_keeps_it_from_starting_is_told_at_the_first_try() {
        let cause = ExitCause::CouldNotStart {
            what: "exec".to_owned(),
            message: "no such file: /bin/app".to_owned(),
            hint: Some("check the image's entrypoint".to_owned()),
        };
        let verdict = StartWait::fresh().judge(&with_exit(Phase::Backoff, exit(1, 0, cause)));
        let Verdict::Failed(error) = verdict else { panic!("{verdict:?}") };
        assert_eq!(error.message, "`web` could not start: no such file: /bin/app; it is started again");
        assert_eq!(error.hint.as_deref(), Some("check the image's entrypoint"));
    }

    #[test]
    fn a_project_that_could_not_be_made_ready_is_told_with_how_to_look_inside() {
        let hint = "look inside with `iii worker exec web -- sh`, then `iii worker start web` tries again";
        let mut unprepared = with_exit(Phase::Failed, exit(1, 0, ExitCause::Exit { code: 7 }));
        unprepared.vmm_pid = Some(42);
        unprepared.cause = Some(ErrorBody {
            code: ErrorCode::Conflict,
            message: "install ended with exit 1".to_owned(),
            hint: Some(hint.to_owned()),
        });
        let verdict = StartWait::fresh().judge(&unprepared);
        let Verdict::Failed(error) = verdict else { panic!("{verdict:?}") };
        assert_eq!(error.message, "`web`: install ended with exit 1");
        assert_eq!(error.hint.as_deref(), Some(hint));
        assert_eq!(judge_stop(&unprepared), Verdict::Pending, "its machine is still there");
        let ended = WorkerStatus { vmm_pid: None, ..unprepared };
        assert!(matches!(judge_stop(&ended), Verdict::Done(_)));
    }

    #[test]
    fn a_restart_does_not_take_the_end_of_the_old_machine_for_the_new_one() {
        let accepted = WorkerStatus { generation: 4, ..worker("web", Phase::Stopping) };
        let wait = StartWait::new(&accepted);
        let old = exit(4, 1, ExitCause::Exit { code: 1 });
        assert_eq!(wait.judge(&with_exit(Phase::Booting, old)), Verdict::Pending);
        let asked = ExitRecord { requested: true, ..exit(4, 1, ExitCause::Signal { signal: 9 }) };
        assert_eq!(wait.judge(&with_exit(Phase::Preparing, asked)), Verdict::Pending);
        let new = exit(5, 2, ExitCause::Exit { code: 1 });
        assert!(matches!(wait.judge(&with_exit(Phase::Backoff, new)), Verdict::Failed(_)));
    }

    #[test]
    fn a_stop_by_somebody_else_ends_the_wait() {
        let verdict = StartWait::fresh().judge(&worker("web", Phase::Stopped));
        assert!(matches!(verdict, Verdict::Failed(e) if e.message.contains("was stopped before it ran")));
    }

    #[test]
    fn counters_are_news_on_a_terminal_only() {
        let mut first = worker("web", Phase::Preparing);
        first.detail = Some("pulling redis:7: 1/5 layers".to_owned());
        let mut second = first.clone();
        second.detail = Some("pulling redis:7: 2/5 layers".to_owned());
        let mut plain = Phases::default();
        assert_eq!(plain.line(&first, false).unwrap(), "web: preparing, pulling redis:7: 1/5 layers");
        assert_eq!(plain.line(&second, false), None);
        let mut terminal = Phases::default();
        terminal.line(&first, true).unwrap();
        assert_eq!(terminal.line(&second, true).unwrap(), "web: preparing, pulling redis:7: 2/5 layers");
    }
}
