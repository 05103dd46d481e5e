//! `resources:`: what a machine may have, wherever it is asked for.

use std::ops::RangeInclusive;

use iii_protocol::api::{ResourceHints, Resources};

use super::error::Problem;
use super::fields::{Fields, Values};
use super::schema::{OwnResources, default_resources};
use super::tree::Node;
use super::units::{SizeText, size};

/// Least and most memory of a machine, MiB.
const MEMORY_MIB: RangeInclusive<u32> = 64..=1024 * 1024;
/// Least and most virtual CPUs that can be asked for; the host's number limits it further.
const CPUS: RangeInclusive<u8> = 1..=64;
/// Least and most scratch disk, MiB.
const DISK_MIB: RangeInclusive<u64> = 64..=64 * 1024 * 1024;
const MIB: u64 = 1024 * 1024;
pub(super) const RESOURCE_KEYS: &[&str] = &["memory", "cpus", "disk"];

/// What `memory` takes, for "expected ...".
pub(crate) const MEMORY_EXPECTED: &str = "a number of MiB or a size such as `2GiB`";
/// What `cpus` takes, for "expected ...".
pub(crate) const CPUS_EXPECTED: &str = "a whole number";
/// What `disk` takes, for "expected ...".
pub(crate) const DISK_EXPECTED: &str = "a size such as `16GiB`";

/// With every default filled in, and apart from that what the file says.
pub(super) fn resources(
    node: &Node,
    place: &str,
    values: &mut Values<'_>,
) -> Result<(Resources, OwnResources), Problem> {
    let fields = Fields::of(node, &format!("under `resources` {place}"), RESOURCE_KEYS)?;
    let mut own = OwnResources::default();
    if let Some(node) = fields.get("memory") {
        own.memory_mib = values.parsed(node, "memory", MEMORY_EXPECTED, memory_mib)?;
    }
    if let Some(node) = fields.get("cpus") {
        own.cpus = values.parsed(node, "cpus", CPUS_EXPECTED, cpus)?;
    }
    if let Some(node) = fields.get("disk") {
        own.disk_bytes = values.parsed(node, "disk", DISK_EXPECTED, disk_bytes)?;
    }
    Ok((own.or(default_resources()), own))
}

/// Memory as it is written, MiB.
pub(crate) fn memory_mib(text: &str) -> Result<u32, String> {
    let mib = in_range(mib(text, true)?, &(u64::from(*MEMORY_MIB.start())..=(*MEMORY_MIB.end()).into()))?;
    u32::try_from(mib).map_err(|e| e.to_string())
}

/// A number of virtual CPUs as it is written.
pub(crate) fn cpus(text: &str) -> Result<u8, String> {
    match text.trim().parse::<u8>() {
        Ok(cpus) if CPUS.contains(&cpus) => Ok(cpus),
        _ => Err(format!("expected a whole number from {} to {}, found `{text}`", CPUS.start(), CPUS.end())),
    }
}

/// The size of a scratch disk as it is written, bytes.
pub(crate) fn disk_bytes(text: &str) -> Result<u64, String> {
    Ok(in_range(mib(text, false)?, &DISK_MIB)? * MIB)
}

/// Whole MiB; a number alone is one only where `bare` says so.
fn mib(text: &str, bare: bool) -> Result<u64, String> {
    match size(text)? {
        SizeText::Bare(mib) if bare => Ok(mib),
        SizeText::Bare(n) => {
            Err(format!("expected a size with its unit, found `{n}`; did you mean `{n}GiB`?"))
        }
        SizeText::Bytes(bytes) if bytes % MIB == 0 => Ok(bytes / MIB),
        SizeText::Bytes(_) => Err(format!("`{text}` is not a whole number of MiB")),
    }
}

fn in_range(mib: u64, range: &RangeInclusive<u64>) -> Result<u64, String> {
    if range.contains(&mib) {
        return Ok(mib);
    }
    Err(format!("{mib} MiB is outside of what is possible, {} MiB to {} MiB", range.start(), range.end()))
}

/// Leaves what `resources:` would accept of an image's hints, and says what it would not.
pub fn usable_hints(hints: ResourceHints) -> (ResourceHints, Vec<String>) {
    let mut problems = Vec::new();
    let mut refuse = |what: String, least: u32, most: u32| {
        problems.push(format!("the image asks for {what}, which is not from {least} to {most}: left out"));
    };
    let memory_mib = hints.memory_mib.filter(|mib| {
        let fits = MEMORY_MIB.contains(mib);
        if !fits {
            refuse(format!("{mib} MiB of memory"), *MEMORY_MIB.start(), *MEMORY_MIB.end());
        }
        fits
    });
    let cpus = hints.cpus.filter(|cpus| {
        let fits = CPUS.contains(cpus);
        if !fits {
            refuse(format!("{cpus} CPUs"), (*CPUS.start()).into(), (*CPUS.end()).into());
        }
        fits
    });
    (ResourceHints { memory_mib, cpus }, problems)
}
