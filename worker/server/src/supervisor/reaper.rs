//! As process 1 of a container the supervisor inherits orphans (what `kubectl exec` left behind) and must collect them.

use std::collections::HashSet;
use std::fs;
use std::time::Duration;

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

/// A dead process that is still there after this long has nobody who waits for it: keepers collect their own at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// Collects dead orphans for ever; does nothing unless this is process 1.
pub async fn reap_orphans() {
    if std::process::id() != 1 {
        return std::future::pending().await;
    }
    let mut seen = HashSet::new();
    loop {
        tokio::time::sleep(PATIENCE).await;
        let dead = dead_children(1);
        for pid in dead.intersection(&seen).filter_map(|pid| Pid::from_raw(*pid)) {
            // It may have been collected meanwhile, which is as good.
            let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        }
        seen = dead;
    }
}

/// Children of `parent` that are dead and not collected.
fn dead_children(parent: i32) -> HashSet<i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return HashSet::new();
    };
    entries
        .filter_map(|entry| {
            let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            (state_and_parent(&stat)? == ('Z', parent)).then_some(pid)
        })
        .collect()
}

/// Fields 3 and 4 of proc_pid_stat(5); the name before them may hold spaces and parentheses.
fn state_and_parent(stat: &str) -> Option<(char, i32)> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_stat_lines() {
        assert_eq!(state_and_parent("12 (a) b (c) Z 1 12 12 0"), Some(('Z', 1)));
        assert_eq!(state_and_parent("12 (sleep) S 77 12"), Some(('S', 77)));
        assert_eq!(state_and_parent(""), None);
    }

    #[test]
    fn finds_a_dead_child() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let me = i32::try_from(std::process::id()).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while !dead_children(me).contains(&pid) {
            assert!(std::time::Instant::now() < deadline, "never seen dead");
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!dead_children(me).contains(&pid));
    }
}
