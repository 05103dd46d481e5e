//! `step` in a small world of its own: random requests, answers in any order, machines that die.

use std::time::Duration;

use iii_protocol::api::{Desired, ErrorBody, ErrorCode, Refused};
use iii_protocol::exit::{ExitCause, ExitRecord};
use iii_protocol::shim::{MachinePhase, ShimStatus};
use jiff::Timestamp;
use proptest::prelude::*;

use crate::actors::worker::actor::policy_of;
use crate::actors::worker::durable::{MAX_EXITS, Record};
use crate::actors::worker::plan::{Circumstances, HostLimits, machine_spec, recipe};
use crate::actors::worker::state::{
    Claim, Effect, Failure, Found, Input, Moment, Order, Policy, Remedy, State, Worker,
};
use crate::actors::worker::tests::{image, worker_config};
use crate::config::schema::RestartPolicy;
use crate::vm::spec::MachineSpec;

/// Steps after which a world without new requests must have come to rest.
const SETTLES_WITHIN: usize = 200;

#[derive(Debug, Clone)]
enum Op {
    Start,
    Stop(Option<u64>),
    Restart(Option<u64>),
    Leave(Option<u64>),
    Reconfigure { policy: usize, restart: bool },
    Pass { ms: u64 },
    AnswerClaim { fails: Option<Remedy>, differs: bool },
    AnswerPrepare { fails: Option<Remedy> },
    AnswerLaunch { fails: Option<Remedy>, machine_all_the_same: bool },
    MachineRuns,
    MachineUnprepared,
    MachineGoesDown,
    MachineEnds { code: i32, requested: bool },
    Stale { what: usize, back: u64 },
    ProjectSeen { edited: bool, differs: bool },
}

fn ops() -> impl Strategy<Value = Op> {
    let grace = || proptest::option::of(0u64..20_000);
    let fails = || {
        prop_oneof![
            4 => Just(None),
            1 => Just(Some(Remedy::Retry)),
            1 => Just(Some(Remedy::Reclaim)),
            1 => Just(Some(Remedy::None)),
        ]
    };
    prop_oneof![
        2 => Just(Op::Start),
        2 => grace().prop_map(Op::Stop),
        2 => grace().prop_map(Op::Restart),
        1 => grace().prop_map(Op::Leave),
        2 => (0usize..4, any::<bool>()).prop_map(|(policy, restart)| Op::Reconfigure { policy, restart }),
        6 => (0u64..40_000).prop_map(|ms| Op::Pass { ms }),
        6 => (fails(), any::<bool>()).prop_map(|(fails, differs)| Op::AnswerClaim { fails, differs }),
        8 => fails().prop_map(|fails| Op::AnswerPrepare { fails }),
        8 => (fails(), any::<bool>())
            .prop_map(|(fails, machine_all_the_same)| Op::AnswerLaunch { fails, machine_all_the_same }),
        4 => Just(Op::MachineRuns),
        1 => Just(Op::MachineUnprepared),
        1 => Just(Op::MachineGoesDown),
        4 => (0i32..3, any::<bool>()).prop_map(|(code, requested)| Op::MachineEnds { code, requested }),
        3 => (0usize..5, 1u64..4).prop_map(|(what, back)| Op::Stale { what, back }),
        2 => (any::<bool>(), any::<bool>())
            .prop_map(|(edited, differs)| Op::ProjectSeen { edited, differs }),
    ]
}

const POLICIES: [RestartPolicy; 4] =
    [RestartPolicy::Always, RestartPolicy::UnlessStopped, RestartPolicy::OnFailure, RestartPolicy::Never];

fn policy(index: usize) -> Policy {
    let mut config = worker_config("w");
    config.restart.policy = POLICIES[index];
    policy_of(&config)
}

fn spec(generation: u64) -> MachineSpec {
    let around = Circumstances {
        generation,
        host: HostLimits { cpus: 1, emulated: false },
        orphan_grace: Duration::from_secs(60),
    };
    machine_spec(&worker_config("w"), &recipe(&worker_config("w")).unwrap(), &image(), around).unwrap()
}

