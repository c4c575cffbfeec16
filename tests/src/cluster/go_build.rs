//! Builds the programs of the cluster from the Go modules that pin them (`tests/cluster/<part>/go.mod`).

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::command;
use crate::paths;

/// One Go module below `tests/cluster` and the programs that come out of it.
struct Part {
    name: &'static str,
    /// What the Go tool names the program, and our name for it.
    programs: &'static [(&'static str, &'static str)],
    /// Package to build: the module's `tool` lines, or a main package of its own.
    package: &'static str,
    tags: &'static str,
    /// Needs a C compiler and Debian's libseccomp.
    cgo: bool,
    /// `-X` flags for the linker.
    defines: &'static str,
}

const PLAIN: Part = Part {
    name: "",
    programs: &[],
    package: "tool",
    tags: "",
    cgo: false,
    defines: "",
};

const PARTS: &[Part] = &[
    Part {
        name: "containerd",
        programs: &[
            ("containerd", "containerd"),
            ("containerd-shim-runc-v2", "containerd-shim-runc-v2"),
            ("ctr", "ctr"),
        ],
        tags: "no_btrfs no_devmapper no_zfs",
        ..PLAIN
    },
    Part {
        name: "runc",
        programs: &[("runc", "runc")],
        tags: "seccomp",
        cgo: true,
        ..PLAIN
    },
    Part {
        name: "kubernetes",
        programs: &[
            ("server", "etcd"),
            ("kube-apiserver", "kube-apiserver"),
            ("kube-controller-manager", "kube-controller-manager"),
            ("kube-proxy", "kube-proxy"),
            ("kube-scheduler", "kube-scheduler"),
            ("kubectl", "kubectl"),
            ("kubelet", "kubelet"),
        ],
        // The API server refuses to start with the version v0.0.0 of an unstamped build.
        defines: "-X k8s.io/component-base/version.gitVersion=v1.36.3 \
                  -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36",
        ..PLAIN
    },
    Part {
        name: "coredns",
        programs: &[("coredns", "coredns")],
        package: ".",
        ..PLAIN
    },
    Part {
        name: "helm",
        programs: &[("helm", "helm")],
        ..PLAIN
    },
    Part {
        name: "grpcurl",
        programs: &[("grpcurl", "grpcurl")],
        ..PLAIN
    },
    Part {
        name: "versitygw",
        programs: &[("versitygw", "versitygw")],
        ..PLAIN
    },
];

/// Parts that only benchmarks need: built when they are asked for by name.
const ON_DEMAND: &[Part] = &[Part {
    name: "kwok",
    programs: &[("kwok", "kwok")],
    ..PLAIN
}];

/// Builds every part whose pins have changed since it was last built, and of those that only benchmarks need the `wanted` ones; says what it does
/// on standard error.
///
/// # Errors
/// The Go tool is missing, the module proxy cannot be reached, a part does not compile, or nothing is called so.
pub fn build(wanted: &[String]) -> Result<()> {
    if let Some(unknown) = wanted
        .iter()
        .find(|name| ON_DEMAND.iter().all(|part| part.name != **name))
    {
        let known: Vec<&str> = ON_DEMAND.iter().map(|part| part.name).collect();
        bail!(
            "there is no part {unknown} to be built on demand: {}",
            known.join(", ")
        );
    }
    let on_demand = ON_DEMAND
        .iter()
        .filter(|part| wanted.iter().any(|name| name == part.name));
    let parts: Vec<&Part> = PARTS.iter().chain(on_demand).collect();
    let go = command::output(&mut command::command("go", &["version"])).context(
        "the cluster's programs are built with Go: install Go 1.26.6 or later (https://go.dev/dl)",
    )?;
    for (index, part) in parts.iter().enumerate() {
        let pins = pins(part, &go)?;
        if is_built(part, &pins) {
            continue;
        }
        let title = format!("[{}/{}] {}", index + 1, parts.len(), part.name);
        compile(part, &title).with_context(|| format!("cannot build {}", part.name))?;
        std::fs::write(pins_file(part), pins)?;
    }
    Ok(())
}

