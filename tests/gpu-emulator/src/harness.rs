//! Runs tests on the emulator.
//!
//! A process finds `libcuda.so.1` by the `LD_LIBRARY_PATH` it was started with, and one process has one emulated machine.
//! So a test starts its own binary again, once for each machine, and its body runs in there.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::layout::lay_out;

/// Names the test whose body a process is to run.
const INSIDE: &str = "LLAMERO_GPU_EMULATOR_TEST";

/// Warp orders in which a kernel must give the same result.
pub const ORDERS: [&str; 3] = ["order=forward", "order=reverse", "order=seed:1"];

/// Define tests that run on emulated machines.
///
/// ```ignore
/// emulated! {
///     fn adds_vectors() on ORDERS { … }
/// }
/// ```
#[macro_export]
macro_rules! emulated {
    ($($(#[$meta:meta])* fn $name:ident() on $machines:expr, $body:block)*) => {
        $(
            $(#[$meta])*
            #[test]
            fn $name() {
                let path = concat!(module_path!(), "::", stringify!($name));
                $crate::harness::on_machines(path, &$machines, || $body);
            }
        )*
    };
}

/// Where the toolchain's script put NVRTC.
///
/// # Panics
/// It is not there.
#[must_use]
pub fn nvrtc() -> PathBuf {
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.local/venv-nvrtc/lib");
    let pythons = std::fs::read_dir(&venv).into_iter().flatten().flatten();
    let found = pythons
        .map(|python| python.path().join("site-packages/nvidia/cu13/lib"))
        .find(|folder| folder.is_dir());
    match found {
        Some(folder) => folder,
        None => panic!("NVRTC is not in {}: run `make gpu-toolchain`", venv.display()),
    }
}

/// Lines of the log of this machine, which was asked for by `log={folder}/log`.
///
/// # Panics
/// There is no log.
#[must_use]
pub fn log() -> Vec<String> {
    let machine = std::env::var("LLAMERO_GPU_EMULATOR").unwrap_or_default();
    let path = machine.split(',').find_map(|item| item.strip_prefix("log="));
    match path.map(std::fs::read_to_string) {
        Some(Ok(text)) => text.lines().map(str::to_owned).collect(),
        other => panic!("no log: {other:?}"),
    }
}

/// Whether this process runs the body of a test.
#[must_use]
pub fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Run `body` on each machine, in a process of its own. `path` is the test's, with its crate. `{folder}` in a machine is
/// a folder of that process.
///
/// # Panics
/// The body fails on one of them, with its output.
pub fn on_machines(path: &str, machines: &[&str], body: impl FnOnce()) {
    let test = path.split_once("::").map_or(path, |(_, test)| test);
    if std::env::var(INSIDE).is_ok_and(|inside| inside == test) {
        return body();
    }
    let name = format!(
        "llamero-gpu-emulator-{}-{}",
        std::process::id(),
        test.replace(':', "-")
    );
    let folder = std::env::temp_dir().join(name);
    let libraries = folder.join("lib");
    if let Err(error) = lay_out(&libraries, &[nvrtc()]) {
        panic!("{}: {error}", libraries.display());
    }
    for (number, machine) in machines.iter().enumerate() {
        let own = folder.join(number.to_string());
        if let Err(error) = std::fs::create_dir_all(&own) {
            panic!("{}: {error}", own.display());
        }
        run(
            test,
            &machine.replace("{folder}", &own.to_string_lossy()),
            &libraries,
        );
    }
    // After a failure the logs stay.
    let _ = std::fs::remove_dir_all(&folder);
}

fn run(test: &str, machine: &str, libraries: &Path) {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => panic!("{error}"),
    };
    let output = Command::new(program)
        .args([test, "--exact", "--nocapture", "--include-ignored"])
        .env("LD_LIBRARY_PATH", libraries)
        .env("LLAMERO_GPU_EMULATOR", machine)
        .env(INSIDE, test)
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) => panic!("{error}"),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    // A name that matches no test would pass by doing nothing.
    if !output.status.success() || !text.contains("1 passed") {
        let errors = String::from_utf8_lossy(&output.stderr);
        panic!("on `{machine}`: {}\n{text}\n{errors}", output.status);
    }
}
