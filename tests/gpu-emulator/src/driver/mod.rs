//! The driver interface of CUDA, as far as a program without a display needs it.
//!
//! | module | what it is |
//! |---|---|
//! | `abi` | the exported functions: pointers in, results out; nearly all `unsafe` is there |
//! | [`state`] | the process's driver: devices, handles, the current context of a thread |
//! | `memory`, `mapping`, `vmm` | allocations, the operating system's memory, shareable handles |
//! | `stream` | queues, events, capture and graphs |
//! | `work` | what a queue holds, and doing it |
//! | `module` | PTX and its variables, functions and their limits |
//! | `nccl` | collectives over TCP |
//! | `device` | attributes by compute capability |
//! | `config`, `faults`, `log` | the emulated machine, faults on demand, a line for each launch |
//!
//! Handles are numbers in tables, never pointers, so a stale one is an error and no crash.

mod abi;
mod config;
mod device;
mod error;
mod faults;
mod log;
mod mapping;
mod memory;
mod module;
mod nccl;
mod state;
mod stream;
mod vmm;
mod work;