fn failure(remedy: Remedy) -> Failure {
    let error = ErrorBody { code: ErrorCode::Host, message: "no".into(), hint: None };
    Failure { what: "launch", error, remedy }
}

#[derive(Debug, Clone)]
struct Machine {
    generation: u64,
    phase: MachinePhase,
    /// Someone asked it to end.
    asked: bool,
}

/// The model: what exists outside of the worker, and what the user is owed.
struct World {
    worker: Worker,
    now: Moment,
    random: f64,
    /// What the store holds, and whether the worker may write it.
    disk: Record,
    loaded: bool,
    claims: usize,
    prepares: Vec<u64>,
    launches: Vec<u64>,
    machine: Option<Machine>,
    left_word: Option<ExitRecord>,
    /// What the user asked for last, if anything.
    said: Option<Desired>,
    told_to_leave: bool,
    at_rest: usize,
    rechecks: usize,
    resyncs: usize,
}

impl World {
    fn new(policy_index: usize, desired: Desired, machine: bool, left_word: bool) -> World {
        let now = Moment::now();
        let disk = Record { desired, generation: 7, ..Record::default() };
        let running = MachinePhase::Running { since: now.wall };
        World {
            worker: Worker::new("w", policy(policy_index), Order::Resume, now),
            now,
            random: 0.5,
            disk,
            loaded: false,
            claims: 1,
            prepares: Vec::new(),
            launches: Vec::new(),
            machine: machine.then_some(Machine { generation: 7, phase: running, asked: false }),
            left_word: (left_word && !machine).then(|| exit(7, now.wall, 1, false)),
            said: None,
            told_to_leave: false,
            at_rest: 0,
            rechecks: 0,
            resyncs: 0,
        }
    }

    fn give(&mut self, input: Input) {
        let (worker, effects) = self.worker.clone().step(self.now, self.random, input);
        self.worker = worker;
        if self.loaded {
            self.disk = self.worker.record.clone();
        }
        for effect in effects {
            match effect {
                Effect::Claim => {
                    self.claims += 1;
                    assert!(self.launches.is_empty(), "a claim while a launch is under way");
                }
                Effect::Prepare { generation } => self.prepares.push(generation),
                Effect::Launch(spec) => {
                    assert!(self.launches.is_empty() && self.machine.is_none(), "a second machine");
                    self.launches.push(spec.generation);
                }
                Effect::End { generation, .. } => {
                    if let Some(machine) = self.machine.as_mut().filter(|m| m.generation == generation) {
                        machine.asked = true;
                    }
                }
                Effect::Recheck => self.rechecks += 1,
                Effect::Resync { generation } => {
                    let machine = self.machine.as_ref().filter(|machine| machine.generation == generation);
                    assert!(machine.is_some(), "nothing to bring up to date");
                    self.resyncs += 1;
                }
                Effect::AtRest => {
                    assert!(self.launches.is_empty(), "at rest during a launch");
                    if self.worker.claim == Claim::Held {
                        assert!(self.machine.is_none(), "at rest with a machine");
                    }
                    self.at_rest += 1;
                }
            }
        }
        self.check();
    }

    fn check(&self) {
        assert!(self.claims <= 1);
        let exits = &self.worker.record.exits;
        assert!(exits.len() <= MAX_EXITS);
        assert!(exits.iter().all(|a| exits.iter().filter(|b| a.generation == b.generation).count() == 1));
        match &self.worker.state {
            State::Backoff { until, .. } => {
                let wait = until.mono.saturating_duration_since(self.now.mono);
                assert!(wait <= self.worker.policy.restart.max_delay);
            }
            State::Stopped | State::Failed { .. } if self.worker.claim == Claim::Held => {
                assert!(self.machine.is_none() && self.launches.is_empty(), "a forgotten machine");
            }
            State::Booting { .. } | State::Unready { .. } | State::Running { .. } => {
                assert!(self.machine.is_some());
            }
            State::Stopped | State::Failed { .. } | State::Preparing(_) | State::Stopping(_) => {}
        }
        if self.loaded {
            let owed = self.said.unwrap_or(self.worker.record.desired);
            assert_eq!(self.worker.record.desired, owed, "what the user asked for last is forgotten");
        }
    }

