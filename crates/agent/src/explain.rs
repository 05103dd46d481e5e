//! Which file a command means, and why executing it failed, in words that name the real cause.
//!
//! `execve` says "no such file" for a missing program and for a missing interpreter alike, and "exec
//! format error" for another CPU's program and for a script without `#!` alike; the file's first bytes tell
//! them apart (elf(5), execve(2)).

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::error::{Fault, StartError};

/// The most files of one name that are tried, one after the other.
const MAX_CANDIDATES: usize = 4096;
/// Bytes of a program looked at for its `#!` line or ELF header.
const HEAD_BYTES: usize = 256;
/// Program headers looked at for an ELF interpreter; real programs have about a dozen.
const MAX_PROGRAM_HEADERS: usize = 64;
/// The longest interpreter path accepted: the kernel's PATH_MAX.
const MAX_INTERPRETER_BYTES: usize = 4096;

const HINT_COMMAND: &str =
    "check the image's Entrypoint and Cmd; a path must exist in the image, a bare name must be in PATH";

/// The files that `program` may mean, best first: itself when it has a slash, else those of that name in
/// `search`. Which of them the user may execute is known only to a process of that user. Relative names
/// are meant from `cwd`.
pub(crate) fn look_up(program: &str, search: &str, cwd: &Path) -> Result<Vec<PathBuf>, StartError> {
    if program.is_empty() {
        return Err(StartError::new("exec", "the command is an empty string")
            .hint(HINT_COMMAND)
            .fault(Fault::NotFound));
    }
    if program.contains('/') {
        return Ok(vec![PathBuf::from(program)]);
    }
    // An empty entry means the working directory.
    let folders = search.split(':').map(|folder| if folder.is_empty() { "." } else { folder });
    let found: Vec<PathBuf> = folders
        .map(|folder| Path::new(folder).join(program))
        .filter(|candidate| cwd.join(candidate).is_file())
        .take(MAX_CANDIDATES)
        .collect();
    if found.is_empty() {
        return Err(StartError::new("exec", format!("`{program}`: not found in PATH ({search})"))
            .hint(HINT_COMMAND)
            .fault(Fault::NotFound));
    }
    Ok(found)
}

/// Why `execve` of `program` by the user `uid` in `cwd` failed with `errno`.
pub(crate) fn explain(program: &Path, cwd: &Path, errno: Errno, uid: u32) -> StartError {
    let shown = program.display();
    let program = &cwd.join(program);
    let error = |message: String| {
        StartError::new("exec", format!("`{shown}`: {message}")).fault(Fault::CannotExecute)
    };
    match errno {
        Errno::ENOENT if program.exists() => match interpreter(program) {
            Some(interpreter) => {
                error(format!("its interpreter `{interpreter}` does not exist in the image"))
                    .hint(interpreter_hint(&interpreter))
            }
            None => error("no such file or directory (the file is there, its interpreter is not)".into())
                .hint(HINT_COMMAND),
        },
        Errno::ENOENT => error("no such file or directory".into()).hint(HINT_COMMAND).fault(Fault::NotFound),
        Errno::EACCES if program.is_dir() => error("is a directory".into()).hint(HINT_COMMAND),
        Errno::EACCES => explain_denied(program, uid, &error),
        Errno::ENOEXEC => explain_format(program, &error),
        Errno::E2BIG => error("argument list too long".into())
            .hint("arguments and environment together are limited to a quarter of the stack (2 MiB)"),
        other => error(other.desc().to_lowercase()),
    }
}

fn explain_denied(program: &Path, uid: u32, error: &dyn Fn(String) -> StartError) -> StartError {
    match std::fs::metadata(program) {
        Ok(meta) if meta.permissions().mode() & 0o111 == 0 => {
            error("permission denied (the file is not executable)".into())
                .hint("set its executable bit when building the image: `RUN chmod +x ...`")
        }
        Ok(meta) if !meta.is_file() => error("permission denied (not a regular file)".into()),
        _ => error(format!("permission denied for user {uid}"))
            .hint("the image's User must be able to read and execute it, and to enter its folders"),
    }
}

