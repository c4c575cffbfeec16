//! The control groups of the nodes: each kubelet has a root of its own, in every hierarchy of version 1 or in the one of version 2.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const MOUNT: &str = "/sys/fs/cgroup";

/// Name of a node's group below each hierarchy's root.
fn name(node: &str) -> String {
    format!("/{node}")
}

/// Makes the node's group; returns its name for kubelet.
pub(super) fn create(node: &str) -> Result<String> {
    for hierarchy in hierarchies()? {
        let group = hierarchy.join(node);
        fs::create_dir_all(&group)
            .with_context(|| format!("cannot make the control group {}", group.display()))?;
        if is_unified() {
            // A controller must be handed down from the root before a child can hand it on.
            for folder in [&hierarchy, &group] {
                hand_down(folder);
            }
        }
        // A new group of `cpuset` has no CPU and no memory, and then takes no process.
        for file in ["cpuset.mems", "cpuset.cpus"] {
            if let Ok(value) = fs::read_to_string(hierarchy.join(file)) {
                fs::write(group.join(file), value.trim())
                    .with_context(|| format!("cannot set {file} of {}", group.display()))?;
            }
        }
    }
    Ok(name(node))
}

/// Removes the node's group and all below. Its processes must be gone.
pub(super) fn remove(node: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let group = hierarchy.join(node);
        if group.exists() {
            remove_tree(&group)
                .with_context(|| format!("cannot remove the control group {}", group.display()))?;
        }
    }
    Ok(())
}

/// Groups that are left of nodes of this cluster.
pub(super) fn left(is_ours: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for hierarchy in hierarchies()? {
        for entry in fs::read_dir(&hierarchy)? {
            let entry = entry?.file_name();
            names.extend(entry.to_str().filter(|name| is_ours(name)).map(str::to_owned));
        }
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// Pids, as the machine sees them, of the group at `path` (as in a container's specification) and below.
pub(super) fn processes(path: &str) -> Vec<i32> {
    let mut pids = Vec::new();
    for hierarchy in hierarchies().unwrap_or_default() {
        collect(&hierarchy.join(path.trim_start_matches('/')), &mut pids);
        if !pids.is_empty() {
            break;
        }
    }
    pids
}

fn collect(group: &Path, pids: &mut Vec<i32>) {
    let listed = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    pids.extend(listed.lines().filter_map(|line| line.parse::<i32>().ok()));
    for child in fs::read_dir(group).into_iter().flatten().flatten() {
        if child.path().is_dir() {
            collect(&child.path(), pids);
        }
    }
}

fn remove_tree(group: &Path) -> std::io::Result<()> {
    for child in fs::read_dir(group)? {
        let child = child?.path();
        if child.is_dir() {
            remove_tree(&child)?;
        }
    }
    match fs::remove_dir(group) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn is_unified() -> bool {
    Path::new(MOUNT).join("cgroup.controllers").exists()
}

/// Hands every controller down that the group has: kubelet insists on most of them. One by one, because one that cannot be handed
/// down must not keep the others back.
fn hand_down(group: &Path) {
    let has = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    for controller in has.split_whitespace() {
        let _ = fs::write(group.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// Mount points of the hierarchies; several names of one hierarchy (`cpu`, `cpuacct`) may be links to it.
fn hierarchies() -> Result<Vec<PathBuf>> {
    if is_unified() {
        return Ok(vec![PathBuf::from(MOUNT)]);
    }
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read the mounts")?;
    let found = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (place, kind) = (fields.next()?, fields.next()?);
        // Both versions may be mounted side by side.
        matches!(kind, "cgroup" | "cgroup2").then(|| PathBuf::from(place))
    });
    Ok(found.collect())
}
