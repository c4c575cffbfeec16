//! How much memory this container may use, by its control groups.
//!
//! Version 2: `memory.max` (Linux, Documentation/admin-guide/cgroup-v2.rst). Version 1: `memory.limit_in_bytes`
//! (Documentation/admin-guide/cgroup-v1/memory.rst). A group is also held to the limits of all groups above it.

use std::fs;
use std::path::{Path, PathBuf};

/// Version 1 says "unlimited" by the largest multiple of a page that it can hold; nothing real is as large.
const UNLIMITED: u64 = 1 << 60;

/// The lowest limit in bytes on this process; none: there is none, or it cannot be read.
#[must_use]
pub fn memory_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    limit_of(&groups, Path::new("/sys/fs/cgroup"))
}

/// The lowest limit on a process in `groups` (cgroups(7), `/proc/pid/cgroup`) where the hierarchies are mounted at `mount`.
fn limit_of(groups: &str, mount: &Path) -> Option<u64> {
    let limits = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, group) = (fields.next()?, fields.next()?);
        let group = group.trim_start_matches('/');
        if controllers.is_empty() {
            lowest(mount, group, "memory.max")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            lowest(&mount.join("memory"), group, "memory.limit_in_bytes")
        } else {
            None
        }
    });
    limits.min()
}

/// The lowest limit of a group and those above it. Groups that cannot be seen from inside a container are left out: their
/// limit is then on the mounted root.
fn lowest(mount: &Path, group: &str, file: &str) -> Option<u64> {
    let inside = PathBuf::from(group);
    let limits = inside.ancestors().filter_map(|group| {
        let text = fs::read_to_string(mount.join(group).join(file)).ok()?;
        let limit = text.trim().parse::<u64>().ok()?;
        (limit < UNLIMITED).then_some(limit)
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn the_lowest_limit_of_the_groups_above_counts() {
        let dir = mount(&[
            ("pod/memory.max", "4294967296\n"),
            ("pod/rank/memory.max", "max\n"),
        ]);
        assert_eq!(limit_of("0::/pod/rank\n", dir.path()), Some(4 << 30));
        assert_eq!(limit_of("0::/\n", dir.path()), None, "the root has no limit");
    }

    #[test]
    fn inside_a_container_the_limit_is_on_the_mounted_root() {
        let dir = mount(&[("memory.max", "1073741824\n")]);
        assert_eq!(limit_of("0::/\n", dir.path()), Some(1 << 30));
        assert_eq!(limit_of("0::/not/seen/here\n", dir.path()), Some(1 << 30));
    }

    #[test]
    fn version_1_is_read_and_its_word_for_unlimited_is_no_limit() {
        let groups = "12:cpu,cpuacct:/pod\n5:memory:/pod\n";
        let dir = mount(&[("memory/pod/memory.limit_in_bytes", "2147483648\n")]);
        assert_eq!(limit_of(groups, dir.path()), Some(2 << 30));
        let dir = mount(&[("memory/memory.limit_in_bytes", "9223372036854771712\n")]);
        assert_eq!(limit_of(groups, dir.path()), None);
    }
}
