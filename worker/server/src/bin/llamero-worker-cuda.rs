//! The same program as `llamero-worker`, linked dynamically (`.cargo/rustc.sh`), so that it can load an NVIDIA driver: that of the images for GPUs.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    llamero_worker::cli::main()
}
