//! Which deployments and leaders there are.
//!
//! | module | what it is |
//! |---|---|
//! | [`directory`] | the present state, and a signal when it changes |
//! | `kubernetes` | from `LlamaDeployments` and `LlamaGroups`; with the feature `kube` |
//! | [`fixed`] | from the command line |

pub mod directory;
pub mod fixed;
#[cfg(feature = "kube")]
pub mod kubernetes;

pub use directory::{Canary, Deployment, DeploymentKey, Directory, Found, Snapshot};
