//! What the operator's process takes, from `/proc` and from its own metrics.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use anyhow::Context as _;

/// The operator's process.
pub(crate) struct Process {
    pid: u32,
    metrics: String,
}

/// Totals since the process started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Totals {
    /// Seconds of processor time.
    pub(crate) cpu: f64,
    /// Effects on objects and calls to workers.
    pub(crate) effects: f64,
    /// Passes, and seconds in them.
    pub(crate) passes: (f64, f64),
}

/// Ticks of `/proc/*/stat` a second, on every Linux that Kubernetes runs on.
const TICKS: f64 = 100.0;

/// Seconds of processor time that a process has taken.
pub(crate) fn seconds_of(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the process has ended")?;
    // The name of the program may hold blanks; behind its bracket fields are numbered from 3.
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks = |number: usize| fields.get(number - 3).and_then(|word| word.parse::<f64>().ok());
    let (user, system) = ticks(14).zip(ticks(15)).context("no processor time")?;
    Ok((user + system) / TICKS)
}

impl Process {
    pub(crate) fn new(pid: u32, metrics: &str) -> Self {
        Self {
            pid,
            metrics: metrics.to_owned(),
        }
    }

    /// MiB that are resident now, and were at most.
    pub(crate) fn memory(&self) -> anyhow::Result<(f64, f64)> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))
            .context("the operator has ended")?;
        let mib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
        };
        mib("VmRSS:").zip(mib("VmHWM:")).context("no VmRSS")
    }

    pub(crate) fn totals(&self) -> anyhow::Result<Totals> {
        let text = self.scrape()?;
        let sum = |name: &str| -> f64 {
            let lines = text.lines().filter(|line| line.starts_with(name));
            lines
                .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
                .sum()
        };
        Ok(Totals {
            cpu: seconds_of(self.pid)?,
            effects: sum("llamero_effects_total"),
            passes: (
                sum("llamero_reconcile_seconds_count"),
                sum("llamero_reconcile_seconds_sum"),
            ),
        })
    }

    fn scrape(&self) -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(&self.metrics).context("the operator's metrics")?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET /metrics HTTP/1.0\r\nHost: operator\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }
}
