//! Rank processes that share a GPU: one is killed in the middle of its work, and the other keeps its context.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use llamero_cuda::{CudaBackend, CudaOptions};
use llamero_engine::FormSpec;

use crate::drive::{self, Leader, row, sample};
use crate::model::TINY;

/// Tokens that each process decodes.
const TOKENS: u32 = 8;
/// How many of them the killed one gets to.
const KILLED_AFTER: u32 = 3;

/// The body of a rank's process: loads the model in the folder, then decodes a token for each line that it reads, and says the
/// bits of its logits.
///
/// # Errors
/// The backend's.
pub fn rank(kernels: &Path, arguments: Vec<String>) -> anyhow::Result<()> {
    let [model] = arguments.as_slice() else {
        bail!("`rank` is started by the stage `processes`");
    };
    let options = CudaOptions {
        kernels: Some(kernels.to_owned()),
        ..CudaOptions::alone()
    };
    let mut backend = CudaBackend::new(Path::new(model), options)?;
    let spec = FormSpec {
        kv_bytes: 1 << 20,
        ..drive::spec(1, 64, 64)
    };
    let blocks = drive::form(&mut backend, &spec)?;
    let mut leader = Leader::new(&spec, blocks);
    println!("formed");
    for (start, line) in (0..).zip(std::io::stdin().lines()) {
        line?;
        let plan = leader.plan(vec![row(0, start, &[5 + 7 * start], sample(1))]);
        let logits = drive::logits(&mut backend, &plan)?;
        let bits = logits.concat().iter().fold(String::new(), |mut text, logit| {
            let _ = write!(text, "{:08x}", logit.to_bits());
            text
        });
        println!("{bits}");
    }
    Ok(())
}

/// A rank's process; killed when it is dropped.
struct Member {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Member {
    fn start(model: &Path) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("rank")
            .arg(model)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let orders = child.stdin.take().context("no pipe")?;
        let answers = BufReader::new(child.stdout.take().context("no pipe")?);
        Ok(Self {
            child,
            orders,
            answers,
        })
    }

    fn order(&mut self) -> anyhow::Result<()> {
        writeln!(self.orders, "step").context("a rank's process has ended")
    }

    fn answer(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        let read = self.answers.read_line(&mut line)?;
        ensure!(
            read > 0,
            "a rank's process has ended, with {}",
            self.child.wait()?
        );
        Ok(line)
    }

    fn step(&mut self) -> anyhow::Result<String> {
        self.order()?;
        self.answer()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two processes decode the same on the first GPU; one is killed with a step under way; the other goes on with the bits of a
/// process that was never disturbed.
///
/// # Errors
/// What does not hold.
pub fn check() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    TINY.write(folder.path(), 7)?;
    let mut killed = Member::start(folder.path())?;
    let mut survivor = Member::start(folder.path())?;
    killed.answer()?;
    survivor.answer()?;
    let mut found = Vec::new();
    for _ in 0..KILLED_AFTER {
        let (one, other) = (killed.step()?, survivor.step()?);
        ensure!(one == other, "two processes give different bits");
        found.push(other);
    }
    killed.order()?;
    drop(killed);
    for _ in KILLED_AFTER..TOKENS {
        found.push(survivor.step().context("after another process was killed")?);
    }
    drop(survivor);
    let mut undisturbed = Member::start(folder.path())?;
    undisturbed.answer()?;
    for (token, found) in found.iter().enumerate() {
        let wanted = undisturbed.step()?;
        ensure!(
            wanted == *found,
            "token {token} has other bits than in an undisturbed process"
        );
    }
    Ok(())
}