    /// An input that must leave no trace.
    fn give_stale(&mut self, input: Input) {
        let is_launched = matches!(input, Input::Launched { .. });
        let (worker, effects) = self.worker.clone().step(self.now, self.random, input);
        assert_eq!(worker, self.worker);
        match effects.as_slice() {
            [] => assert!(!is_launched),
            [Effect::End { grace, .. }] => assert!(is_launched && grace.is_zero()),
            other => panic!("{other:?}"),
        }
    }

    fn apply(&mut self, op: Op) {
        let grace = |ms: Option<u64>| ms.map(Duration::from_millis);
        match op {
            Op::Start => {
                self.said = Some(Desired::Running);
                self.give(Input::Start);
            }
            Op::Stop(ms) => {
                self.said = Some(Desired::Stopped);
                self.give(Input::Stop { grace: grace(ms) });
            }
            Op::Restart(ms) => {
                self.said = Some(Desired::Running);
                self.give(Input::Restart { grace: grace(ms) });
            }
            Op::Leave(ms) => {
                self.told_to_leave = true;
                self.give(Input::Leave { grace: grace(ms) });
            }
            Op::Reconfigure { policy: index, restart } => {
                self.give(Input::Reconfigured { policy: policy(index), restart });
            }
            Op::Pass { ms } => {
                self.now = self.now.after(Duration::from_millis(ms));
                self.give(Input::Tick);
            }
            Op::AnswerClaim { fails, differs } => self.answer_claim(fails, differs),
            Op::AnswerPrepare { fails } => self.answer_prepare(fails),
            Op::AnswerLaunch { fails, machine_all_the_same } => {
                self.answer_launch(fails, machine_all_the_same);
            }
            Op::MachineRuns => self.machine_gets_on(|now| MachinePhase::Running { since: now.wall }),
            Op::MachineUnprepared => self.machine_gets_on(|now| MachinePhase::Unprepared {
                since: now.wall,
                what: "install".into(),
                message: "no".into(),
                hint: None,
            }),
            Op::MachineGoesDown => self.machine_gets_on(|now| MachinePhase::Stopping {
                running_since: Some(now.wall),
                deadline: now.after(Duration::from_secs(3)).wall,
            }),
            Op::MachineEnds { code, requested } => self.machine_ends(code, requested),
            Op::Stale { what, back } => self.stale(what, back),
            Op::ProjectSeen { edited, differs } => self.give(Input::ProjectSeen { edited, differs }),
        }
    }

    fn answer_claim(&mut self, fails: Option<Remedy>, differs: bool) {
        if self.claims == 0 {
            return;
        }
        self.claims -= 1;
        if let Some(remedy) = fails {
            // A worker that was ours once cannot become another's while we hold it.
            let remedy = if self.loaded || self.machine.is_some() { Remedy::Retry } else { remedy };
            return self.give(Input::NotClaimed(failure(remedy)));
        }
        if !self.loaded && !self.told_to_leave {
            let always = self.worker.policy.restart.policy == RestartPolicy::Always;
            self.said = self.said.or(always.then_some(Desired::Running)).or(Some(self.disk.desired));
        }
        self.loaded = true;
        let found = match (&self.machine, self.left_word.take()) {
            (Some(machine), _) => Found::Running {
                status: ShimStatus {
                    worker: "w".into(),
                    generation: machine.generation,
                    spec_hash: "this".into(),
                    shim_pid: 1,
                    vmm_pid: None,
                    phase: machine.phase.clone(),
                    next_seq: 0,
                    refused: Refused::default(),
                    activity: None,
                },
                wanted: differs.then(|| "that".to_owned()),
            },
            (None, Some(exit)) => Found::Ended(exit),
            (None, None) => Found::Nothing,
        };
        self.give(Input::Claimed { record: self.disk.clone(), found: Box::new(found) });
    }

