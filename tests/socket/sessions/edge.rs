//! The daemon's side: who gets a session, and what becomes of one.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use iii::daemon::sessions::MAX_WAITING_BYTES;
use iii_protocol::api::{ErrorBody, ErrorCode, Phase, WorkerStatus};
use iii_protocol::exit::ExitCause;
use iii_protocol::frame::encode;
use iii_protocol::session::{KIND_STDOUT, MAX_DATA_BYTES, UPGRADE};

use super::Bench;
use super::agent::Agent;
use crate::fake::{Project, exited, status};

/// A client that is not the CLI, after this head of a request.
fn ask(project: &Project, head: &str) -> UnixStream {
    let socket = project.ctx.home.daemon_socket(&project.ctx.project);
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(head.replace('\n', "\r\n").as_bytes()).unwrap();
    stream
}

fn head(worker: &str, headers: &str) -> String {
    format!("POST /v1/workers/{worker}/session HTTP/1.1\nHost: iii\n{headers}\n")
}

pub(super) fn upgrading(project: &Project, worker: &str) -> UnixStream {
    ask(project, &head(worker, &format!("Connection: Upgrade\nUpgrade: {UPGRADE}\n")))
}

/// Status and body of an answer that is no session.
fn refusal(mut stream: UnixStream) -> (u16, ErrorBody) {
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"}") {
        stream.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    (code, serde_json::from_str(body).unwrap())
}

