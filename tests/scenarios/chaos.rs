//! kill -9 at random moments of start, stop, restart, reload and pull: of the daemon, the shim and the VMM.

use std::time::Duration;

use iii_protocol::api::{Phase, WorkerList};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::bed::Bed;
use super::lifecycle::SERVE;

/// Three victims and five doings in turn: their combinations, and some again at other moments.
const MOMENTS: u64 = 20;

/// A small generator, so that a failure can be repeated: the seed is in the message.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

#[test]
fn kill_9_at_random_moments_leaves_no_stray_and_no_lie() {
    let seed = std::env::var("III_CHAOS_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| {
        u64::from(std::process::id()) * 2_654_435_761
            + u64::from(jiff::Timestamp::now().subsec_nanosecond().unsigned_abs())
    });
    eprintln!("III_CHAOS_SEED={seed}");
    let mut random = Random(seed | 1);
    let bed = Bed::new();
    let reference = bed.script_image("web", SERVE);
    let restart = "restart: { delay: 10ms, max_delay: 100ms }";
    let entry =
        |round: u64| bed.entry("web", &reference, &[restart, &format!("config: {{ ROUND: '{round}' }}")]);
    bed.configure(&[entry(0)]);
    let mut daemon = Some(bed.daemon());
    bed.wait_phase("web", Phase::Running);
    for moment in 0..MOMENTS {
        let doing = ["start", "stop", "restart", "reload", "pull"][(moment % 5) as usize];
        let victim = ["daemon", "shim", "vmm"][(moment % 3) as usize];
        let context = format!("moment {moment}: {victim} during {doing}, III_CHAOS_SEED={seed}");
        eprintln!("{context}");
        let mut command = match doing {
            "reload" => {
                bed.configure(&[entry(moment + 1)]);
                None
            }
            "pull" => {
                let fresh = bed.script_image(&format!("fresh{moment}"), &format!("{SERVE} # {moment}"));
                Some(bed.command(&["worker", "add", &fresh, "--name", "web", "--force"]).spawn().unwrap())
            }
            "start" => {
                bed.iii(&["worker", "stop", "web"]);
                Some(bed.command(&["worker", "start", "web"]).spawn().unwrap())
            }
            verb => Some(bed.command(&["worker", verb, "web"]).spawn().unwrap()),
        };
        std::thread::sleep(Duration::from_millis(random.below(if bed.is_process_tier() {
            150
        } else {
            4000
        })));
        match victim {
            "daemon" => daemon.take().into_iter().for_each(super::bed::Daemon::kill),
            other => {
                let status = bed.status("web");
                let pid = status.and_then(|s| if other == "shim" { s.shim_pid } else { s.vmm_pid });
                if let Some(pid) = pid {
                    // It may have ended in this very moment.
                    let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL);
                }
            }
        }
        if let Some(command) = &mut command {
            command.wait().unwrap();
        }
        daemon = Some(daemon.take().unwrap_or_else(|| bed.daemon()));
        // Whatever happened, one word brings it back, and what is said is so.
        let start = bed.iii(&["worker", "start", "web"]);
        bed.wait_phase("web", Phase::Running);
        assert!(start.code.is_some(), "{context}");
        bed.until(&format!("exactly one shim and one VMM ({context})"), || {
            // Looked at anew each time: the blow may take a moment to show.
            let Some(status) = bed.status("web").filter(|status| status.phase == Phase::Running) else {
                return false;
            };
            let shim = status.shim_pid.map(|pid| i32::try_from(pid).unwrap());
            let vmms = bed.processes_named("__vmm").len();
            bed.processes_named("__shim").into_iter().map(Some).eq([shim])
                && (bed.is_process_tier() || vmms == 1)
        });
        let list: WorkerList = serde_json::from_str(&bed.ok(&["worker", "list", "--json"])).unwrap();
        assert_eq!(list.workers.len(), 1, "{context}");
    }
    daemon.take().unwrap().stop();
    bed.assert_nothing_left();
}