    fn answer_prepare(&mut self, fails: Option<Remedy>) {
        let Some(generation) = self.prepares.pop() else { return };
        match fails {
            // Preparing makes no machine, so there is nothing to look for.
            Some(Remedy::Reclaim) | None => self.give(Input::Prepared { spec: Box::new(spec(generation)) }),
            Some(remedy) => self.give(Input::CouldNotStart { generation, failure: failure(remedy) }),
        }
    }

    fn answer_launch(&mut self, fails: Option<Remedy>, machine_all_the_same: bool) {
        let Some(generation) = self.launches.pop() else { return };
        let phase = MachinePhase::Booting {
            since: self.now.wall,
            deadline: self.now.after(Duration::from_secs(30)).wall,
            detail: None,
        };
        let machine = Machine { generation, phase, asked: false };
        match fails {
            None => {
                self.machine = Some(machine);
                self.give(Input::Launched { generation });
            }
            Some(remedy) => {
                self.machine = (remedy == Remedy::Reclaim && machine_all_the_same).then_some(machine);
                self.give(Input::CouldNotStart { generation, failure: failure(remedy) });
            }
        }
    }

    fn is_linked(&self) -> bool {
        self.worker.claim == Claim::Held
    }

    fn machine_gets_on(&mut self, phase: impl FnOnce(Moment) -> MachinePhase) {
        let now = self.now;
        if let Some(machine) = &mut self.machine {
            machine.phase = phase(now);
            let (generation, phase) = (machine.generation, machine.phase.clone());
            if self.is_linked() {
                self.give(Input::Machine { generation, phase });
            }
        }
    }

    fn machine_ends(&mut self, code: i32, requested: bool) {
        let Some(machine) = self.machine.take() else { return };
        let exit = exit(machine.generation, self.now.wall, code, requested);
        match self.is_linked() {
            true => {
                let phase = MachinePhase::Ended { exit };
                self.give(Input::Machine { generation: machine.generation, phase });
            }
            false => self.left_word = Some(exit),
        }
    }

    fn stale(&mut self, what: usize, back: u64) {
        let Some(generation) = self.worker.record.generation.checked_sub(back) else { return };
        if self.machine.as_ref().is_some_and(|machine| machine.generation == generation) {
            return;
        }
        let ended = MachinePhase::Ended { exit: exit(generation, self.now.wall, 1, false) };
        self.give_stale(match what {
            0 => Input::Prepared { spec: Box::new(spec(generation)) },
            1 => Input::CouldNotStart { generation, failure: failure(Remedy::Retry) },
            2 => Input::Launched { generation },
            3 => Input::Progress { generation, detail: "1 %".into() },
            _ => Input::Machine { generation, phase: ended },
        });
    }

    /// Answers everything well, and lets time pass when there is nothing to answer.
    fn settle(&mut self, is_settled: impl Fn(&World) -> bool) {
        for _ in 0..SETTLES_WITHIN {
            if is_settled(self) {
                return;
            }
            if self.claims > 0 {
                self.answer_claim(None, false);
            } else if !self.launches.is_empty() {
                self.answer_launch(None, false);
            } else if !self.prepares.is_empty() {
                self.answer_prepare(None);
            } else if self.machine.as_ref().is_some_and(|machine| {
                machine.asked || matches!(machine.phase, MachinePhase::Stopping { .. })
            }) {
                self.machine_ends(0, false);
            } else if matches!(self.worker.state, State::Booting { .. }) {
                self.machine_gets_on(|now| MachinePhase::Running { since: now.wall });
            } else if let Some(due) = self.worker.state.next_tick() {
                self.now = self.now.after(due.saturating_duration_since(self.now.mono));
                self.give(Input::Tick);
            } else {
                panic!("nothing goes on in {:?}", self.worker);
            }
        }
        panic!("no end in {:?}", self.worker);
    }
}

fn exit(generation: u64, at: Timestamp, code: i32, requested: bool) -> ExitRecord {
    ExitRecord { generation, at, uptime_ms: 1000, cause: ExitCause::Exit { code }, requested }
}

