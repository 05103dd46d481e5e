//! Builds the guest agent and hands its path to `src/vm/agent_binary.rs`, so that `cargo build` alone gives
//! the whole product.
//!
//! The agent is a static program for the machine's own CPU, built by a nested cargo: with its own target
//! folder (the outer cargo holds the lock of the usual one) and without the outer build's variables, which
//! would otherwise instrument, wrap or re-link it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

/// Static, and at a fixed address: it is smaller, and starts without relocating itself. Separated as
/// CARGO_ENCODED_RUSTFLAGS wants it.
const RUSTFLAGS: &str = "-Ctarget-feature=+crt-static\u{1f}-Crelocation-model=static";
/// The first glibc whose loader reads relative relocations as a bitmap (`DT_RELR`).
const GLIBC_WITH_BITMAPS: (u32, u32) = (2, 36);
/// The profile of the agent in Cargo.toml.
const PROFILE: &str = "agent";

fn main() {
    shrink_relocations();
    link_the_unwinder();
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    for input in ["crates/agent", "crates/archive", "crates/protocol", "Cargo.toml", "Cargo.lock", "build.rs"]
    {
        println!("cargo::rerun-if-changed={}", root.join(input).display());
    }
    let agent =
        build_agent(&root, &variable("TARGET"), &Path::new(&variable("OUT_DIR")).join("agent-target"));
    println!("cargo::rustc-env=III_AGENT_PATH={}", agent.display());
}

/// The program's tens of thousands of relative relocations as a bitmap: more than a megabyte less for the loader to go
/// through at each start, and for each shim to have in memory. Understood by glibc 2.36 and later, so it is done where
/// the program is built on such a system for that system.
fn shrink_relocations() {
    if !is_for_this_glibc() {
        return;
    }
    let Ok(output) = Command::new("getconf").arg("GNU_LIBC_VERSION").output() else { return };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut numbers = text.trim().trim_start_matches("glibc ").split('.').map(str::parse::<u32>);
    if let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next())
        && (major, minor) >= GLIBC_WITH_BITMAPS
    {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// Whether the program is built for a system with glibc like the one that it is built on.
fn is_for_this_glibc() -> bool {
    variable("CARGO_CFG_TARGET_OS") == "linux"
        && variable("CARGO_CFG_TARGET_ENV") == "gnu"
        && variable("HOST") == variable("TARGET")
}

/// The unwinder as a part of the program instead of the shared libgcc_s, of which nothing else is used: one library less
/// to be there, to load at each start and to keep in memory for each shim. The standard library asks the linker for it by
/// name, which finds a file of ours first that names the static one.
fn link_the_unwinder() {
    if !is_for_this_glibc() {
        return;
    }
    let folder = Path::new(&variable("OUT_DIR")).join("unwinder");
    let written = std::fs::create_dir_all(&folder)
        .and_then(|()| std::fs::write(folder.join("libgcc_s.so"), "INPUT(-lgcc_eh -lgcc)\n"));
    if let Err(error) = written {
        fail(&format!("{}: {error}", folder.display()));
    }
    println!("cargo::rustc-link-search=native={}", folder.display());
}

fn build_agent(root: &Path, target: &str, target_dir: &Path) -> PathBuf {
    let mut cargo = Command::new(variable("CARGO"));
    cargo
        .current_dir(root)
        .args(["build", "--package", "iii-agent", "--bin", "iii-agent", "--locked"])
        .args(["--profile", PROFILE, "--target", target, "--target-dir"])
        .arg(target_dir);
    for (name, _) in env::vars_os() {
        if name.to_str().is_none_or(is_of_the_outer_build) {
            cargo.env_remove(name);
        }
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS);
    match cargo.status() {
        Ok(status) if status.success() => target_dir.join(target).join(PROFILE).join("iii-agent"),
        Ok(status) => fail(&format!("the nested `cargo build` ended with {status}; its output is above")),
        Err(error) => fail(&format!("cannot run the nested cargo: {error}")),
    }
}

/// Settings of the user (registries, network, cargo's home, the job server) stay; what cargo, clippy or a
/// coverage tool has set for the package being built goes.
fn is_of_the_outer_build(name: &str) -> bool {
    const KEPT: [&str; 8] = [
        "CARGO_HOME",
        "CARGO_NET_",
        "CARGO_HTTP_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
        "CARGO_MAKEFLAGS",
        "CARGO_TERM_",
        "CARGO_ALIAS_",
    ];
    const GONE: [&str; 14] = [
        "CARGO",
        "RUSTFLAGS",
        "RUSTDOCFLAGS",
        "RUSTC",
        "RUSTDOC",
        "CLIPPY_ARGS",
        "LLVM_PROFILE_FILE",
        "TARGET",
        "HOST",
        "OUT_DIR",
        "OPT_LEVEL",
        "PROFILE",
        "DEBUG",
        "NUM_JOBS",
    ];
    if KEPT.iter().any(|kept| name.starts_with(kept)) {
        return false;
    }
    // Families by their prefix, single variables by their whole name.
    GONE.contains(&name)
        || ["CARGO_", "DEP_", "RUSTC_", "RUSTDOC_"].iter().any(|family| name.starts_with(family))
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|error| fail(&format!("cargo did not set {name}: {error}")))
}

fn fail(why: &str) -> ! {
    println!("cargo::error=cannot build the guest agent: {why}");
    println!(
        "cargo::error=it needs a C compiler and the static C library (`libc6-dev` on Debian, `glibc-static` on Fedora)"
    );
    exit(1)
}
