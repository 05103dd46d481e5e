//! Machines that are tasks, images that are made up.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use iii_protocol::api::{ErrorBody, PullEvent, Refused};
use iii_protocol::exit::{ExitCause, ExitRecord};
use iii_protocol::shim::{MachinePhase, ShimStatus, StopMachine};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::actors::image_puller::ImageSource;
use crate::actors::worker::tests::image;
use crate::image::store::RegistrySettings;
use crate::image::types::Image;
use crate::logs::LogRing;
use crate::vm::launcher::{Adoption, Launcher, MACHINE_QUEUE, Machine, MachineCommand};
use crate::vm::spec::MachineSpec;

/// How the machines of a worker behave.
#[derive(Debug, Clone)]
pub(super) struct Behaviour {
    /// From launch to the workload; `None` hangs.
    pub(super) boot: Option<Duration>,
    /// How long the workload runs by itself, and how it ends.
    pub(super) ends: Option<(Duration, ExitCause)>,
    /// From a polite stop to the end; killed at the end of the grace.
    pub(super) stop_takes: Duration,
    /// Polite stops, and the graces of them, are ignored; only a kill counts.
    pub(super) deaf: bool,
    /// How long the launcher takes to start a shim.
    pub(super) launch_takes: Duration,
    /// The launcher's next answers, instead of a machine.
    pub(super) launch_errors: VecDeque<ErrorBody>,
}

impl Default for Behaviour {
    fn default() -> Behaviour {
        Behaviour {
            boot: Some(Duration::from_millis(100)),
            ends: None,
            stop_takes: Duration::from_millis(50),
            deaf: false,
            launch_takes: Duration::from_millis(10),
            launch_errors: VecDeque::new(),
        }
    }
}

/// The machines of a host, which outlive the daemons.
#[derive(Default)]
pub(super) struct HostState {
    pub(super) behaviours: HashMap<String, Behaviour>,
    pub(super) machines: HashMap<String, FakeMachine>,
    pub(super) ended: HashMap<String, ExitRecord>,
    /// Each launch, in order.
    pub(super) launches: Vec<MachineSpec>,
    /// Each stop request, in order.
    pub(super) stops: Vec<(String, u64)>,
    /// Each request to bring a project up to date, in order.
    pub(super) resyncs: Vec<String>,
    pub(super) adopt_errors: HashMap<String, VecDeque<ErrorBody>>,
    /// What keeps it from running machines.
    pub(super) unable: Option<ErrorBody>,
    launching: HashSet<String>,
}

pub(super) struct FakeMachine {
    pub(super) status: ShimStatus,
    control: mpsc::UnboundedSender<Control>,
    link: Option<mpsc::Sender<ShimStatus>>,
}

enum Control {
    Stop(StopMachine),
    End(ExitCause),
    /// The shim is killed: its link ends without a last word.
    Vanish,
}

#[derive(Clone, Default)]
pub(super) struct FakeHost(Arc<Mutex<HostState>>);

impl FakeHost {
    pub(super) fn lock(&self) -> MutexGuard<'_, HostState> {
        self.0.lock().unwrap()
    }

    pub(super) fn behave(&self, worker: &str, behaviour: Behaviour) {
        self.lock().behaviours.insert(worker.into(), behaviour);
    }

    pub(super) fn launches_of(&self, worker: &str) -> usize {
        self.lock().launches.iter().filter(|spec| spec.worker == worker).count()
    }

    pub(super) fn machines(&self) -> Vec<String> {
        let mut names: Vec<String> = self.lock().machines.keys().cloned().collect();
        names.sort();
        names
    }

    /// The workload ends by itself.
    pub(super) fn end(&self, worker: &str, cause: ExitCause) {
        self.lock().machines[worker].control.send(Control::End(cause)).unwrap();
    }

    /// Kill -9 of the shim.
    pub(super) fn vanish(&self, worker: &str) {
        self.lock().machines[worker].control.send(Control::Vanish).unwrap();
    }

    fn set(&self, worker: &str, phase: MachinePhase) {
        let link = {
            let mut host = self.lock();
            let machine = host.machines.get_mut(worker).unwrap();
            machine.status.phase = phase;
            machine.link.clone().map(|link| (link, machine.status.clone()))
        };
        if let Some((link, status)) = link {
            let _gone = link.try_send(status);
        }
    }

    /// A machine as its daemon gets it. The link of an earlier daemon ends.
    fn link(&self, worker: &str) -> Machine {
        let (link, events) = mpsc::channel(MACHINE_QUEUE);
        let (commands, mut orders) = mpsc::channel(MACHINE_QUEUE);
        let mut host = self.lock();
        let machine = host.machines.get_mut(worker).unwrap();
        link.try_send(machine.status.clone()).unwrap();
        machine.link = Some(link);
        let (control, state, name) = (machine.control.clone(), self.clone(), worker.to_owned());
        tokio::spawn(async move {
            while let Some(command) = orders.recv().await {
                match command {
                    MachineCommand::Stop(stop) => {
                        state.lock().stops.push((name.clone(), stop.grace_ms));
                        let _ended = control.send(Control::Stop(stop));
                    }
                    MachineCommand::Resync => state.lock().resyncs.push(name.clone()),
                }
            }
        });
        Machine { commands, events }
    }

    fn start_shim(&self, spec: &MachineSpec) {
        let (control, orders) = mpsc::unbounded_channel();
        let deadline = Timestamp::now() + SignedDuration::from_millis(spec.boot_timeout_ms as i64);
        let status = ShimStatus {
            worker: spec.worker.clone(),
            generation: spec.generation,
            spec_hash: spec.hash(),
            shim_pid: 1000 + spec.generation as u32,
            vmm_pid: Some(2000 + spec.generation as u32),
            phase: MachinePhase::Booting { since: Timestamp::now(), deadline, detail: None },
            next_seq: 0,
            refused: Refused::default(),
            activity: None,
        };
        let machine = FakeMachine { status, control, link: None };
        let before = self.lock().machines.insert(spec.worker.clone(), machine);
        assert!(before.is_none(), "two machines of `{}`", spec.worker);
        tokio::spawn(run_machine(self.clone(), spec.clone(), orders));
    }
}

