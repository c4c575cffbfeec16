//! What a process has used, by Linux' `/proc`.

use std::time::Duration;

use anyhow::Context as _;

/// Of the times in `/proc`, the same on every architecture (USER_HZ).
const TICKS_PER_SECOND: u64 = 100;

/// Processor time of all threads, those that have ended included.
///
/// # Errors
/// There is no such process.
pub(crate) fn processor_time(pid: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, which may hold anything, ends at the last parenthesis; the fields behind it are numbered from 3 (proc(5)).
    let (_, fields) = stat.rsplit_once(')').context("no stat")?;
    let field = |number: usize| -> anyhow::Result<u64> {
        let text = fields.split_whitespace().nth(number - 3).context("no field")?;
        Ok(text.parse()?)
    };
    let ticks = field(14)? + field(15)?;
    Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

/// Resident memory in bytes.
///
/// # Errors
/// There is no such process.
pub(crate) fn resident(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line
        .and_then(|line| line.split_whitespace().next())
        .context("no VmRSS")?;
    Ok(kib.parse::<u64>()? * 1024)
}
