//! kill -9 at random moments of start, stop, restart, reload and pull: of the daemon, the shim and the VMM.

mod doing;
mod truth;

use std::collections::BTreeMap;
use std::time::Duration;

use iii_protocol::api::{Desired, Phase, WorkerStatus};
use iii_protocol::exit::{ExitCause, ExitRecord};

use super::bed::{Bed, Daemon};
use doing::{Doing, Operation, Stage};
use truth::{Events, Machines, images_are_whole, is_alive, kill_9, settled, told_offline};

/// Kills that have to hit: three victims and five doings in turn, all of their combinations and some again.
const KILLS: usize = 20;
/// How often one kill is tried: it misses when the doing was faster, or had no such victim.
const TRIES: u32 = 8;

/// A small generator, so that a failure can be repeated: the seed is in the message.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }

    fn moment(&mut self, limit: Duration) -> Duration {
        Duration::from_micros(self.below(u64::try_from(limit.as_micros()).unwrap()))
    }
}

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Daemon,
    Shim,
    Vmm,
}

/// All that one kill is about.
struct Chaos {
    bed: Bed,
    stage: Stage,
    random: Random,
    /// While one runs.
    daemon: Option<Daemon>,
    /// How long each doing takes if nobody disturbs it.
    lengths: BTreeMap<Doing, Duration>,
}

/// A kill that hit.
struct Hit {
    /// Of the shim or the VMM; of the daemon it is not needed.
    pid: i32,
    /// Of the machine that it was a part of.
    generation: u64,
}

#[test]
fn twenty_kills_at_random_moments_leave_no_stray_no_half_image_and_no_lie() {
    let seed = std::env::var("III_CHAOS_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| {
        u64::from(std::process::id()) * 2_654_435_761
            + u64::from(jiff::Timestamp::now().subsec_nanosecond().unsigned_abs())
    });
    eprintln!("III_CHAOS_SEED={seed}");
    let mut chaos = Chaos::new(seed);
    let mut hits: BTreeMap<(Doing, Victim), u32> = BTreeMap::new();
    for kill in 0..KILLS {
        let doing = Doing::ALL[kill % Doing::ALL.len()];
        let victim = [Victim::Daemon, Victim::Shim, Victim::Vmm][kill % 3];
        let tries = chaos.until_it_hits(doing, victim, &format!("kill {kill}, III_CHAOS_SEED={seed}"));
        *hits.entry((doing, victim)).or_default() += 1;
        eprintln!("kill {kill}: {victim:?} during {doing:?}, try {tries}");
    }
    assert_eq!(hits.values().sum::<u32>() as usize, KILLS);
    assert_eq!(hits.len(), Doing::ALL.len() * 3, "every victim during everything: {hits:?}");
    chaos.ends();
}

impl Chaos {
    /// A worker that runs, and a measure of how long everything takes that will be disturbed.
    fn new(seed: u64) -> Chaos {
        let bed = Bed::new();
        let stage = Stage::new(&bed);
        let daemon = Some(bed.daemon());
        bed.wait_phase("web", Phase::Running);
        let mut chaos = Chaos { bed, stage, random: Random(seed | 1), daemon, lengths: BTreeMap::new() };
        for doing in Doing::ALL {
            let before = chaos.prepare(doing);
            let mut operation = chaos.stage.begin(&chaos.bed, doing, &before, None);
            operation.open();
            let length = operation.run_to_its_end(&chaos.bed);
            chaos.lengths.insert(doing, length);
            chaos.recover(doing, "nothing was killed yet");
        }
        chaos
    }

    /// The worker runs, or for a start is stopped.
    fn prepare(&self, doing: Doing) -> WorkerStatus {
        if doing == Doing::Start {
            self.bed.ok(&["worker", "stop", "web"]);
        }
        self.bed.status("web").unwrap()
    }

    /// How many tries it took.
    fn until_it_hits(&mut self, doing: Doing, victim: Victim, context: &str) -> u32 {
        let mut limit = self.lengths[&doing];
        for attempt in 1..=TRIES {
            let context = format!("{victim:?} during {doing:?}, {context}, try {attempt}");
            let was_hit = self.strike(doing, victim, limit, &context);
            self.recover(doing, &context);
            if was_hit {
                return attempt;
            }
            // It was too late: much earlier.
            limit /= 4;
        }
        panic!("{victim:?} during {doing:?} was never hit in {TRIES} tries ({context})");
    }

