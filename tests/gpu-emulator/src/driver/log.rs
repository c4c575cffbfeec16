//! A line for each launch, and every reason for a failure on standard error.

use std::io::Write;

use super::config::Config;
use crate::exec::memory::Global;

/// Tell a person why a call failed.
pub(super) fn complain(call: &str, reason: &str) {
    eprintln!("llamero-gpu-emulator: {call}: {reason}");
}

/// Append `{"kernel","device","grid","block","fault","buffers":[[base,size,read,written],…]}`; buffers that were not
/// touched are left out.
pub(super) fn launch(
    config: &Config,
    kernel: &str,
    device: usize,
    shape: [[u32; 3]; 2],
    fault: Option<&str>,
    memory: &Global,
) {
    let Some(path) = &config.log else { return };
    let buffers: Vec<String> = memory
        .regions()
        .iter()
        .filter(|region| region.bytes_read() + region.bytes_written() > 0)
        .map(|region| {
            let (read, written) = (region.bytes_read(), region.bytes_written());
            format!("[{},{},{read},{written}]", region.base(), region.size())
        })
        .collect();
    let fault = fault.map_or("null".to_owned(), |fault| format!("{fault:?}"));
    let [grid, block] = shape;
    let line = format!(
        "{{\"kernel\":{kernel:?},\"device\":{device},\"grid\":{grid:?},\"block\":{block:?},\"fault\":{fault},\"buffers\":[{}]}}\n",
        buffers.join(",")
    );
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    // One write a line, so that lines of several processes do not mix.
    if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
        complain("log", &format!("{}: {error}", path.display()));
    }
}
