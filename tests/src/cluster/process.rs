//! The cluster's daemons: started detached, found again by a marker in their environment.
//!
//! A pid alone may be recycled, and a pid file may be lost in a crash. The environment of a process can be read as long as the process lives, so
//! the marker finds every daemon of this checkout and nothing else.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::go_build;
use crate::{paths, poll};

const CLUSTER: &str = "LLAMERO_CLUSTER";
const PART: &str = "LLAMERO_PART";

/// A running daemon of this cluster.
#[derive(Debug)]
pub struct Daemon {
    /// Process id as the machine sees it.
    pub pid: i32,
    /// What it is, for example `etcd` or `kubelet/llamero-node-1`.
    pub part: String,
    handle: OwnedFd,
}

/// Starts `command` as the daemon `part`; it outlives this process and writes to the log of its part.
pub(super) fn start(part: &str, command: &mut Command) -> Result<()> {
    let log = log_file(part);
    if let Some(folder) = log.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let log = File::options().create(true).append(true).open(&log)?;
    // A session of its own, so that the end of a terminal or of a test does not reach it.
    let mut detached = Command::new("setsid");
    detached
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .current_dir("/")
        .env_clear()
        .env("PATH", go_build::search_path())
        .env(CLUSTER, marker())
        .env(PART, part);
    let child = detached.spawn().with_context(|| format!("cannot start {part}"))?;
    // Reaps it when it ends while this process still lives; the thread holds nothing.
    std::thread::spawn(move || {
        let mut child = child;
        let _ = child.wait();
    });
    Ok(())
}

/// Folder of the logs; it stays when the cluster goes down, and the next one begins anew.
#[must_use]
pub fn log_folder() -> PathBuf {
    paths::local().join("cluster-logs")
}

/// Log of a part.
#[must_use]
pub fn log_file(part: &str) -> PathBuf {
    log_folder().join(format!("{}.log", part.replace('/', "-")))
}

/// Removes the logs of an earlier cluster.
pub(super) fn clear_logs() -> Result<()> {
    match std::fs::remove_dir_all(log_folder()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context("cannot remove old logs")
        }
        _ => Ok(()),
    }
}

/// Every daemon of this cluster, helpers that a daemon has started included.
///
/// # Errors
/// `/proc` cannot be read.
pub fn all() -> Result<Vec<Daemon>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        if let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) {
            found.extend(daemon(pid));
        }
    }
    found.sort_by(|a, b| (&a.part, a.pid).cmp(&(&b.part, b.pid)));
    Ok(found)
}

/// The process that runs `program` as `part`, not its wrappers and helpers.
///
/// # Errors
/// `/proc` cannot be read.
pub fn find(part: &str, program: &str) -> Result<Option<Daemon>> {
    Ok(all()?
        .into_iter()
        .find(|daemon| daemon.part == part && daemon.runs(program)))
}

/// Ends the daemons with `signal` and waits until they are gone; what still lives after `limit` is killed.
pub(super) fn end(daemons: &[Daemon], signal: Signal, limit: Duration) -> Result<()> {
    daemons.iter().for_each(|daemon| daemon.signal(signal));
    let gone = || Ok(daemons.iter().all(|daemon| !daemon.lives()).then_some(()));
    if signal != Signal::KILL && poll::until("graceful end", limit, gone).is_ok() {
        return Ok(());
    }
    daemons.iter().for_each(|daemon| daemon.signal(Signal::KILL));
    poll::until("end of killed processes", Duration::from_secs(60), gone)
}

impl Daemon {
    /// Whether the process still runs; one that only waits to be reaped does not.
    #[must_use]
    pub fn lives(&self) -> bool {
        // The handle becomes readable when its process ends.
        let mut handles = [PollFd::new(&self.handle, PollFlags::IN)];
        matches!(
            rustix::event::poll(&mut handles, Some(&Timespec::default())),
            Ok(0)
        )
    }

    pub(super) fn signal(&self, signal: Signal) {
        // Fails only when the process is gone, which is what the caller wants.
        let _ = pidfd_send_signal(&self.handle, signal);
    }

    pub(super) fn runs(&self, program: &str) -> bool {
        let words = std::fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        let first = words.split(|byte| *byte == 0).next().unwrap_or_default();
        Path::new(&*String::from_utf8_lossy(first))
            .file_name()
            .is_some_and(|name| name == program)
    }
}

fn marker() -> String {
    paths::local().join("cluster").display().to_string()
}

fn daemon(pid: i32) -> Option<Daemon> {
    // The handle comes first: what is read afterwards belongs to that very process as long as the process lives.
    let handle = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let variable = |name: &str| {
        environment.split(|byte| *byte == 0).find_map(|entry| {
            Some(
                std::str::from_utf8(entry)
                    .ok()?
                    .strip_prefix(name)?
                    .strip_prefix('=')?
                    .to_owned(),
            )
        })
    };
    (variable(CLUSTER)? == marker()).then_some(())?;
    Some(Daemon {
        pid,
        part: variable(PART)?,
        handle,
    })
}
