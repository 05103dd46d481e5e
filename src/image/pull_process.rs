//! `iii __pull`: one pull in a process of its own.
//!
//! Pulling takes tens of MiB (the TLS client with its roots, decompressors, the builder's tree) that an
//! allocator does not give back, and reads what strangers made. The daemon lives for months; this process
//! takes all of that with it when it ends.
//!
//! ```text
//!   daemon ── Order, one line of JSON on stdin, which stays open ──▶ iii __pull
//!          ◀── PullEvent as NDJSON on stdout, Done or Failed at last ──
//! ```
//! The daemon's end closes the child's standard input, and the child leaves at once: what it has fetched so
//! far is kept for the next attempt.

use std::io::{BufRead as _, Read as _, Write as _};
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};

use iii_protocol::api::{ErrorBody, ErrorCode, PullEvent, PulledImage};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use super::reference::Reference;
use super::store::{ImageStore, PullPolicy, RegistrySettings};
use crate::home::Home;

/// The longest order that is read, bytes.
const MAX_ORDER_BYTES: u64 = 1024 * 1024;

/// What the process is to do.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    home: PathBuf,
    reference: String,
    force: bool,
    registries: RegistrySettings,
}

/// Pulls `reference` into the images of `home`, in a process of its own. Dropping the future ends that.
/// `progress` gets what [`ImageStore::ensure`] tells; a full channel skips some.
pub async fn pull(
    home: &Home,
    reference: &Reference,
    policy: PullPolicy,
    settings: &RegistrySettings,
    progress: mpsc::Sender<PullEvent>,
) -> Result<(), ErrorBody> {
    let order = Order {
        home: home.root().to_owned(),
        reference: reference.to_string(),
        force: policy == PullPolicy::Always,
        registries: settings.clone(),
    };
    let mut child = Command::new("/proc/self/exe")
        .arg0("iii")
        .arg("__pull")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // Its own group: Ctrl-C in the daemon's terminal is for the daemon, which ends it.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| ErrorBody {
            code: ErrorCode::Host,
            message: format!("cannot start the process that pulls: {error}"),
            hint: Some("check the limits on processes and memory (`ulimit -a`)".into()),
        })?;
    match follow(&mut child, &order, progress).await {
        Ok(Some(PullEvent::Done { .. })) => Ok(()),
        Ok(Some(PullEvent::Failed { error })) => Err(error),
        Ok(_) => {
            let status = child.wait().await.map_or_else(|error| error.to_string(), |it| it.to_string());
            Err(broken(&format!("the process that pulls ended without a result ({status})")))
        }
        Err(error) => Err(broken(&format!("the process that pulls cannot be followed: {error}"))),
    }
}

/// Passes progress on; returns the last event.
async fn follow(
    child: &mut Child,
    order: &Order,
    progress: mpsc::Sender<PullEvent>,
) -> std::io::Result<Option<PullEvent>> {
    let missing = || std::io::Error::other("its pipes are missing");
    let mut stdin = child.stdin.take().ok_or_else(missing)?;
    let mut line = serde_json::to_vec(order)?;
    line.push(b'\n');
    // One that has ended already shows by its output's end.
    let _ended = stdin.write_all(&line).await;
    let mut lines = BufReader::new(child.stdout.take().ok_or_else(missing)?).lines();
    while let Some(line) = lines.next_line().await? {
        match serde_json::from_str::<PullEvent>(&line)? {
            last @ (PullEvent::Done { .. } | PullEvent::Failed { .. }) => return Ok(Some(last)),
            event => {
                let _skipped = progress.try_send(event);
            }
        }
    }
    drop(stdin);
    Ok(None)
}

fn broken(message: &str) -> ErrorBody {
    ErrorBody {
        code: ErrorCode::Image,
        message: message.to_owned(),
        hint: Some(
            "what was fetched is kept: try again; was it killed, or the machine out of memory?".into(),
        ),
    }
}

/// Entry point of the hidden subcommand.
pub fn run() -> ExitCode {
    let last = match work() {
        Ok(image) => PullEvent::Done { image },
        Err(error) => PullEvent::Failed { error },
    };
    // A daemon that is gone needs no answer.
    match print(&last) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn work() -> Result<PulledImage, ErrorBody> {
    let internal = |what: &str, error: &dyn std::fmt::Display| ErrorBody {
        code: ErrorCode::Internal,
        message: format!("{what}: {error}"),
        hint: None,
    };
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let order = read_order().map_err(|error| internal("no order to pull", &error))?;
    let reference = order.reference.parse::<Reference>().map_err(|error| internal("the order", &error))?;
    let policy = if order.force { PullPolicy::Always } else { PullPolicy::IfMissing };
    let store = ImageStore::new(&Home::at(order.home));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| internal("no runtime", &error))?;
    runtime.block_on(async {
        let image = store.ensure_telling(&reference, policy, &order.registries, |event| {
            // Whoever does not read is gone, and the watch on standard input ends this process.
            let _gone = print(&event);
        });
        image.await.map(|image| PulledImage::from(&image)).map_err(|error| ErrorBody::from(&error))
    })
}

/// Reads the order, then watches for the daemon's end.
fn read_order() -> std::io::Result<Order> {
    let mut stdin = std::io::BufReader::new(std::io::stdin());
    let mut line = Vec::new();
    (&mut stdin).take(MAX_ORDER_BYTES).read_until(b'\n', &mut line)?;
    let order = serde_json::from_slice(&line)?;
    std::thread::Builder::new().name("iii-parent".to_owned()).spawn(move || {
        let _end = std::io::copy(&mut stdin, &mut std::io::sink());
        // Nobody wants the result. Files are published whole or not at all, so this may be at any moment.
        std::process::exit(1);
    })?;
    Ok(order)
}

fn print(event: &PullEvent) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&line)?;
    stdout.flush()
}
