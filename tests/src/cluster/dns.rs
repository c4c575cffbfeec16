//! CoreDNS, on the bridge's address: it serves the names of Services and pods and knows no others.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::addresses::{DOMAIN, HOST};
use super::process;
use crate::paths;

pub(super) fn start(state: &Path, kubeconfig: &Path) -> Result<()> {
    let file = state.join("Corefile");
    let text = format!(
        "{DOMAIN}:53 in-addr.arpa:53 {{
    bind {HOST}
    errors
    cache 5
    kubernetes {DOMAIN} in-addr.arpa {{
        kubeconfig {}
        ttl 5
    }}
}}
",
        kubeconfig.display()
    );
    std::fs::write(&file, text)?;
    let mut command = Command::new(paths::program("coredns"));
    command.arg("-conf").arg(&file);
    process::start("coredns", &mut command)
}