async fn run_machine(host: FakeHost, spec: MachineSpec, mut orders: mpsc::UnboundedReceiver<Control>) {
    let behaviour = host.lock().behaviours.get(&spec.worker).cloned().unwrap_or_default();
    let born = Instant::now();
    let runs_at = behaviour.boot.map(|boot| born + boot);
    let ends_at = behaviour.ends.as_ref().zip(runs_at).map(|((after, _), runs)| runs + *after);
    let mut running: Option<Instant> = None;
    let mut down_at: Option<(Instant, ExitCause)> = None;
    let at = |when: Option<Instant>| async move {
        match when {
            Some(when) => tokio::time::sleep_until(when).await,
            None => std::future::pending().await,
        }
    };
    let cause = loop {
        tokio::select! {
            biased;
            () = at(down_at.as_ref().map(|(when, _)| *when)) => break down_at.unwrap().1,
            () = at(runs_at.filter(|_| running.is_none() && down_at.is_none())) => {
                running = Some(Instant::now());
                host.set(&spec.worker, MachinePhase::Running { since: Timestamp::now() });
            }
            () = at(ends_at) => break behaviour.ends.unwrap().1,
            order = orders.recv() => match order.unwrap() {
                Control::End(cause) => break cause,
                Control::Vanish => {
                    host.lock().machines.remove(&spec.worker);
                    return;
                }
                Control::Stop(StopMachine { grace_ms }) => {
                    if behaviour.deaf && grace_ms > 0 {
                        continue;
                    }
                    let now = Instant::now();
                    let grace = Duration::from_millis(grace_ms);
                    let (end, signal) = match behaviour.stop_takes <= grace {
                        true => (now + behaviour.stop_takes, 15),
                        false => (now + grace, 9),
                    };
                    if down_at.as_ref().is_none_or(|(earlier, _)| end < *earlier) {
                        down_at = Some((end, ExitCause::Signal { signal }));
                        let running_since = running.map(|_| Timestamp::now());
                        let deadline = Timestamp::now() + SignedDuration::from_millis(grace_ms as i64);
                        host.set(&spec.worker, MachinePhase::Stopping { running_since, deadline });
                    }
                }
            },
        }
    };
    let exit = ExitRecord {
        generation: spec.generation,
        at: Timestamp::now(),
        uptime_ms: running.map_or(0, |since| since.elapsed().as_millis() as u64),
        cause,
        requested: false,
    };
    host.set(&spec.worker, MachinePhase::Ended { exit: exit.clone() });
    let mut state = host.lock();
    let machine = state.machines.remove(&spec.worker).unwrap();
    if machine.link.is_none_or(|link| link.is_closed()) {
        state.ended.insert(spec.worker, exit);
    }
}

/// A launch that is called off is under way no longer.
struct Launching(FakeHost, String);

impl Drop for Launching {
    fn drop(&mut self) {
        self.0.lock().launching.remove(&self.1);
    }
}

