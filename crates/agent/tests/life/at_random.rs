//! Session frames at random: whatever clients do, the agent lives and holds nothing afterwards.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use iii_protocol::frame::encode;
use iii_protocol::session::{
    EndCause, Exec, KIND_OPEN, KIND_RESIZE, KIND_SIGNAL, KIND_STDIN, Open, Signal, Task, Terminal,
    TerminalSize, VERSION, credit_payload,
};

use crate::client::{Client, OK, exec, outcome, script, worker};
use crate::shim::Shim;

/// Seconds of the test unless `III_FUZZ_SECONDS` says otherwise.
const SECONDS: u64 = 3;
/// Clients at a time.
const CLIENTS: usize = 8;

/// A small generator; its seed is printed when a test fails.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn bytes(&mut self, limit: usize) -> Vec<u8> {
        (0..self.below(limit)).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

fn command(dice: &mut Dice) -> Exec {
    let script_text = [
        "cat",
        "exit 3",
        "yes",
        "yes >&2 | head -c 1000000",
        "trap '' HUP TERM; sleep 600",
        "setsid sleep 600 & exit 1",
        "sh -c 'setsid sh -c \"sleep 600\" & exit' & wait; cat",
        "exec <&- >&- 2>&-; sleep 600",
        "kill -STOP $$",
        "exec bash -i",
        "for i in 1 2 3 4 5 6 7 8; do sleep 600 & done; wait",
    ];
    let mut exec = match dice.below(8) {
        0 => exec(&["no-such-program"]),
        1 => exec(&["/etc"]),
        _ => script(script_text[dice.below(script_text.len())]),
    };
    exec.stdin = dice.below(4) > 0;
    exec.terminal = (dice.below(3) == 0).then_some(Terminal {
        size: TerminalSize { rows: dice.below(70_000) as u16, columns: 80 },
        term: None,
    });
    // A detached command has nothing that ends it in time but this.
    exec.detach = dice.below(10) == 0;
    if exec.detach || dice.below(4) == 0 {
        exec.timeout_ms = Some(dice.below(300) as u64);
    }
    exec
}

fn open(task: Task) -> Vec<u8> {
    serde_json::to_vec(&Open { version: VERSION, task }).expect("json")
}

fn frame(dice: &mut Dice) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (kind, payload) = match dice.below(15) {
        0..=4 => (KIND_STDIN, dice.bytes(70_000)),
        5 => (KIND_SIGNAL, serde_json::to_vec(&Signal { signal: dice.below(66) as i32 }).expect("json")),
        6 => {
            let size = TerminalSize { rows: 3, columns: dice.below(500) as u16 };
            (KIND_RESIZE, serde_json::to_vec(&size).expect("json"))
        }
        7 => (7, credit_payload(dice.below(70_000) as u32).to_vec()),
        8 => (dice.next().to_le_bytes()[0], dice.bytes(40)),
        9 => return dice.bytes(300),
        // Out of place, or the next one of this connection.
        10 => (KIND_OPEN, open(Task::Exec(command(dice)))),
        _ => ([3, 6, 8, 9][dice.below(4)], Vec::new()),
    };
    encode(kind, &payload, &mut bytes).expect("small");
    if dice.below(30) == 0 {
        bytes.truncate(dice.below(bytes.len() + 1));
    }
    bytes
}

/// One client's life; some read, some do not, some leave at once.
fn visit(path: &str, dice: &mut Dice) {
    use std::io::{Read as _, Write as _};
    let Ok(mut stream) = UnixStream::connect(path) else { return };
    let patience = Duration::from_millis(1 + dice.below(50) as u64);
    stream.set_read_timeout(Some(patience)).expect("timeout");
    stream.set_write_timeout(Some(patience)).expect("timeout");
    let task = match dice.below(12) {
        0 => Task::Pack { path: "/etc/hostname".into(), follow: false },
        1 => Task::Update { path: format!("{path}-folder"), changes: dice.below(70_000) as u32 },
        _ => Task::Exec(command(dice)),
    };
    let mut bytes = Vec::new();
    encode(KIND_OPEN, &open(task), &mut bytes).expect("small");
    if dice.below(15) > 0 && stream.write_all(&bytes).is_err() {
        return;
    }
    let mut buffer = vec![0; 100_000];
    for _ in 0..dice.below(30) {
        if dice.below(2) == 0 {
            // A timeout is as good as bytes.
            if matches!(stream.read(&mut buffer), Ok(0)) {
                return;
            }
        } else if stream.write_all(&frame(dice)).is_err() {
            return;
        }
    }
}

#[test]
fn session_frames_at_random_leave_nothing_behind() {
    let seconds = std::env::var("III_FUZZ_SECONDS").ok().map_or(SECONDS, |it| it.parse().expect("seconds"));
    let seed = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_nanos() as u64 | 1;
    eprintln!("seed {seed}");
    let worker = worker();
    assert_eq!(outcome(&worker, exec(&["true"])).0, OK);
    let bare = worker.settled();
    let (path, end) = (worker.path("sessions.sock"), Instant::now() + Duration::from_secs(seconds));
    let visits: usize = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS as u64)
            .map(|number| {
                let path = &path;
                scope.spawn(move || {
                    let mut dice = Dice(seed.wrapping_mul(2 * number + 1));
                    let mut visits = 0;
                    while Instant::now() < end {
                        visit(path, &mut dice);
                        visits += 1;
                    }
                    visits
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().expect("a client")).sum()
    });
    eprintln!("{visits} visits");
    assert!(visits > CLIENTS, "the agent served next to nobody");
    is_well(&worker);
    worker.until_settled(bare);
}

fn is_well(worker: &Shim) {
    let mut client = Client::run(worker, Exec { stdin: true, ..exec(&["cat"]) });
    client.input(b"still here");
    client.end_input();
    assert_eq!(client.finish(), EndCause::Exit { code: 0 });
    assert_eq!(client.text(), "still here");
}
