//! gRPC contracts: [`v1`] between the parts of Llamero, `vllm` toward applications (the crate `vllm-proto`), and the
//! descriptors of both for gRPC reflection. [`ports`] are what operator, gateway and worker must agree on besides;
//! [`vllm`] is what the servers of the public contract share.

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

pub mod ports;
pub mod vllm;

/// `llamero.v1`: rank control, telemetry, demand and completion. The documentation is in the `.proto` files.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod v1 {
    tonic::include_proto!("llamero.v1");
}

/// Encoded `FileDescriptorSet` of `llamero.v1`.
pub const LLAMERO_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/llamero.bin"));

/// Encoded `FileDescriptorSet` of the public contract, package `vllm`.
pub const VLLM_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/vllm.bin"));