    /// One try, and a look at whether what is shown afterwards is so. Whether the kill hit.
    fn strike(&mut self, doing: Doing, victim: Victim, limit: Duration, context: &str) -> bool {
        let before = self.prepare(doing);
        let machine = Machines::of(&self.bed).only(context);
        let events = Events::of(&self.bed, "web");
        // Half of the pulls are hit while a layer is on its way, the others later.
        let gate = (doing == Doing::Pull).then(|| self.random.below(doing::PULLED_BYTES as u64) as usize);
        let mut operation = self.stage.begin(&self.bed, doing, &before, gate);
        let stands = self.random.below(2) == 0;
        if !stands {
            operation.open();
        }
        if !(gate.is_some() && stands) {
            std::thread::sleep(self.random.moment(limit));
        }
        let hit = self.kill(victim, &mut operation, &before, machine, context);
        operation.open();
        match (&hit, victim) {
            (Some(_), Victim::Daemon) => told_offline(&self.bed, context),
            (Some(hit), _) => events.tell_the_end_of(hit, victim, self.bed.patience(), context),
            (None, _) => {}
        }
        let code = operation.end();
        if victim == Victim::Daemon && hit.is_some() {
            self.daemon = Some(self.bed.daemon());
        }
        let status = settled(&self.bed, self.daemon.as_ref().unwrap(), context);
        let promised = match (doing, code) {
            (Doing::Stop, Some(0)) => Some(Desired::Stopped),
            (Doing::Stop, _) => None,
            _ if hit.is_some() && victim == Victim::Daemon => None,
            _ => Some(Desired::Running),
        };
        assert!(promised.is_none_or(|desired| status.desired == desired), "{context}: {status:#?}");
        if let Some(hit) = &hit {
            events.never_show(hit, context);
        }
        hit.is_some()
    }

    /// Kills the victim if the operation is still under way, and waits for a victim that is to come.
    fn kill(
        &mut self,
        victim: Victim,
        operation: &mut Operation,
        before: &WorkerStatus,
        machine: Option<(i32, i32)>,
        context: &str,
    ) -> Option<Hit> {
        if victim == Victim::Daemon {
            if !operation.is_under_way(&self.bed) {
                return None;
            }
            let daemon = self.daemon.take().unwrap();
            let pid = i32::try_from(daemon.pid()).unwrap();
            daemon.kill();
            return Some(Hit { pid, generation: 0 });
        }
        // Looking for processes takes longer than some of what is disturbed: what was there is known already.
        let old = machine.map(|(shim, vmm)| if victim == Victim::Shim { shim } else { vmm });
        let pid = loop {
            if !operation.is_under_way(&self.bed) {
                return None;
            }
            if let Some(pid) = old.filter(|pid| kill_9(*pid)) {
                break pid;
            }
            let machines = Machines::of(&self.bed);
            let pids = if victim == Victim::Shim { machines.shims } else { machines.vmms };
            if let Some(pid) = pids.into_iter().find(|pid| kill_9(*pid)) {
                break pid;
            }
        };
        self.bed.until(&format!("{pid} is dead ({context})"), || !is_alive(pid));
        Some(Hit { pid, generation: before.generation + u64::from(old != Some(pid)) })
    }

    /// One word brings everything back, and a pull that is repeated leaves whole images.
    fn recover(&mut self, doing: Doing, context: &str) {
        let again = match doing {
            Doing::Pull => self.stage.add_again(),
            _ => vec!["worker", "start", "web"],
        };
        let run = self.bed.iii(&again);
        assert_eq!(run.code, Some(0), "{context}: {again:?}: {}", run.stderr);
        let status = settled(&self.bed, self.daemon.as_ref().unwrap(), context);
        assert_eq!(status.phase, Phase::Running, "{context}");
        if doing == Doing::Pull {
            images_are_whole(&self.bed, context);
        }
    }

    fn ends(mut self) {
        self.daemon.take().unwrap().stop();
        self.bed.assert_nothing_left();
        images_are_whole(&self.bed, "at the end");
    }
}

impl Victim {
    /// Whether a record tells the truth about a machine of which this was killed. An end that was asked for may have been
    /// there before the kill; a workload that never ran could not start.
    fn is_told_by(self, exit: &ExitRecord) -> bool {
        let own = match self {
            Victim::Shim => exit.cause == ExitCause::ShimDied,
            Victim::Vmm => matches!(exit.cause, ExitCause::VmmDied { .. }),
            Victim::Daemon => false,
        };
        own || exit.requested || exit.cause.is_could_not_start() && exit.uptime_ms == 0
    }
}