fn worlds() -> impl Strategy<Value = (usize, Desired, bool, bool)> {
    let desired = prop_oneof![Just(Desired::Running), Just(Desired::Stopped)];
    (0usize..4, desired, any::<bool>(), any::<bool>())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn whatever_happened_a_stop_ends_without_a_machine(
        (policy, desired, machine, left) in worlds(),
        ops in proptest::collection::vec((ops(), 0.0f64..1.0), 0..60),
    ) {
        let mut world = World::new(policy, desired, machine, left);
        for (op, random) in ops {
            world.random = random;
            world.apply(op);
        }
        world.apply(Op::Stop(Some(100)));
        world.settle(|w| w.worker.state == State::Stopped && w.claims == 0);
        prop_assert!(world.machine.is_none() && world.launches.is_empty());
        prop_assert!(!world.loaded || world.disk.desired == Desired::Stopped);
    }

    #[test]
    fn whatever_happened_a_start_ends_with_one_machine(
        (policy, desired, machine, left) in worlds(),
        ops in proptest::collection::vec((ops(), 0.0f64..1.0), 0..60),
    ) {
        let mut world = World::new(policy, desired, machine, left);
        for (op, random) in ops {
            world.random = random;
            world.apply(op);
        }
        // A machine that went down just before may still need its end judged by a policy.
        world.apply(Op::Reconfigure { policy: 0, restart: false });
        world.apply(Op::Start);
        world.settle(|w| matches!(w.worker.state, State::Running { .. }));
        prop_assert!(world.machine.is_some() && world.launches.is_empty());
        prop_assert_eq!(world.disk.desired, Desired::Running);
    }

    #[test]
    fn whatever_happened_leaving_ends_at_rest_and_forgets_nothing(
        (policy, desired, machine, left) in worlds(),
        ops in proptest::collection::vec((ops(), 0.0f64..1.0), 0..60),
    ) {
        let mut world = World::new(policy, desired, machine, left);
        for (op, random) in ops {
            world.random = random;
            world.apply(op);
        }
        let before = world.at_rest;
        world.apply(Op::Leave(None));
        world.settle(|w| w.at_rest > before);
        prop_assert!(world.machine.is_none() && world.launches.is_empty());
        if let (true, Some(said)) = (world.loaded, world.said) {
            prop_assert_eq!(world.disk.desired, said);
        }
    }
}

/// A world with a running machine.
fn running() -> World {
    let mut world = World::new(1, Desired::Running, false, false);
    world.settle(|w| matches!(w.worker.state, State::Running { .. }));
    world
}

#[test]
fn a_second_stop_may_shorten_the_grace_but_never_lengthens_it() {
    let mut world = running();
    world.apply(Op::Stop(Some(10_000)));
    let kill_at = |world: &World| match &world.worker.state {
        State::Stopping(stopping) => stopping.kill_at.mono - world.now.mono,
        other => panic!("{other:?}"),
    };
    assert_eq!(kill_at(&world), Duration::from_secs(10));
    world.apply(Op::Stop(Some(60_000)));
    world.apply(Op::Stop(None));
    assert_eq!(kill_at(&world), Duration::from_secs(10));
    world.apply(Op::Stop(Some(0)));
    assert_eq!(kill_at(&world), Duration::ZERO);
}

#[test]
fn a_stop_is_never_undone_by_a_policy() {
    for policy in 0..4 {
        let mut world = World::new(policy, Desired::Running, false, false);
        world.settle(|w| matches!(w.worker.state, State::Running { .. }));
        world.apply(Op::Stop(None));
        world.apply(Op::MachineEnds { code: 1, requested: false });
        assert_eq!(world.worker.state, State::Stopped);
        assert!(world.worker.record.exits[0].requested);
    }
}

#[test]
fn an_automatic_restart_is_counted_and_an_explicit_one_starts_the_count_anew() {
    let mut world = running();
    for restarts in 1..=3 {
        world.apply(Op::MachineEnds { code: 1, requested: false });
        world.settle(|w| matches!(w.worker.state, State::Running { .. }));
        assert_eq!(world.worker.record.restarts, restarts);
    }
    world.apply(Op::Start);
    assert_eq!(world.worker.record.restarts, 3);
    world.apply(Op::Restart(None));
    world.settle(|w| matches!(w.worker.state, State::Running { .. }));
    assert_eq!(world.worker.record.restarts, 0);
}

