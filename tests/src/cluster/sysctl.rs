//! Kernel settings of the whole machine that kubelet changes; the cluster puts them back when it ends.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};

const CHANGED_BY_KUBELET: &[&str] = &[
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

/// Notes the present values in `file`, unless a start that crashed has noted them already.
pub(super) fn save(file: &Path) -> Result<()> {
    if file.exists() {
        return Ok(());
    }
    let mut values = BTreeMap::new();
    for name in CHANGED_BY_KUBELET {
        if let Ok(value) = std::fs::read_to_string(place(name)) {
            values.insert(*name, value.trim().to_owned());
        }
    }
    std::fs::write(file, serde_json::to_vec(&values)?)?;
    Ok(())
}

/// Puts back what [`save`] has noted; without a note there is nothing to do.
pub(super) fn restore(file: &Path) -> Result<()> {
    let Ok(noted) = std::fs::read(file) else {
        return Ok(());
    };
    let values: BTreeMap<String, String> =
        serde_json::from_slice(&noted).with_context(|| format!("cannot read {}", file.display()))?;
    for (name, value) in values {
        std::fs::write(place(&name), value).with_context(|| format!("cannot restore {name}"))?;
    }
    Ok(())
}

fn place(name: &str) -> String {
    format!("/proc/sys/{name}")
}
