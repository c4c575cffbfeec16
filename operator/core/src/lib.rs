//! Every decision of the operator, as pure functions: no I/O, no client, no clock.
//!
//! ```text
//! observe (controller) -> Observed --decide--> Plan -> apply (controller) -> report -> status
//! ```
//!
//! | module | what it decides |
//! |---|---|
//! | [`observed`] | (input) the cluster as the caches show it |
//! | [`plan`] | (output) typed steps, and verdicts for the report |
//! | [`Planner`] | keeps both, and decides about what changed |
//! | [`resources`] | amounts of CPU, memory, pods and devices |
//! | [`devices`] | how much memory the devices of nodes have |
//! | [`sizing`] | from a checkpoint's headers to memory per rank, or a refusal that says what would fit |
//! | [`inspect`] | when to look into a checkpoint |
//! | [`revision`] | the template of new groups, and its semantic digest |
//! | [`backends`] | whether the worker image can compute on what is asked for |
//! | [`autoscaling`] | how many groups the load asks for |
//! | [`autoscalers`] | what pods tell cluster autoscalers |
//! | [`replicas`] | how many groups there are to be, and who wrote that |
//! | [`names`] | which deployment a model name belongs to |
//! | [`policy`] | what tenants may ask for |
//! | [`history`] | which resolved snapshots are kept |
//! | [`identity`] | what the weights are, where the source says it |
//! | [`children`] | Service and disruption budget as they should be |
//! | [`network`] | who may reach workers, and whom they may reach |
//! | [`refusals`] | when refused steps are tried again |
//! | [`rollout`] | which groups come and go |
//! | [`trial`] | whether a new revision starts where no surge fits |
//! | [`groups`] | what each group needs next |
//! | [`recovery`] | whether the budget allows another try, and where not |
//! | [`placement`] | which nodes have room for a whole group |
//! | [`volumes`] | on which nodes claims can be mounted |
//! | [`forecast`] | what would be decided, for `kubectl llamero plan` |
//! | [`status`] | what is reported |
//!
//! The contract of [`decide`] is in the crate's README.
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

pub mod autoscalers;
pub mod autoscaling;
pub mod backends;
pub mod children;
mod decide;
pub mod devices;
pub mod forecast;
pub mod groups;
pub mod history;
pub mod identity;
pub mod inspect;
mod interned;
pub mod names;
pub mod network;
pub mod observed;
pub mod placement;
pub mod plan;
mod planner;
pub mod policy;
pub mod progress;
pub mod recovery;
pub mod refusals;
pub mod replicas;
pub mod resources;
pub mod revision;
pub mod rollout;
pub mod sizing;
pub mod status;
pub mod time;
pub mod trial;
pub mod volumes;

pub use decide::decide;
pub use observed::Observed;
pub use plan::{Action, Key, Plan, Step};
pub use planner::Planner;
pub use status::report;
