//! `resources:` of a worker, and what of an image's hints it would accept.

use iii_protocol::api::{ResourceHints, Resources};

use super::error::Problem;
use super::fields::{Fields, Values};
use super::schema::default_resources;
use super::tree::Node;
use super::units::{SizeText, size};

/// Least and most memory of a machine, MiB.
const MEMORY_MIB: std::ops::RangeInclusive<u64> = 64..=1024 * 1024;
/// Least and most virtual CPUs that can be asked for; the host's number limits it further.
const CPUS: std::ops::RangeInclusive<u8> = 1..=64;
/// Least and most scratch disk, MiB.
const DISK_MIB: std::ops::RangeInclusive<u64> = 64..=64 * 1024 * 1024;
const MIB: u64 = 1024 * 1024;

pub(super) const RESOURCE_KEYS: &[&str] = &["memory", "cpus", "disk"];

/// Leaves what `resources:` would accept of an image's hints, and says what it would not.
pub fn usable_hints(hints: ResourceHints) -> (ResourceHints, Vec<String>) {
    let mut problems = Vec::new();
    let mut refuse = |what: String, least: u64, most: u64| {
        problems.push(format!("the image asks for {what}, which is not from {least} to {most}: left out"));
    };
    let memory_mib = hints.memory_mib.filter(|mib| {
        let fits = MEMORY_MIB.contains(&u64::from(*mib));
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

pub(super) fn resources(node: &Node, place: &str, values: &mut Values<'_>) -> Result<Resources, Problem> {
    let fields = Fields::of(node, &format!("under `resources` {place}"), RESOURCE_KEYS)?;
    let mut resources = default_resources();
    if let Some(node) = fields.get("memory") {
        let expected = "a number of MiB or a size such as `2GiB`";
        if let Some(mib) = values.parsed(node, "memory", expected, |text| mib(text, true))? {
            resources.memory_mib = in_range(mib, &MEMORY_MIB)
                .and_then(|mib| u32::try_from(mib).map_err(|e| e.to_string()))
                .map_err(|e| Problem::at(node.span, format!("`memory`: {e}")))?;
        }
    }
    if let Some(node) = fields.get("cpus") {
        let read = |text: &str| match text.trim().parse::<u8>() {
            Ok(cpus) if CPUS.contains(&cpus) => Ok(cpus),
            _ => Err(format!(
                "expected a whole number from {} to {}, found `{text}`",
                CPUS.start(),
                CPUS.end()
            )),
        };
        if let Some(cpus) = values.parsed(node, "cpus", "a whole number", read)? {
            resources.cpus = cpus;
        }
    }
    if let Some(node) = fields.get("disk")
        && let Some(mib) = values.parsed(node, "disk", "a size such as `16GiB`", |text| mib(text, false))?
    {
        let mib = in_range(mib, &DISK_MIB).map_err(|e| Problem::at(node.span, format!("`disk`: {e}")))?;
        resources.disk_bytes = mib * MIB;
    }
    Ok(resources)
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

fn in_range(mib: u64, range: &std::ops::RangeInclusive<u64>) -> Result<u64, String> {
    if range.contains(&mib) {
        return Ok(mib);
    }
    Err(format!("{mib} MiB is outside of what is possible, {} MiB to {} MiB", range.start(), range.end()))
}
