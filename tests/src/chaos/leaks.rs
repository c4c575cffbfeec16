//! What must be as it was when everything is over.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};

use super::target::{NAME, NAMESPACE, Role, SYSTEM, processes};
use crate::cluster::{Cluster, PodProcess};

/// Counted by kind: their names may change with a group's attempts.
const COUNTED: &str =
    "pods,configmaps,services,poddisruptionbudgets,networkpolicies,llamagroups,leases,serviceaccounts";
/// Open files that a process may have more than before: connections to peers come and go.
const FILES: usize = 32;
/// Kilobytes that operator, gateway and supervisors may have more than half as much again as before, and ranks more than they were planned with: caches
/// and allocators keep some.
const KILOBYTES: u64 = 64 << 10;

/// What there is of objects and processes.
#[derive(Clone, Debug, Default)]
pub(super) struct Census {
    objects: BTreeMap<String, usize>,
    secrets: BTreeSet<String>,
    uses: BTreeMap<Role, Use>,
    /// Kilobytes that a rank needs in all, as the deployment's plan says.
    planned: u64,
}

/// The most that one process of a role uses.
#[derive(Clone, Copy, Debug, Default)]
struct Use {
    processes: usize,
    files: usize,
    kilobytes: u64,
}

impl Census {
    pub(super) fn take(cluster: &Cluster) -> Result<Self> {
        let kubectl = cluster.kubectl();
        let mut census = Self::default();
        for namespace in [NAMESPACE, SYSTEM] {
            for name in kubectl
                .run(&["-n", namespace, "get", COUNTED, "-o", "name"])?
                .lines()
            {
                let kind = name.split('/').next().unwrap_or(name);
                *census.objects.entry(format!("{namespace}/{kind}")).or_default() += 1;
            }
            let secrets = kubectl.run(&["-n", namespace, "get", "secrets", "-o", "name"])?;
            census
                .secrets
                .extend(secrets.lines().map(|name| format!("{namespace}/{name}")));
        }
        for role in [Role::Rank, Role::Supervisor, Role::Operator, Role::Gateway] {
            let mut most = Use::default();
            for process in processes(cluster, role)? {
                let (files, kilobytes) = used(&process)?;
                most.processes += 1;
                most.files = most.files.max(files);
                most.kilobytes = most.kilobytes.max(kilobytes);
            }
            census.uses.insert(role, most);
        }
        let object = kubectl.get(&["-n", NAMESPACE, "llamadeployment", NAME])?;
        let planned = object["status"]["plan"]["memoryBytesPerRank"].as_u64();
        census.planned = planned.context("the deployment has no plan")? / 1024;
        Ok(census)
    }

    /// What there is now and was not before, or is missing; empty when nothing leaked.
    pub(super) fn leaks(before: &Self, now: &Self) -> Vec<String> {
        let mut leaks = Vec::new();
        let kinds: BTreeSet<&String> = before.objects.keys().chain(now.objects.keys()).collect();
        for kind in kinds {
            let count = |census: &Self| census.objects.get(kind).copied().unwrap_or_default();
            if count(before) != count(now) {
                leaks.push(format!("{kind}: {} before, {} now", count(before), count(now)));
            }
        }
        for secret in before.secrets.symmetric_difference(&now.secrets) {
            leaks.push(format!("the {secret} was made or lost"));
        }
        for (role, was) in &before.uses {
            let is = now.uses.get(role).copied().unwrap_or_default();
            leaks.extend(more(*role, *was, is, now.planned));
        }
        leaks
    }

    /// One line a role, for the report.
    pub(super) fn lines(&self) -> Vec<String> {
        let line = |(role, used): (&Role, &Use)| {
            format!(
                "{}: {} processes, at most {} open files and {} MB",
                role.name(),
                used.processes,
                used.files,
                used.kilobytes / 1024
            )
        };
        let planned = format!("a rank is planned with {} MB", self.planned / 1024);
        self.uses.iter().map(line).chain([planned]).collect()
    }
}

fn more(role: Role, was: Use, is: Use, planned: u64) -> Option<String> {
    let name = role.name();
    if is.processes != was.processes {
        return Some(format!(
            "{name}: {} processes before, {} now",
            was.processes, is.processes
        ));
    }
    if is.files > was.files + FILES {
        return Some(format!(
            "{name}: {} open files before, {} now",
            was.files, is.files
        ));
    }
    // A rank fills its cache, whatever it had before.
    let limit = match role {
        Role::Rank => planned + KILOBYTES,
        Role::Supervisor | Role::Operator | Role::Gateway => was.kilobytes + was.kilobytes / 2 + KILOBYTES,
    };
    (is.kilobytes > limit).then(|| {
        format!(
            "{name}: {} kB of memory before, {} now, where {limit} are the most",
            was.kilobytes, is.kilobytes
        )
    })
}

/// Open files, and resident memory in kilobytes.
fn used(process: &PodProcess) -> Result<(usize, u64)> {
    let folder = format!("/proc/{}", process.pid);
    let gone = || format!("process {} of {} has ended", process.pid, process.pod);
    let files = std::fs::read_dir(format!("{folder}/fd"))
        .with_context(gone)?
        .count();
    let status = std::fs::read_to_string(format!("{folder}/status")).with_context(gone)?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = resident
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .with_context(gone)?;
    Ok((files, kilobytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_more_than_before_is_a_leak_and_what_is_less_is_told_too() {
        let before = Census {
            objects: BTreeMap::from([("demo/pod".to_owned(), 4)]),
            secrets: BTreeSet::from(["demo/secret/a".to_owned()]),
            uses: BTreeMap::from([(
                Role::Gateway,
                Use {
                    processes: 1,
                    files: 20,
                    kilobytes: 10_000,
                },
            )]),
            planned: 0,
        };
        assert!(Census::leaks(&before, &before).is_empty());
        let mut now = before.clone();
        now.objects.insert("demo/pod".to_owned(), 5);
        now.objects.insert("demo/lease".to_owned(), 1);
        now.secrets.insert("demo/secret/b".to_owned());
        now.uses.insert(
            Role::Gateway,
            Use {
                processes: 1,
                files: 20 + FILES + 1,
                kilobytes: 10_000,
            },
        );
        assert_eq!(Census::leaks(&before, &now).len(), 4);
        now.uses.insert(
            Role::Gateway,
            Use {
                processes: 1,
                files: 20,
                kilobytes: 15_001 + KILOBYTES,
            },
        );
        assert_eq!(Census::leaks(&before, &now).len(), 4);
    }

    #[test]
    fn a_rank_may_fill_what_it_was_planned_with_and_no_more() {
        let with = |kilobytes| Census {
            uses: BTreeMap::from([(
                Role::Rank,
                Use {
                    processes: 4,
                    files: 20,
                    kilobytes,
                },
            )]),
            planned: 600_000,
            ..Census::default()
        };
        let before = with(200_000);
        assert!(Census::leaks(&before, &with(600_000 + KILOBYTES)).is_empty());
        let leaks = Census::leaks(&before, &with(600_001 + KILOBYTES));
        assert!(
            leaks.len() == 1 && leaks.iter().all(|leak| leak.starts_with("rank: ")),
            "{leaks:?}"
        );
    }
}