#[test]
fn a_machine_of_an_earlier_daemon_keeps_its_count_and_generation() {
    let mut world = World::new(1, Desired::Running, true, false);
    world.disk.restarts = 4;
    world.apply(Op::AnswerClaim { fails: None, differs: false });
    assert!(matches!(world.worker.state, State::Running { .. }));
    assert_eq!((world.worker.record.restarts, world.worker.record.generation), (4, 7));
}

#[test]
fn a_configuration_error_is_not_tried_again() {
    let mut world = World::new(1, Desired::Running, false, false);
    world.apply(Op::AnswerClaim { fails: None, differs: false });
    world.apply(Op::AnswerPrepare { fails: Some(Remedy::None) });
    assert!(matches!(world.worker.state, State::Failed { .. }));
    assert!(world.worker.record.exits[0].cause.is_could_not_start());
    world.apply(Op::Reconfigure { policy: 1, restart: true });
    world.settle(|w| matches!(w.worker.state, State::Running { .. }));
}

#[test]
fn one_try_of_a_failing_start_does_not_count_as_a_restart() {
    let mut world = World::new(1, Desired::Running, false, false);
    world.apply(Op::AnswerClaim { fails: None, differs: false });
    for _ in 0..2 {
        world.apply(Op::AnswerPrepare { fails: Some(Remedy::Retry) });
        assert!(matches!(world.worker.state, State::Backoff { .. }));
        world.apply(Op::Pass { ms: 1000 });
    }
    world.apply(Op::AnswerPrepare { fails: Some(Remedy::Retry) });
    let State::Failed { cause } = &world.worker.state else { panic!("{:?}", world.worker.state) };
    assert_eq!(cause.message, "no (3 tries)");
    assert_eq!(world.worker.record.restarts, 0);
}

#[test]
fn whoever_asks_for_a_start_during_the_last_try_has_three_more() {
    let mut world = World::new(1, Desired::Running, false, false);
    world.apply(Op::AnswerClaim { fails: None, differs: false });
    for _ in 0..2 {
        world.apply(Op::AnswerPrepare { fails: Some(Remedy::Retry) });
        world.apply(Op::Pass { ms: 1000 });
    }
    world.apply(Op::Start);
    for _ in 0..2 {
        world.apply(Op::AnswerPrepare { fails: Some(Remedy::Retry) });
        assert!(matches!(world.worker.state, State::Backoff { .. }), "{:?}", world.worker.state);
        world.apply(Op::Pass { ms: 1000 });
    }
    world.apply(Op::AnswerPrepare { fails: Some(Remedy::Retry) });
    assert!(matches!(world.worker.state, State::Failed { .. }), "{:?}", world.worker.state);
}

#[test]
fn a_machine_killed_for_not_booting_is_a_failed_start_and_not_an_endless_loop() {
    let mut world = World::new(1, Desired::Running, false, false);
    world.settle(|w| matches!(w.worker.state, State::Booting { .. }));
    for _ in 0..3 {
        world.settle(|w| matches!(w.worker.state, State::Booting { .. }));
        let due = world.worker.state.next_tick().unwrap().saturating_duration_since(world.now.mono);
        world.apply(Op::Pass { ms: u64::try_from(due.as_millis()).unwrap() + 1 });
        // The shim knows the kill as a stop.
        world.apply(Op::MachineEnds { code: 9, requested: true });
        assert!(!world.worker.record.exits[0].requested);
        world.settle(|w| !matches!(w.worker.state, State::Backoff { .. }));
    }
    assert!(matches!(world.worker.state, State::Failed { .. }), "{:?}", world.worker.state);
}

