//! Where a running cluster keeps its files.

use std::path::PathBuf;

use super::kubectl::Kubectl;
use crate::paths;

/// Files of the running cluster, below `.local/cluster`.
#[derive(Clone, Debug)]
pub struct Layout {
    state: PathBuf,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            state: paths::local().join("cluster"),
        }
    }
}

impl Layout {
    /// Folder of everything; gone when the cluster is down.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.state.clone()
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.state.join("kubeconfig")
    }

    /// `kubectl` as administrator.
    #[must_use]
    pub fn kubectl(&self) -> Kubectl {
        Kubectl::new(self.kubeconfig())
    }

    /// Folder of certificates and keys: `ca.crt`, `admin.crt`, `admin.key` and others.
    #[must_use]
    pub fn certificates(&self) -> PathBuf {
        self.state.join("certificates")
    }

    /// What the chart's parts asked of the API server, one event a line.
    #[must_use]
    pub fn audit_log(&self) -> PathBuf {
        self.state.join("audit.log")
    }

    pub(super) fn kubeconfig_of(&self, name: &str) -> PathBuf {
        self.state.join(format!("{name}.kubeconfig"))
    }

    pub(super) fn sysctls(&self) -> PathBuf {
        self.state.join("sysctls.json")
    }
}