impl Launcher for FakeHost {
    fn check(&self) -> BoxFuture<'static, Result<(), ErrorBody>> {
        std::future::ready(self.lock().unable.clone().map_or(Ok(()), Err)).boxed()
    }

    fn launch(
        &self,
        spec: MachineSpec,
        _ring: Arc<LogRing>,
    ) -> BoxFuture<'static, Result<Machine, ErrorBody>> {
        let host = self.clone();
        async move {
            let (takes, error) = {
                let mut state = host.lock();
                state.launches.push(spec.clone());
                assert!(!state.launching.contains(&spec.worker), "two launches of `{}`", spec.worker);
                state.launching.insert(spec.worker.clone());
                let behaviour = state.behaviours.entry(spec.worker.clone()).or_default();
                (behaviour.launch_takes, behaviour.launch_errors.pop_front())
            };
            let under_way = Launching(host.clone(), spec.worker.clone());
            tokio::time::sleep(takes).await;
            drop(under_way);
            if let Some(error) = error {
                return Err(error);
            }
            host.start_shim(&spec);
            Ok(host.link(&spec.worker))
        }
        .boxed()
    }

    fn adopt(&self, worker: &str, _ring: Arc<LogRing>) -> BoxFuture<'static, Result<Adoption, ErrorBody>> {
        let (host, worker) = (self.clone(), worker.to_owned());
        async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            {
                let mut state = host.lock();
                if let Some(error) = state.adopt_errors.get_mut(&worker).and_then(VecDeque::pop_front) {
                    return Err(error);
                }
                if let Some(exit) = state.ended.remove(&worker) {
                    return Ok(Adoption::Ended(exit));
                }
                if !state.machines.contains_key(&worker) {
                    return Ok(Adoption::Nothing);
                }
            }
            Ok(Adoption::Running(host.link(&worker)))
        }
        .boxed()
    }

    fn running(&self) -> Vec<String> {
        self.machines()
    }
}

/// Images that are here, and answers to pulls of those that are not.
#[derive(Clone, Default)]
pub(super) struct FakeImages(pub(super) Arc<Mutex<ImagesState>>);

#[derive(Default)]
pub(super) struct ImagesState {
    pub(super) here: HashMap<String, Image>,
    /// How long a pull takes.
    pub(super) takes: Duration,
    /// The next answers, instead of an image.
    pub(super) errors: VecDeque<ErrorBody>,
    pub(super) panics: bool,
    /// References whose root disk is damaged.
    pub(super) damaged: HashSet<String>,
    /// Looks at root disks, in order.
    pub(super) checks: Vec<String>,
    pub(super) pulls: Vec<(String, bool)>,
    pub(super) at_once: usize,
    pub(super) most_at_once: usize,
}

impl ImageSource for FakeImages {
    fn ensure(
        &self,
        reference: &str,
        force: bool,
        _registries: RegistrySettings,
        progress: mpsc::Sender<PullEvent>,
    ) -> BoxFuture<'static, Result<Image, ErrorBody>> {
        let (images, reference) = (self.clone(), reference.to_owned());
        async move {
            let (takes, error) = {
                let mut state = images.0.lock().unwrap();
                state.pulls.push((reference.clone(), force));
                state.at_once += 1;
                state.most_at_once = state.most_at_once.max(state.at_once);
                (state.takes, state.errors.pop_front())
            };
            let total_bytes = 2 << 20;
            let digest = "sha256:00".to_owned();
            progress.send(PullEvent::Resolved { digest, layers: 2, total_bytes }).await.unwrap();
            for (n, layer) in ["a", "b"].into_iter().enumerate() {
                tokio::time::sleep(takes / 2).await;
                let digest = layer.to_owned();
                let (done_bytes, total_bytes) = (1 << 20, 1 << 20);
                let event = PullEvent::Layer { digest, done_bytes, total_bytes, cached: n == 5 };
                let _gone = progress.send(event).await;
            }
            let mut state = images.0.lock().unwrap();
            state.at_once -= 1;
            let panics = std::mem::take(&mut state.panics);
            if panics {
                drop(state);
                panic!("a pull that panics, as this test wants it");
            }
            match error {
                Some(error) => Err(error),
                None => {
                    state.here.insert(reference, image());
                    Ok(image())
                }
            }
        }
        .boxed()
    }

    fn forget_if_damaged(&self, reference: &str) -> BoxFuture<'static, Result<bool, ErrorBody>> {
        let mut state = self.0.lock().unwrap();
        state.checks.push(reference.to_owned());
        let damaged = state.damaged.remove(reference);
        if damaged {
            state.here.remove(reference);
        }
        std::future::ready(Ok(damaged)).boxed()
    }

    fn lookup(&self, reference: &str) -> Option<Image> {
        self.0.lock().unwrap().here.get(reference).cloned()
    }
}
