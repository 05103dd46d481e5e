//! docs/protocol.md is enough to write a client: one in another language.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use super::lifecycle::web;

#[test]
fn a_client_in_python_gets_bytes_and_exit_code() {
    let (bed, _, _daemon) = web();
    let client = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/session.py");
    let run = |worker: &str, script: &str, input: &[u8]| {
        let mut child = Command::new("python3")
            .arg(&client)
            .arg(bed.socket().unwrap())
            .args([worker, "/bin/sh", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let feeder = std::thread::spawn(move || {
            let _ = stdin.write_all(&input);
        });
        let output = child.wait_with_output().unwrap();
        feeder.join().unwrap();
        (output.status.code(), output.stdout, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    // Several windows each way.
    let input: Vec<u8> = (0..1_500_000_u32).map(|i| (i % 253) as u8).collect();
    let (code, stdout, stderr) = run("web", "cat; echo oops >&2; exit 7", &input);
    assert_eq!((code, stderr.as_str()), (Some(7), "oops\n"));
    assert!(stdout == input, "{} of {} bytes", stdout.len(), input.len());
    assert_eq!(run("web", "kill -9 $$", b"").0, Some(137));
    let (code, _, stderr) = run("wbe", "true", b"");
    assert_eq!(code, Some(1));
    assert!(stderr.contains("not-found"), "{stderr}");
}
