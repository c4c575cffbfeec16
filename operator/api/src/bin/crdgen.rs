//! Writes the CustomResourceDefinitions to `crds/` and the chart, and the page about them, or checks that all are up to date.
#![forbid(unsafe_code)]

use std::{path::Path, process::ExitCode};

use llamero_api::{crds, reference};

const FOLDERS: [&str; 2] = ["crds", "charts/llamero/crds"];

const HELP: &str = "usage: llamero-crdgen [--check] [ROOT]
Writes crds/*.yaml, charts/llamero/crds/*.yaml and docs/resources.md below ROOT (default: the present folder).
--check writes nothing and fails when a file differs from the types.";

fn main() -> ExitCode {
    let mut check = false;
    let mut root = None;
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--check" => check = true,
            "-h" | "--help" => {
                println!("{HELP}");
                return ExitCode::SUCCESS;
            }
            _ if argument.starts_with('-') || root.is_some() => {
                eprintln!("unexpected argument {argument:?}\n{HELP}");
                return ExitCode::from(2);
            }
            _ => root = Some(argument),
        }
    }
    let root = root.unwrap_or_else(|| ".".to_owned());
    match run(Path::new(&root), check) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Number of files that differ (with `check`).
fn run(root: &Path, check: bool) -> Result<usize, Box<dyn std::error::Error>> {
    let mut files = vec![(root.join(reference::FILE), reference::page()?)];
    for (name, text) in crds::files()? {
        files.extend(FOLDERS.map(|folder| (root.join(folder).join(&name), text.clone())));
    }
    let mut differing = 0;
    for (path, text) in files {
        if !check {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)
                    .map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
            }
            std::fs::write(&path, text)
                .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        } else if std::fs::read_to_string(&path).ok() != Some(text) {
            eprintln!(
                "{} differs from the types in operator/api: run llamero-crdgen and commit the result",
                path.display()
            );
            differing += 1;
        }
    }
    Ok(differing)
}
