//! The guest agent, carried inside this binary.

/// The static `iii-agent` program for this machine's CPU, as built by build.rs. The VMM serves these very
/// bytes as the guest's first program.
pub(super) static AGENT: &[u8] = include_bytes!(env!("III_AGENT_PATH"));

#[cfg(test)]
mod tests {
    use super::AGENT;

    /// Program header type of an ELF interpreter (elf(5)).
    const PT_INTERP: u32 = 3;

    fn number<const N: usize>(at: usize) -> [u8; N] {
        AGENT[at..at + N].try_into().expect("in the file")
    }

    #[test]
    fn the_agent_runs_without_any_library() {
        assert_eq!(&AGENT[..6], b"\x7fELF\x02\x01");
        let table = usize::try_from(u64::from_le_bytes(number(32))).expect("offset");
        let (size, count) = (u16::from_le_bytes(number(54)), u16::from_le_bytes(number(56)));
        assert!(count > 0);
        for index in 0..usize::from(count) {
            let kind = u32::from_le_bytes(number(table + index * usize::from(size)));
            assert_ne!(kind, PT_INTERP, "the agent is linked dynamically");
        }
    }

    #[test]
    fn the_agent_is_small() {
        // It stays in the memory of every machine's VMM. The static C library alone is 0.9 MiB of it, sessions
        // and copies (terminals, archives) half a MiB.
        assert!(AGENT.len() < 2 * 1024 * 1024, "{} bytes", AGENT.len());
    }
}
