//! `iii worker exec` beside `crun exec`, on the same commands: the same exit code, the same bytes. What is
//! not the same is a row of docs/exec-differences.md.

mod cases;
mod crun;
mod run;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use iii_protocol::api::Phase;
use nix::unistd::geteuid;

use crate::scenarios::Bed;
use crun::Crun;
use run::{Case, Outcome};

/// How much of an output a row shows, in characters.
const SHOWN: usize = 100;
/// How often crun may write on a terminal before what it wrote counts: now and then it adds an empty line to what the
/// command wrote (seen on its side only, and more on a busy machine). What `iii` writes counts the first time.
const CRUN_TRIES: usize = 10;
const WORKLOAD: &str = "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done";

/// What differs, and of which case.
type Key = (String, String);
/// As a row shows it: `crun`, `iii`.
type Shown = (String, String);

#[test]
fn exec_is_that_of_crun_but_for_the_differences_in_the_docs() {
    let bed = Bed::new();
    let folder = bed.project().join("files");
    programs(&folder);
    let reference = bed.script_image("web", WORKLOAD);
    bed.configure(&[bed.entry("web", &reference, &[])]);
    let crun = Crun::start();
    let _daemon = bed.daemon();
    bed.wait_phase("web", Phase::Running);

    let cases = cases::all(&folder.display().to_string());
    let (may, may_not): (Vec<_>, Vec<_>) =
        cases.iter().partition(|case| !case.needs_root || geteuid().is_root());
    let mut rows = rows();
    let mut found = BTreeMap::new();
    for case in &may {
        let ours = case.run(iii(&bed, case));
        let tries = if case.terminal.is_some() { CRUN_TRIES } else { 1 };
        let differences =
            (0..tries).map(|_| differences(case, &case.run(theirs(&crun, case)), &ours, &folder));
        // The first of which all is in the table, or else the last.
        let mut last = Vec::new();
        for it in differences {
            let is_known = it.iter().all(|(key, shown)| rows.get(key) == Some(shown));
            last = it;
            if is_known {
                break;
            }
        }
        found.extend(last);
    }
    for case in &may_not {
        eprintln!("not compared, as only root may: {}", case.name);
    }
    rows.retain(|(name, _), _| !may_not.iter().any(|case| case.name == name));
    let mut wrong = Vec::new();
    for ((name, what), (theirs, ours)) in &found {
        let row = format!("| {name} | {what} | {theirs} | {ours} |");
        match rows.remove(&(name.clone(), what.clone())) {
            None => wrong.push(format!("a difference without a row: {row}")),
            Some(it) if it != (theirs.clone(), ours.clone()) => {
                wrong.push(format!("a row that is no more right: {row} (not {} and {})", it.0, it.1));
            }
            Some(_) => {}
        }
    }
    wrong.extend(rows.keys().map(|(name, what)| format!("a row without a difference: {name}: {what}")));
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), may.len(), wrong.join("\n"));
}

/// Files that both sides see under the same path.
fn programs(folder: &Path) {
    fs::create_dir(folder).unwrap();
    for (name, content, mode) in [
        ("script", "#!/bin/sh\necho \"$0: $*\" | tail -c 12\n", 0o755),
        ("not-executable", "#!/bin/sh\n", 0o644),
        ("no-interpreter", "#!/no/such/interpreter\n", 0o755),
        ("no-first-line", "echo hello\n", 0o755),
        ("empty", "", 0o755),
        ("elf", "\x7fELF but no more", 0o755),
    ] {
        let path = folder.join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
}

fn theirs(crun: &Crun, case: &Case) -> Command {
    let mut options = Vec::new();
    for variable in &case.env {
        options.extend(["-e", variable]);
    }
    if let Some(cwd) = &case.cwd {
        options.extend(["--cwd", cwd]);
    }
    if let Some(user) = case.user {
        options.extend(["-u", user]);
    }
    if case.terminal.is_some() {
        options.push("-t");
    }
    crun.exec(&options, &case.argv)
}

fn iii(bed: &Bed, case: &Case) -> Command {
    let mut args = vec!["worker", "exec"];
    for variable in &case.env {
        args.extend(["-e", variable]);
    }
    if let Some(cwd) = &case.cwd {
        args.extend(["-w", cwd]);
    }
    if let Some(user) = case.user {
        args.extend(["-u", user]);
    }
    if case.terminal.is_some() {
        args.push("-t");
    }
    args.extend(["web", "--"]);
    let mut command = bed.command(&args);
    command.args(&case.argv);
    command
}

fn differences(case: &Case, theirs: &Outcome, ours: &Outcome, folder: &Path) -> Vec<(Key, Shown)> {
    let mut found = Vec::new();
    let mut differ = |what: &str, theirs: String, ours: String| {
        found.push(((case.name.to_owned(), what.to_owned()), (theirs, ours)));
    };
    if theirs.code != ours.code {
        differ("exit code", theirs.code.clone(), ours.code.clone());
    }
    for (what, theirs, ours) in
        [("stdout", &theirs.stdout, &ours.stdout), ("stderr", &theirs.stderr, &ours.stderr)]
    {
        if theirs != ours {
            differ(what, show(theirs, folder), show(ours, folder));
        }
    }
    found
}

/// Bytes as a cell of the table.
fn show(bytes: &[u8], folder: &Path) -> String {
    if bytes.is_empty() {
        return "nothing".to_owned();
    }
    let text = plain(&bytes.escape_ascii().to_string()).replace(&folder.display().to_string(), "DIR");
    let text = text.replace("\\'", "'").replace("\\\"", "\"").replace('`', "'").replace('|', "\\|");
    let cut: String = text.chars().take(SHOWN).collect();
    if cut.len() < text.len() { format!("`{cut}`... ({} bytes)", bytes.len()) } else { format!("`{cut}`") }
}

/// Without the colours and the time that `crun` begins its messages with on a terminal.
fn plain(text: &str) -> String {
    let mut parts = text.split("\\x1b[");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let shown = part.split_once('m').map_or(part, |(_, shown)| shown);
        let is_dated = shown.starts_with(|c: char| c.is_ascii_digit());
        plain += shown.split_once("Z: ").filter(|_| is_dated).map_or(shown, |(_, undated)| undated);
    }
    plain
}

/// The table of the docs; each row has its reason.
fn rows() -> BTreeMap<Key, Shown> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/exec-differences.md");
    let text = fs::read_to_string(&path).unwrap();
    let mut rows = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("| ")).skip(1) {
        let cells: Vec<_> =
            line.replace("\\|", "\0").split('|').map(|it| it.trim().replace('\0', "\\|")).collect();
        let [_, name, what, theirs, ours, why, _] = cells.as_slice() else {
            panic!("a row has five cells: {line}");
        };
        assert!(why.len() > 3, "a row has no reason: {line}");
        let known = rows.insert((name.clone(), what.clone()), (theirs.clone(), ours.clone()));
        assert!(known.is_none(), "a row twice: {line}");
    }
    rows
}
