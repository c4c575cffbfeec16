//! The engine: what turns requests into steps of a group of ranks.
//!
//! | module | what it is |
//! |---|---|
//! | [`step`] | what travels in one step: plan, late values, candidates |
//! | [`adapters`] | LoRA adapters that a rank has beside the model |
//! | [`form`] | the limits that the ranks of a group form with |
//! | [`backend`] | the contract of one rank's compute |
//! | [`device`] | what a rank computes on |
//! | [`block_tables`] | which KV blocks hold the positions of each slot |
//! | [`kv_state`] | checks of a plan, and which KV blocks hold what |
//! | [`late_values`] | what a submitted step still waits for |
//! | [`schedule`] | what is computed next: admission, batches, KV blocks, preemption |
//! | [`mesh`] | links between the ranks of a group, on which backends build their collectives |
//! | [`runtime`] | the loops of leader and followers, from loading to draining |
//! | [`leaf_tree`] | the fixed tree in which partial sums are joined |
//! | [`log_sum`] | sums of exponentials of any size |
//! | [`sampling`] | from candidates to a token |
//! | [`pooling`] | from hidden states to an embedding |
//! | [`structured`] | answers with a form: JSON, regular expressions, grammars |
//! | [`text`] | from messages to a validated request, from tokens to text |

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

pub mod adapters;
pub mod backend;
pub mod block_tables;
pub mod device;
pub mod form;
pub mod kv_state;
pub mod late_values;
pub mod leaf_tree;
pub mod log_sum;
pub mod mesh;
pub mod pooling;
pub mod runtime;
pub mod sampling;
pub mod schedule;
pub mod step;
pub mod structured;
pub mod text;

pub use adapters::{AdapterSource, AdapterStore, NoAdapters, Reading};
pub use backend::{
    Backend, BackendError, KvCapacity, LoadProgress, LoadWatch, MemoryPlan, StepProgress, Ticket, Unwatched,
    Waited,
};
pub use block_tables::{BlockTableError, BlockTables};
pub use device::{DeviceBoard, DeviceReport};
pub use form::{FormLimits, FormSpec, KvDtype};
pub use leaf_tree::LeafLayout;
pub use mesh::{Abort, Label, Members, Mesh, MeshError, Topology, Transfer, Wait};
pub use step::{
    Era, Late, LogitShard, Plan, PlanRow, RowCandidates, RowOutput, SampleKey, StepOutput, TokenRef,
};