fn explain_format(program: &Path, error: &dyn Fn(String) -> StartError) -> StartError {
    let head = head(program);
    match elf_machine(&head) {
        Some(machine) if machine != MACHINE => {
            let theirs = machine_name(machine);
            let ours = machine_name(MACHINE);
            error(format!("exec format error (built for {theirs}, this machine is {ours})"))
                .hint(format!("use an image that has a linux/{} variant", docker_arch()))
        }
        Some(_) => error("exec format error (a damaged ELF file)".into()),
        None if head.is_empty() => error("exec format error (the file is empty)".into()),
        None => error("exec format error (neither an ELF program nor a script with a `#!` line)".into())
            .hint("start a script with `#!/bin/sh`, or run it as `sh <script>`"),
    }
}

fn interpreter_hint(interpreter: &str) -> &'static str {
    if interpreter.contains("ld-linux") {
        "the program is linked against glibc: use a glibc image (Debian, Ubuntu), or link it statically"
    } else if interpreter.contains("ld-musl") {
        "the program is linked against musl: use an Alpine image, or link it statically"
    } else if interpreter.ends_with('\r') {
        "the script has Windows line ends: convert it with dos2unix"
    } else {
        "add the interpreter to the image, or correct the script's `#!` line"
    }
}

fn head(program: &Path) -> Vec<u8> {
    let mut head = Vec::with_capacity(HEAD_BYTES);
    if let Ok(file) = File::open(program) {
        // What could not be read is simply not there to judge by.
        let _ = file.take(HEAD_BYTES as u64).read_to_end(&mut head);
    }
    head
}

/// The interpreter a script (`#!`) or a dynamic ELF program (PT_INTERP) names.
fn interpreter(program: &Path) -> Option<String> {
    let head = head(program);
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|&byte| byte == b'\n').next()?;
        let line = line.trim_ascii_start();
        // Not trimmed at the end: a carriage return there is the very cause to be shown.
        let path = line.split(|&byte| byte == b' ' || byte == b'\t').next()?;
        return Some(String::from_utf8_lossy(path).into_owned());
    }
    elf_interpreter(program, &head)
}

const ELF_MAGIC: &[u8] = b"\x7fELF";
const ELF_CLASS_64: u8 = 2;
const ELF_LITTLE_ENDIAN: u8 = 1;
const PT_INTERP: u32 = 3;

