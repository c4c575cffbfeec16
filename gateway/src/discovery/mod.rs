//! Which deployments and leaders there are.
//!
//! | module | what it is |
//! |---|---|
//! | [`directory`] | the present state, and a signal when it changes |
//! | `kubernetes` | from `LlamaDeployments` and `LlamaGroups`; with the feature `kube` |
//! | `objects` | what of them is kept; with the feature `kube` |
//! | `gateways` | the gateways that are ready, from EndpointSlices; with the feature `kube` |
//! | [`fixed`] | from the command line |

pub mod directory;
pub mod fixed;
#[cfg(feature = "kube")]
pub mod gateways;
#[cfg(feature = "kube")]
pub mod kubernetes;
#[cfg(feature = "kube")]
mod objects;

pub use directory::{Canary, Deployment, DeploymentKey, Directory, Found, Snapshot};
