//! The backend as the engine sees it, on a small random model and on SmolLM2.

mod bits;
mod contract;
mod group;
mod kv_quality;
mod lora;
mod memory;
mod prefix;
mod reference;
mod reshape;
mod tiny;
