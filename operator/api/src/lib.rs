//! The Kubernetes API of Llamero: what a user writes, what the operator writes back, and the names both agree on.
//!
//! ```text
//! LlamaDeployment (lld)  --owns-->  LlamaGroup (llg)  --owns-->  Pod, PodDisruptionBudget
//!   what is wanted                    one replica                  one per node
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | [`deployment`] | `LlamaDeployment`: model, parallelism, accelerator, scaling, placement, recovery, engine, worker; its status |
//! | [`group`] | `LlamaGroup`: the durable truth of one replica |
//! | [`summary`] | `CheckpointSummary`: what the inspect pod found in a checkpoint's headers |
//! | [`labels`] | label keys, the scheduling gate, ports, the field manager, and how objects are named |
//! | [`namespaces`] | which namespaces an installation serves |
//! | [`duration`] | durations as users write them, `1m30s` |
//! | [`quantity`] | Kubernetes quantities to whole numbers and back |
//! | [`crds`] | the CustomResourceDefinitions as YAML |
//! | [`reference`] | the resources as a page to read |
//!
//! Unknown fields: the API server prunes them. `kubectl` (1.27 and newer) validates strictly by default and refuses them by name;
//! other clients can ask for the same with `fieldValidation=Strict`.
#![cfg_attr(
    not(test),
    warn(
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        reason = "what comes in from outside must not be able to end the process, nor become another number"
    )
)]
#![forbid(unsafe_code)]
#![allow(
    unreachable_pub,
    clippy::duplicated_attributes,
    reason = "the KubeSchema derive copies each public struct into a function body; printer columns repeat their keys"
)]

pub mod crds;
pub mod deployment;
pub mod duration;
pub mod group;
pub mod labels;
pub mod namespaces;
pub mod quantity;
pub mod reference;
mod schema;
pub mod summary;

pub use deployment::{LlamaDeployment, LlamaDeploymentSpec, LlamaDeploymentStatus};
pub use duration::Duration;
pub use group::{LlamaGroup, LlamaGroupSpec, LlamaGroupStatus};
pub use summary::CheckpointSummary;
