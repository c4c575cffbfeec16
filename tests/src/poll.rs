//! Waiting for something that another process does.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Multiplies every limit: for machines that are emulated or overloaded.
const PATIENCE: &str = "LLAMERO_PATIENCE";

/// Calls `probe` until it returns a value; fails with `what` once `limit` has passed, times the whole number in the environment
/// variable `LLAMERO_PATIENCE` if there is one.
///
/// # Errors
/// An error of `probe` means "not yet"; the last one is part of the message at the deadline.
pub fn until<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let limit = limit * patience()?;
    let deadline = Instant::now() + limit;
    loop {
        let last = match probe() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if Instant::now() >= deadline {
            let message = format!("{what}: not within {} s", limit.as_secs());
            return match last {
                Some(error) => Err(error).context(message),
                None => bail!(message),
            };
        }
        pause(Duration::from_millis(100));
    }
}

fn patience() -> Result<u32> {
    match std::env::var(PATIENCE) {
        Ok(factor) => factor
            .parse()
            .with_context(|| format!("{PATIENCE} is {factor:?}; give a whole number")),
        Err(_) => Ok(1),
    }
}

/// Lets other processes run for a moment. Only for loops that watch something outside this process.
pub(crate) fn pause(time: Duration) {
    let end = Instant::now() + time;
    // A stray unpark may end the wait early.
    while let Some(rest) = end
        .checked_duration_since(Instant::now())
        .filter(|rest| !rest.is_zero())
    {
        std::thread::park_timeout(rest);
    }
}
