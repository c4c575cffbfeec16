//! The program, its models, and waiting with a deadline.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// Long enough for two cores that many programs share; nothing waits this long when all is well.
pub(crate) const DEADLINE: Duration = Duration::from_secs(240);

/// A model of `make model`.
pub(crate) fn model(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../.local/models")
        .join(name);
    assert!(
        path.exists(),
        "{} is missing: run `make model` first",
        path.display()
    );
    path
}

pub(crate) fn fp8() -> PathBuf {
    model("SmolLM2-135M-Instruct-FP8")
}

/// `llamero` with a cache of its own and none of the variables of whoever runs the tests.
pub(crate) fn llamero(cache: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llamero"));
    for variable in [
        "HF_TOKEN",
        "HF_ENDPOINT",
        "LLAMERO_LOG",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
    ] {
        command.env_remove(variable);
    }
    command
        .env("LLAMERO_CACHE", cache)
        .args(args)
        .stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What a program has written and ended with.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) code: Option<i32>,
}

/// A program that runs; it is killed when the test ends.
pub(crate) struct Running {
    child: Child,
    out: mpsc::Receiver<String>,
    err: mpsc::Receiver<String>,
    seen: String,
}

impl Running {
    pub(crate) fn start(mut command: Command, input: &str) -> Self {
        if !input.is_empty() {
            command.stdin(Stdio::piped());
        }
        let mut child = command.spawn().unwrap();
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).unwrap();
        }
        let out = lines(child.stdout.take().unwrap());
        let err = lines(child.stderr.take().unwrap());
        let seen = String::new();
        Self {
            child,
            out,
            err,
            seen,
        }
    }

    /// Read standard error up to a line with `part`.
    pub(crate) fn wait_for(&mut self, part: &str) -> String {
        loop {
            let line = self.err.recv_timeout(DEADLINE);
            let line = line.unwrap_or_else(|_| panic!("no line with {part:?} came, only:\n{}", self.seen));
            self.seen.push_str(&line);
            if line.contains(part) {
                return line;
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Read to the end.
    pub(crate) fn finish(mut self) -> Ran {
        let out = rest(&self.out);
        let err = std::mem::take(&mut self.seen) + &rest(&self.err);
        let code = self.child.wait().unwrap().code();
        Ran { out, err, code }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Run it to its end.
pub(crate) fn run(command: Command) -> Ran {
    Running::start(command, "").finish()
}

fn lines(from: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        loop {
            let mut line = String::new();
            if from.read_line(&mut line).unwrap_or(0) == 0 || sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

fn rest(lines: &mpsc::Receiver<String>) -> String {
    let mut text = String::new();
    loop {
        match lines.recv_timeout(DEADLINE) {
            Ok(line) => text.push_str(&line),
            Err(mpsc::RecvTimeoutError::Disconnected) => return text,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("it does not end; so far:\n{text}"),
        }
    }
}