/// Reads the answer's head, to its last byte.
pub(super) fn switched(stream: &mut UnixStream) {
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    let answer = String::from_utf8(answer).unwrap().to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 101 "), "{answer}");
    assert!(answer.contains("upgrade: iii-session/1"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_the_right_upgrade_is_told_what_it_needs() {
    let bench = Bench::new().await;
    for headers in [
        "",
        "Connection: Upgrade\nUpgrade: websocket\n",
        "Upgrade: iii-session/1\n",
        "Connection: Upgrade\nUpgrade: iii-session/2\n",
    ] {
        let (code, error) = refusal(ask(&bench.project, &head("web", headers)));
        assert_eq!((code, error.code), (400, ErrorCode::BadRequest), "{headers}");
        assert!(error.hint.unwrap().contains("Upgrade: iii-session/1"));
    }
    let old = head("web", "Connection: Upgrade\nUpgrade: iii-session/1\n").replace("HTTP/1.1", "HTTP/1.0");
    assert_eq!(refusal(ask(&bench.project, &old)).0, 400);
    bench.daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_has_no_agent_now_is_refused_with_its_state_and_what_to_do() {
    let bench = Bench::new().await;
    let failed = WorkerStatus {
        cause: Some(ErrorBody {
            code: ErrorCode::Image,
            message: "there is no such image".to_owned(),
            hint: Some("check its name".to_owned()),
        }),
        ..status("web", Phase::Failed)
    };
    let crashed = |phase| exited(status("web", phase), ExitCause::Exit { code: 7 });
    for (status, told, hint) in [
        (status("web", Phase::Stopped), "`web` is stopped", "iii worker start web"),
        (status("web", Phase::Preparing), "still preparing", "waits until it runs"),
        (status("web", Phase::Booting), "still booting", "waits until it runs"),
        (status("web", Phase::Stopping), "is stopping", "iii worker start web"),
        (crashed(Phase::Backoff), "ended (exit 7) and waits", "iii worker logs web"),
        (crashed(Phase::CrashLoop), "again and again (exit 7)", "iii worker logs web"),
        (failed, "has failed: there is no such image", "check its name"),
    ] {
        bench.project.add(status);
        let (code, error) = refusal(upgrading(&bench.project, "web"));
        assert_eq!((code, error.code), (409, ErrorCode::Conflict), "{error:?}");
        assert!(error.message.contains(told), "{error:?}");
        assert!(error.hint.as_deref().unwrap().contains(hint), "{error:?}");
    }
    let (code, error) = refusal(upgrading(&bench.project, "wbe"));
    assert_eq!((code, error.hint.as_deref()), (404, Some("did you mean `web`?")));
    bench.daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_without_its_socket_is_an_error_of_the_host() {
    let bench = Bench::new().await;
    bench.project.add(status("db", Phase::Running));
    let (code, error) = refusal(upgrading(&bench.project, "db"));
    assert_eq!((code, error.code), (503, ErrorCode::Host));
    assert!(error.message.contains("nobody listens on its session socket"), "{error:?}");
    // One that a killed machine left.
    drop(Agent::listen(&bench.project, "db"));
    assert_eq!(refusal(upgrading(&bench.project, "db")).0, 503);
    bench.daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_go_both_ways_as_they_are_and_the_last_ones_arrive() {
    let bench = Bench::new().await;
    // What is sent right behind the request belongs to the session.
    let mut request = head("web", &format!("Connection: upgrade, foo\nUpgrade: {UPGRADE}\n"));
    request.push_str("early");
    let mut client = ask(&bench.project, &request);
    let mut guest = bench.agent.accept().stream;
    switched(&mut client);
    let mut early = [0; 5];
    guest.read_exact(&mut early).unwrap();
    assert_eq!(&early, b"early");
    client.write_all(b"\0\xff no frame at all").unwrap();
    let mut heard = [0; 18];
    guest.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"\0\xff no frame at all");

    // More than the sockets hold, then gone: all of it is still delivered, and then the end.
    let words = vec![7; 4 << 20];
    guest.write_all(&words).unwrap();
    drop(guest);
    // The client's own words are no obstacle.
    client.write_all(b"anybody there?").unwrap();
    let mut all = Vec::new();
    match client.read_to_end(&mut all) {
        Ok(_) => {}
        // How the end of a socket looks whose other side was sent something that it never read.
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
    assert!(all == words, "{} bytes", all.len());
    bench.daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_in_pieces_arrive_whatever_the_pieces_are_and_a_last_one_that_is_cut_off_too() {
    let bench = Bench::new().await;
    let mut client = upgrading(&bench.project, "web");
    let mut guest = bench.agent.accept().stream;
    switched(&mut client);
    let mut frames = Vec::new();
    for size in [1, 70_000, MAX_DATA_BYTES, 3, 600_000] {
        let payload: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        encode(KIND_STDOUT, &payload, &mut frames).unwrap();
    }
    let sent = frames.clone();
    let guest = std::thread::spawn(move || {
        for piece in sent.chunks(40_001) {
            guest.write_all(piece).unwrap();
        }
        guest
    });
    let mut heard = vec![0; frames.len()];
    client.read_exact(&mut heard).unwrap();
    assert!(heard == frames);
    let mut guest = guest.join().unwrap();
    guest.write_all(&frames[..4]).unwrap();
    drop(guest);
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, frames[..4]);
    bench.daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_is_told_to_the_guest_at_once() {
    let bench = Bench::new().await;
    let mut client = upgrading(&bench.project, "web");
    let mut guest = bench.agent.accept();
    switched(&mut client);
    drop(client);
    assert_eq!(guest.next(), None);
    bench.daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_never_keeps_the_guest_from_writing_and_too_much_ends_the_session() {
    let bench = Bench::new().await;
    let mut client = upgrading(&bench.project, "web");
    let mut guest = bench.agent.accept().stream;
    switched(&mut client);
    // As much as a guest may have on the way, though nobody reads it. Blocking: it would hang here.
    guest.write_all(&vec![1; MAX_WAITING_BYTES / 2]).unwrap();
    let flood = guest.write_all(&vec![1; 4 * MAX_WAITING_BYTES]);
    flood.expect_err("the session is closed");
    let mut all = Vec::new();
    client.read_to_end(&mut all).unwrap();
    assert!(all.len() <= 3 * MAX_WAITING_BYTES, "{}", all.len());
    bench.daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_daemon_is_the_end_of_its_sessions() {
    let bench = Bench::new().await;
    let mut client = upgrading(&bench.project, "web");
    let mut guest = bench.agent.accept();
    switched(&mut client);
    bench.daemon.end().await;
    assert_eq!(guest.next(), None);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_accepts_slowly_is_waited_for() {
    let bench = Bench::new().await;
    // Many more than its backlog and than are let through at a time.
    let mut clients: Vec<_> = (0..64).map(|_| upgrading(&bench.project, "web")).collect();
    let guests: Vec<_> = clients.iter().map(|_| bench.agent.accept()).collect();
    clients.iter_mut().for_each(switched);
    drop(guests);
    bench.daemon.end().await;
}
