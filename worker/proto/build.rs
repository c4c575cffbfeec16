//! Compiles `llamero.v1` with a pure-Rust protobuf compiler and keeps descriptors for gRPC reflection, also of the
//! public contract in the crate `vllm-proto`, whose package ships its `.proto` files.

use std::path::{Path, PathBuf};
use std::{env, error::Error, fs, process::Command};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let files = ["rank", "telemetry", "completion", "quota", "identity"]
        .map(|name| format!("proto/llamero/v1/{name}.proto"));
    let descriptors = protox::compile(&files, ["proto"])?;
    fs::write(out.join("llamero.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;

    let vllm = package_dir("vllm-proto")?;
    let public = protox::compile(["inference.proto", "control.proto"], [&vllm])?;
    fs::write(out.join("vllm.bin"), public.encode_to_vec())?;

    println!("cargo:rerun-if-changed=proto");
    Ok(())
}

/// Folder of a dependency, as cargo resolved it.
fn package_dir(name: &str) -> Result<PathBuf, Box<dyn Error>> {
    let output = Command::new(env::var("CARGO")?)
        .args([
            "metadata",
            "--format-version=1",
            "--filter-platform",
            &env::var("TARGET")?,
        ])
        .output()?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)
        .map_err(|e| format!("cargo metadata: {e}: {}", String::from_utf8_lossy(&output.stderr)))?;
    let manifest = metadata["packages"]
        .as_array()
        .and_then(|all| all.iter().find(|package| package["name"] == name))
        .and_then(|package| package["manifest_path"].as_str())
        .ok_or_else(|| format!("{name} is not a dependency"))?;
    Ok(Path::new(manifest)
        .parent()
        .ok_or("manifest without folder")?
        .to_owned())
}