#[test]
fn a_machine_whose_project_is_not_ready_stays_for_a_look_until_somebody_asks() {
    let mut world = World::new(1, Desired::Running, false, false);
    world.settle(|w| matches!(w.worker.state, State::Booting { .. }));
    world.apply(Op::MachineUnprepared);
    assert_eq!(world.worker.phase(), iii_protocol::api::Phase::Failed);
    assert!(world.worker.state.next_tick().is_none() && world.machine.is_some());
    let before = world.worker.record.generation;
    world.apply(Op::Start);
    world.settle(|w| matches!(w.worker.state, State::Running { .. }));
    assert_eq!(world.worker.record.generation, before + 1);
    assert_eq!(world.worker.record.restarts, 0);
}

#[test]
fn a_new_daemon_finds_a_machine_that_is_not_ready_and_leaves_it_as_it_is() {
    let mut world = World::new(1, Desired::Running, true, false);
    world.machine.as_mut().unwrap().phase = MachinePhase::Unprepared {
        since: world.now.wall,
        what: "install".into(),
        message: "exit code 1".into(),
        hint: None,
    };
    world.apply(Op::AnswerClaim { fails: None, differs: false });
    let State::Unready { cause } = &world.worker.state else { panic!("{:?}", world.worker.state) };
    assert_eq!(cause.message, "install: exit code 1");
    world.apply(Op::MachineEnds { code: 1, requested: false });
    assert!(matches!(world.worker.state, State::Failed { .. }));
}

#[test]
fn an_edit_is_brought_into_the_running_machine_and_another_recipe_into_a_new_one() {
    let mut world = running();
    let generation = world.worker.record.generation;
    world.apply(Op::ProjectSeen { edited: true, differs: false });
    assert!(matches!(world.worker.state, State::Running { .. }));
    assert_eq!((world.resyncs, world.worker.record.generation), (1, generation));
    world.apply(Op::ProjectSeen { edited: true, differs: true });
    world.settle(|w| matches!(w.worker.state, State::Running { .. }));
    assert_eq!((world.resyncs, world.worker.record.generation), (1, generation + 1));
}

#[test]
fn an_edit_during_a_boot_is_looked_at_once_the_workload_runs() {
    let mut world = World::new(1, Desired::Running, false, false);
    world.settle(|w| matches!(w.worker.state, State::Booting { .. }));
    world.apply(Op::ProjectSeen { edited: true, differs: false });
    assert_eq!((world.rechecks, world.resyncs), (0, 0));
    world.settle(|w| matches!(w.worker.state, State::Running { .. }));
    assert_eq!((world.rechecks, world.resyncs), (1, 0));
    assert!(!world.worker.edited);
}

#[test]
fn an_edit_tries_a_worker_anew_that_failed_and_a_first_look_does_not() {
    let mut world = World::new(3, Desired::Running, false, false);
    world.settle(|w| matches!(w.worker.state, State::Running { .. }));
    world.apply(Op::MachineEnds { code: 1, requested: false });
    assert!(matches!(world.worker.state, State::Failed { .. }));
    world.apply(Op::ProjectSeen { edited: false, differs: false });
    assert!(matches!(world.worker.state, State::Failed { .. }));
    world.apply(Op::ProjectSeen { edited: true, differs: false });
    world.settle(|w| matches!(w.worker.state, State::Running { .. }));
    assert_eq!(world.worker.record.restarts, 0);

    let mut world = World::new(1, Desired::Running, false, false);
    world.settle(|w| matches!(w.worker.state, State::Booting { .. }));
    world.apply(Op::MachineUnprepared);
    world.apply(Op::ProjectSeen { edited: false, differs: true });
    assert!(matches!(world.worker.state, State::Unready { .. }));
    world.apply(Op::ProjectSeen { edited: true, differs: false });
    world.settle(|w| matches!(w.worker.state, State::Running { .. }));
}

#[test]
fn an_edit_never_starts_what_somebody_stopped() {
    let mut world = running();
    world.apply(Op::Stop(None));
    world.apply(Op::ProjectSeen { edited: true, differs: true });
    world.settle(|w| w.worker.state == State::Stopped);
    world.apply(Op::ProjectSeen { edited: true, differs: true });
    assert_eq!(world.worker.state, State::Stopped);
}
