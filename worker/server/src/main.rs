//! The program `llamero-worker`, one static file, for CPUs; everything is in the library.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    llamero_worker::cli::main()
}