/// `e_machine`, at offset 18 in both ELF classes.
fn elf_machine(head: &[u8]) -> Option<u16> {
    if !head.starts_with(ELF_MAGIC) {
        return None;
    }
    let bytes: [u8; 2] = head.get(18..20)?.try_into().ok()?;
    let little = *head.get(5)? == ELF_LITTLE_ENDIAN;
    Some(if little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
}

/// PT_INTERP of a 64-bit little-endian ELF file: the only kind this guest runs.
fn elf_interpreter(program: &Path, head: &[u8]) -> Option<String> {
    let is_ours = head.starts_with(ELF_MAGIC) && head.get(4..6)? == [ELF_CLASS_64, ELF_LITTLE_ENDIAN];
    if !is_ours {
        return None;
    }
    let u16_at = |at: usize| Some(u16::from_le_bytes(head.get(at..at + 2)?.try_into().ok()?));
    let table = u64::from_le_bytes(head.get(32..40)?.try_into().ok()?);
    let (size, count) = (usize::from(u16_at(54)?), usize::from(u16_at(56)?).min(MAX_PROGRAM_HEADERS));
    let file = File::open(program).ok()?;
    let mut header = vec![0u8; size.max(40)];
    for index in 0..count {
        file.read_exact_at(&mut header, table.checked_add((index * size) as u64)?).ok()?;
        if u32::from_le_bytes(header[0..4].try_into().ok()?) != PT_INTERP {
            continue;
        }
        let offset = u64::from_le_bytes(header[8..16].try_into().ok()?);
        let length = u64::from_le_bytes(header[32..40].try_into().ok()?);
        let mut path = vec![0u8; usize::try_from(length).ok()?.min(MAX_INTERPRETER_BYTES)];
        file.read_exact_at(&mut path, offset).ok()?;
        let end = path.iter().position(|&byte| byte == 0).unwrap_or(path.len());
        return Some(String::from_utf8_lossy(&path[..end]).into_owned());
    }
    None
}

/// `e_machine` of this guest.
const MACHINE: u16 = if cfg!(target_arch = "aarch64") { 183 } else { 62 };

fn machine_name(machine: u16) -> String {
    match machine {
        3 => "32-bit x86".into(),
        20 | 21 => "PowerPC".into(),
        22 => "s390x".into(),
        40 => "32-bit arm".into(),
        62 => "x86_64".into(),
        183 => "aarch64".into(),
        243 => "riscv".into(),
        258 => "loongarch".into(),
        other => format!("CPU type {other}"),
    }
}

fn docker_arch() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(folder: &Path, name: &str, content: &[u8], mode: u32) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, content).expect("write");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
        path
    }

    const HERE: &str = "/";

    fn explained(program: &Path, errno: Errno) -> StartError {
        explain(program, Path::new(HERE), errno, 0)
    }

    #[test]
    fn a_bare_name_is_every_file_of_that_name_in_the_search_path() {
        let folder = tempfile::tempdir().expect("folder");
        let (first, second) = (folder.path().join("a"), folder.path().join("b"));
        std::fs::create_dir_all(first.join("tool")).expect("a folder is no program");
        std::fs::create_dir(&second).expect("folder");
        let tool = file(&second, "tool", b"#!/bin/sh\n", 0o755);
        let found = |program: &str, search: &str| look_up(program, search, folder.path());
        let search = format!("{}::{}", first.display(), second.display());
        assert_eq!(found("tool", &search).expect("found"), [tool]);
        assert_eq!(found("./tool", &search).expect("as it is"), [PathBuf::from("./tool")]);
        assert_eq!(
            found("tool", "b:/ghost").expect("below the working directory"),
            [PathBuf::from("b/tool")]
        );
        let error = found("ghost", &search).unwrap_err();
        assert_eq!(error.message, format!("`ghost`: not found in PATH ({search})"));
        assert_eq!(found("", &search).unwrap_err().fault, Fault::NotFound);
    }

    #[test]
    fn a_file_without_its_executable_bit_is_named_as_such() {
        let folder = tempfile::tempdir().expect("folder");
        let tool = file(folder.path(), "tool", b"#!/bin/sh\n", 0o644);
        let error = explained(&tool, Errno::EACCES);
        assert!(error.message.ends_with("permission denied (the file is not executable)"), "{error}");
        assert!(explained(folder.path(), Errno::EACCES).message.ends_with("is a directory"));
    }

    #[test]
    fn a_missing_interpreter_is_told_from_a_missing_program() {
        let folder = tempfile::tempdir().expect("folder");
        let script = file(folder.path(), "script", b"#! /usr/bin/nopython -u\n", 0o755);
        let error = explained(&script, Errno::ENOENT);
        assert!(error.message.contains("interpreter `/usr/bin/nopython` does not exist"), "{error}");
        let windows = file(folder.path(), "windows", b"#!/bin/sh\r\necho\r\n", 0o755);
        assert!(explained(&windows, Errno::ENOENT).hint.expect("hint").contains("Windows line ends"));
        let error = explained(&folder.path().join("ghost"), Errno::ENOENT);
        assert!(error.message.ends_with("no such file or directory"), "{error}");
    }

    #[test]
    fn a_dynamic_program_names_its_loader() {
        let own = std::env::current_exe().expect("own path");
        if let Some(loader) = interpreter(&own) {
            assert!(loader.contains("ld-"), "{loader}");
            assert!(explained(&own, Errno::ENOENT).hint.expect("hint").contains("statically"));
        }
    }

    #[test]
    fn a_program_for_another_cpu_is_told_from_a_script_without_a_first_line() {
        let folder = tempfile::tempdir().expect("folder");
        let mut elf = [0u8; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18] = if MACHINE == 62 { 183 } else { 62 };
        let foreign = file(folder.path(), "foreign", &elf, 0o755);
        let error = explained(&foreign, Errno::ENOEXEC);
        assert!(error.message.contains("built for aarch64, this machine is x86_64"), "{error}");
        let script = file(folder.path(), "script", b"echo hi\n", 0o755);
        assert!(explained(&script, Errno::ENOEXEC).hint.expect("hint").contains("#!/bin/sh"));
        let empty = file(folder.path(), "empty", b"", 0o755);
        assert!(explained(&empty, Errno::ENOEXEC).message.ends_with("(the file is empty)"));
    }

    #[test]
    fn hostile_elf_headers_are_only_unreadable() {
        let folder = tempfile::tempdir().expect("folder");
        let mut elf = [0xffu8; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let odd = file(folder.path(), "odd", &elf, 0o755);
        assert_eq!(interpreter(&odd), None);
        assert!(explained(&odd, Errno::ENOENT).message.contains("its interpreter is not"));
    }
}