/// Checks that [`build`] has been run for the present pins' programs.
///
/// # Errors
/// Names the first program that is missing.
pub fn require() -> Result<()> {
    for (_, program) in PARTS.iter().flat_map(|part| part.programs) {
        if !paths::program(program).exists() {
            bail!("{program} has not been built: run `make cluster-build`");
        }
    }
    Ok(())
}

fn module(part: &Part) -> PathBuf {
    paths::root().join("tests/cluster").join(part.name)
}

fn pins_file(part: &Part) -> PathBuf {
    paths::binaries().join(format!(".{}.pins", part.name))
}

/// Hash of all that decides what comes out of the compiler.
fn pins(part: &Part, go: &str) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(format!("{go}\n{}\n{}\n{}\n", part.tags, part.cgo, part.defines));
    let mut files: Vec<PathBuf> = std::fs::read_dir(module(part))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.sort();
    for file in files {
        hash.update(std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?);
    }
    Ok(hash.finalize().iter().fold(String::new(), |mut hex, byte| {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    }))
}

fn is_built(part: &Part, pins: &str) -> bool {
    std::fs::read_to_string(pins_file(part)).is_ok_and(|built| built == pins)
        && part
            .programs
            .iter()
            .all(|(_, program)| paths::program(program).exists())
}

fn compile(part: &Part, title: &str) -> Result<()> {
    let start = Instant::now();
    eprintln!("{title}: fetching modules");
    let total = command::output(&mut go(part, "list", &["-deps"]))?
        .lines()
        .count();
    let folder = paths::binaries().join(format!(".{}.new", part.name));
    std::fs::create_dir_all(&folder)?;
    let mut build = go(
        part,
        "build",
        &["-v", "-trimpath", "-o", &format!("{}/", folder.display())],
    );
    build.stdout(Stdio::null()).stderr(Stdio::piped());
    let words = follow(build.spawn()?, title, total, start)?;
    if let Some(words) = words {
        bail!("the Go compiler says:\n{words}");
    }
    for (built, program) in part.programs {
        std::fs::rename(folder.join(built), paths::program(program))?;
    }
    std::fs::remove_dir_all(&folder)?;
    eprintln!("{title}: done in {} s", start.elapsed().as_secs());
    Ok(())
}

/// `go list` and `go build` take the same flags, and the flags decide which packages are compiled.
fn go(part: &Part, verb: &str, more: &[&str]) -> Command {
    let mut command = command::command("go", &[verb]);
    command
        .args(more)
        .args(["-mod=readonly", "-buildvcs=false", "-tags", part.tags])
        .arg("-ldflags")
        .arg(format!("-s -w {}", part.defines))
        .arg(part.package)
        .current_dir(module(part))
        .env("GOWORK", "off")
        .env("CGO_ENABLED", if part.cgo { "1" } else { "0" });
    command
}

/// Reads the names of packages as they are compiled and reports every few seconds.
/// Returns the compiler's words when it failed.
fn follow(mut child: Child, title: &str, total: usize, start: Instant) -> Result<Option<String>> {
    let pipe = child.stderr.take().context("no pipe to the compiler")?;
    let (sender, lines) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let interval = Duration::from_secs(5);
    let (mut compiled, mut words, mut next) = (0, Vec::new(), Instant::now() + interval);
    loop {
        match lines.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                compiled += 1;
                words.push(line);
            }
            Err(RecvTimeoutError::Timeout) => {
                eprintln!(
                    "{title}: {compiled} of at most {total} packages, {} s",
                    start.elapsed().as_secs()
                );
                next = Instant::now() + interval;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    reader
        .join()
        .ok()
        .context("the reader of the compiler's words has panicked")?;
    let failed = !child.wait()?.success();
    Ok(failed.then(|| words[words.len().saturating_sub(40)..].join("\n")))
}

/// Folder that programs look for their helpers in (containerd starts runc and its shim by name).
#[must_use]
pub(super) fn search_path() -> String {
    let inherited = std::env::var("PATH").unwrap_or_default();
    format!(
        "{}:{inherited}:/usr/sbin:/sbin",
        Path::new(&paths::binaries()).display()
    )
}
