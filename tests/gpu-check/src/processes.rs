//! Rank processes that share a GPU: each alone, and two as a tensor group. One is killed in the middle of its work, and the
//! other keeps its context.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use llamero_checkpoint::{Members, Topology};
use llamero_cuda::{CudaBackend, CudaOptions, ExchangeOptions, Gpu};
use llamero_engine::mesh::{Connection, DataLink, EraAbort, LinkKind, TcpMesh};
use llamero_engine::{Backend as _, FormSpec};

use crate::drive::{self, ERA, Leader, row, sample};
use crate::model::TINY;

/// Tokens that each process decodes.
pub(crate) const TOKENS: u32 = 8;
/// How many of them the killed one gets to.
const KILLED_AFTER: u32 = 3;

/// Which rank of a group a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Alone,
    /// The first of two, which waits for the second.
    First,
    /// The second of two: the port where the first waits, and the number of its GPU.
    Second(u16, usize),
}

impl Place {
    fn of(arguments: &[String]) -> anyhow::Result<(&str, Self)> {
        match arguments {
            [model] => Ok((model, Self::Alone)),
            [model, place] if place == "first" => Ok((model, Self::First)),
            [model, place, port, gpu] if place == "second" => {
                Ok((model, Self::Second(port.parse()?, gpu.parse()?)))
            }
            _ => bail!("`rank` is started by the stage `processes`"),
        }
    }

    fn options(self, kernels: &Path) -> CudaOptions {
        let (tensor, rank, gpu) = match self {
            Self::Alone => (1, 0, 0),
            Self::First => (2, 0, 0),
            Self::Second(_, gpu) => (2, 1, gpu),
        };
        CudaOptions {
            members: Topology::tensor(tensor).into(),
            rank,
            gpu: Gpu::Number(gpu),
            kernels: Some(kernels.to_owned()),
            exchange: ExchangeOptions {
                same_gpu: true,
                ..ExchangeOptions::default()
            },
            ..CudaOptions::alone()
        }
    }

    /// Meet the other rank. The first one says its port.
    fn mesh(self) -> anyhow::Result<TcpMesh> {
        let (stream, ends) = match self {
            Self::Alone => return Ok(TcpMesh::alone(ERA)),
            Self::First => {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
                println!("{}", listener.local_addr()?.port());
                (listener.accept()?.0, (0, 1))
            }
            Self::Second(port, _) => (TcpStream::connect((Ipv4Addr::LOCALHOST, port))?, (1, 0)),
        };
        let abort = Arc::new(EraAbort::default());
        let connection = Connection::without_handshake(stream, ends, ERA, LinkKind::Data)?;
        connection.watch(&abort)?;
        let links = vec![DataLink::new(connection, ends.1)];
        let members: Members = Topology::tensor(2).into();
        Ok(TcpMesh::new(ends.0, members, ERA, links, abort)?)
    }
}

/// The body of a rank's process: loads the model in the folder and forms its group, then decodes a token for each line that it
/// reads, and says the bits of its logits. When the other rank is lost it says so, and at the next line forms the group again.
///
/// # Errors
/// The backend's.
pub fn rank(kernels: &Path, arguments: Vec<String>) -> anyhow::Result<()> {
    let (model, place) = Place::of(&arguments)?;
    let mut backend = CudaBackend::new(Path::new(model), place.options(kernels))?;
    let spec = FormSpec {
        kv_bytes: 1 << 20,
        ..drive::spec(1, 64, 64)
    };
    let mut orders = std::io::stdin().lines();
    loop {
        let blocks = drive::form_over(&mut backend, &spec, place.mesh()?)?;
        println!("formed");
        if let Err(error) = decode(&mut backend, Leader::new(&spec, blocks), &mut orders) {
            println!("lost: {error}");
            backend.dissolve();
            orders.next().transpose()?;
        } else {
            return Ok(());
        }
    }
}

fn decode(
    backend: &mut CudaBackend,
    mut leader: Leader,
    orders: &mut impl Iterator<Item = std::io::Result<String>>,
) -> anyhow::Result<()> {
    for (start, line) in (0..).zip(orders) {
        line?;
        let plan = leader.plan(vec![row(0, start, &[5 + 7 * start], sample(1))]);
        let logits = drive::logits(backend, &plan)?;
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
    fn start(model: &Path, place: &[&str]) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("rank")
            .arg(model)
            .args(place)
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

    /// Start the second rank of a group whose first one this is, on a GPU, and wait until both have formed.
    fn join(&mut self, model: &Path, gpu: usize) -> anyhow::Result<Self> {
        let port = self.answer()?;
        let mut second = Self::start(model, &["second", &port, &gpu.to_string()])?;
        self.answer()?;
        second.answer()?;
        Ok(second)
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
        Ok(line.trim_end().to_owned())
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
    let mut killed = Member::start(folder.path(), &[])?;
    let mut survivor = Member::start(folder.path(), &[])?;
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
    let mut undisturbed = Member::start(folder.path(), &[])?;
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

/// Two processes are one tensor group, the first on the first GPU, the other on the one with this number: they have the bits of
/// one process that has the whole model. One is killed, as often as `kills` says; the other says so, and forms the group again
/// with another one in the same context, its weights still there.
///
/// # Errors
/// What does not hold.
pub fn check_group(gpu: usize, tokens: u32, kills: u32) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    TINY.write(folder.path(), 7)?;
    let mut alone = Member::start(folder.path(), &[])?;
    alone.answer()?;
    let wanted: Vec<String> = (0..tokens).map(|_| alone.step()).collect::<anyhow::Result<_>>()?;
    drop(alone);
    let mut first = Member::start(folder.path(), &["first"])?;
    let mut second = first.join(folder.path(), gpu)?;
    same(&mut first, &mut second, &wanted)?;
    for _ in 0..kills {
        first.order()?;
        drop(second);
        let said = first.answer()?;
        ensure!(
            said.starts_with("lost: lost rank 1"),
            "a rank whose peer was killed says: {said}"
        );
        first.order()?;
        second = first
            .join(folder.path(), gpu)
            .context("after a rank was killed")?;
        let some = &wanted[..wanted.len().min(KILLED_AFTER as usize)];
        same(&mut first, &mut second, some).context("after a rank was killed")?;
    }
    Ok(())
}

/// What two ranks give together is what was wanted.
fn same(first: &mut Member, second: &mut Member, wanted: &[String]) -> anyhow::Result<()> {
    for (token, wanted) in wanted.iter().enumerate() {
        first.order()?;
        second.order()?;
        let found = first.answer()? + &second.answer()?;
        ensure!(
            found == *wanted,
            "token {token} of two ranks has other bits than of one: {found:.80}"
        );
    }
    Ok(())
}
