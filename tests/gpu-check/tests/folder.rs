//! The folder of the check as its users run it: built by its script, moved to a machine without this checkout's compiler, and
//! run by its one command. The machine's driver is the emulator.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use llamero_gpu_check::stages::STAGES;
use llamero_gpu_emulator::layout::lay_out;
use serde_json::Value;

fn build() -> PathBuf {
    // Kept from run to run, because compiling for every GPU takes a while.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gpu-check");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("build.sh");
    let mut command = Command::new(script);
    // What cargo tells a test of its own package would have build scripts of others run anew, and all that depends on them compiled twice.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO") && !matches!(&*text, "CARGO_HOME" | "CARGO_TARGET_DIR") {
            command.env_remove(&name);
        }
    }
    let output = command.arg(&folder).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    folder
}

fn text(output: &Output) -> String {
    let (out, error) = (&output.stdout, &output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(error)
    )
}

/// Run the folder's command on an emulated machine.
fn run(folder: &Path, machine: &str, stages: &[&str]) -> Output {
    let libraries = tempfile::tempdir().unwrap();
    lay_out(libraries.path(), &[]).unwrap();
    Command::new(folder.join("run.sh"))
        .args(stages)
        .env("LD_LIBRARY_PATH", libraries.path())
        .env("LLAMERO_GPU_EMULATOR", machine)
        .env("LLAMERO_GPU_CHECK_SMALL", "1")
        .output()
        .unwrap()
}

fn results(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("results.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn the_folder_runs_by_one_command_and_says_what_fails() {
    let folder = build();
    let output = run(&folder, "memory=512MiB", &[]);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert_eq!(fs::read_to_string(folder.join("results.txt")).unwrap(), said);
    for stage in STAGES {
        assert!(said.contains(&format!("== {stage}\n")), "{stage}: {said}");
    }
    let results = results(&folder);
    let stages: BTreeSet<&str> = results
        .iter()
        .filter_map(|result| result["stage"].as_str())
        .collect();
    let wanted = [
        "attention",
        "backend",
        "candidates",
        "decode",
        "device",
        "exchange",
        "layer",
        "peers",
        "prefill",
        "processes",
        "product",
        "read",
        "smollm2",
    ];
    assert_eq!(stages, BTreeSet::from(wanted), "{said}");
    let table: Value = serde_json::from_slice(&fs::read(folder.join("table.json")).unwrap()).unwrap();
    assert_eq!(table["tests"]["failed"], 0, "{table}");
    assert!(table["figures"].as_array().unwrap().len() >= 7, "{table}");
    let card = table["card"]["name"].as_str().unwrap();
    let shown = fs::read_to_string(folder.join("table.md")).unwrap();
    assert!(
        shown.starts_with(card) && shown.contains("| decode | 8B |"),
        "{shown}"
    );
    // A device that fails fails the stage and the run, and the stages behind it are run.
    let output = run(&folder, "memory=512MiB,fault=illegal@2", &["processes", "device"]);
    let said = text(&output);
    assert!(!output.status.success(), "{said}");
    assert!(
        said.contains("processes FAILED") && said.contains("illegal memory access"),
        "{said}"
    );
    assert!(said.contains("compute capability 9.0"), "{said}");
    // Nothing begins when the time is over.
    let output = Command::new(folder.join("run.sh"))
        .arg("device")
        .env("LLAMERO_GPU_CHECK_SECONDS", "0")
        .output()
        .unwrap();
    assert!(
        !output.status.success() && text(&output).contains("device LEFT OUT"),
        "{}",
        text(&output)
    );
}
