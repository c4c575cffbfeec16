//! Keeps one rank's process running.

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use llamero_identity::credentials::Material;
use llamero_proto::v1::{ExitKind, RankExit};
use llamero_sources::FetchError;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::backoff::Backoff;
use super::identity::SharedIdentity;
use super::last_words;
use super::memory::Memory;
use super::pod::Pod;
use crate::config::RankConfig;
use crate::link::{self, Down, Membership, Up};

/// What the ranks shall do. Level-triggered: a rank that starts late is told as well.
#[derive(Debug, Clone, Default)]
pub struct Orders {
    /// Connect with these members.
    pub membership: Option<Membership>,
    /// By which rank 0 serves clients.
    pub credentials: Option<Material>,
    /// Stop serving.
    pub drain: bool,
}

/// What a keeper works with.
pub struct Keeper {
    /// Local index of the rank.
    pub index: usize,
    /// The rank's configuration; ports that the kernel chose are filled in from then on.
    pub config: RankConfig,
    /// What the weights are, which all ranks are told.
    pub identity: Arc<SharedIdentity>,
    /// The memory files of the pod, which outlive its processes.
    pub memory: Arc<Memory>,
    /// The pod's state.
    pub pod: Arc<watch::Sender<Pod>>,
    /// What the ranks shall do.
    pub orders: watch::Receiver<Orders>,
    /// Give up when the process says that its input cannot be used, instead of trying again.
    pub give_up: bool,
}

/// How keeping ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Ended {
    /// The group ended.
    Left,
    /// The process of rank 0 died while the group drained: nothing is left to finish.
    DiedDraining(RankExit),
    /// The input cannot be used.
    Unusable(RankExit),
}

impl Keeper {
    /// Run the rank's process, again and again, until the group ends.
    ///
    /// # Errors
    /// Only what the runtime says; that a process cannot be run is tried again.
    pub async fn keep(mut self) -> io::Result<Ended> {
        let mut backoff = Backoff::default();
        loop {
            let started = Instant::now();
            let exit = match self.run_once().await {
                Ok(exit) => exit,
                Err(error) => self.not_run(&error),
            };
            let mut left = false;
            self.pod.send_modify(|pod| {
                let view = pod.rank(self.index);
                view.pid = None;
                view.last_exit = Some(exit.clone());
                left = view.left;
            });
            if left {
                return Ok(Ended::Left);
            }
            if self.give_up && exit.kind() == ExitKind::Unusable {
                return Ok(Ended::Unusable(exit));
            }
            if self.config.rank == 0 && self.orders.borrow().drain {
                return Ok(Ended::DiedDraining(exit));
            }
            let members = self.orders.borrow().membership.clone();
            let mut orders = self.orders.clone();
            let wait = backoff.after(exit.kind(), started.elapsed());
            tracing::warn!(
                rank = self.config.rank,
                "{}; it is started again in {wait:?}",
                exit.message
            );
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = drained(&mut self.orders), if self.config.rank == 0 => return Ok(Ended::DiedDraining(exit)),
                // It may have been unusable only beside the members that there were.
                () = renewed(&mut orders, members.as_ref()), if exit.kind() == ExitKind::Unusable => {}
            }
            self.pod.send_modify(|pod| pod.rank(self.index).restarts += 1);
        }
    }

    /// What counts as the end of a process that did not begin.
    fn not_run(&self, error: &NotRun) -> RankExit {
        let kind = match error {
            NotRun::Source(error) if error.is_final() => ExitKind::Unusable,
            NotRun::Source(_) | NotRun::Drained | NotRun::Process(_) => ExitKind::Crashed,
        };
        // Nobody else says why: there is no process that could.
        tracing::error!(rank = self.config.rank, "{error}");
        RankExit {
            message: error.to_string(),
            unix_millis: last_words::unix_millis(SystemTime::now()),
            kind: kind.into(),
            ..RankExit::default()
        }
    }

    async fn run_once(&mut self) -> Result<RankExit, NotRun> {
        self.config.engine.content_identity = tokio::select! {
            identity = self.identity.get() => identity?,
            // Nobody would use the weights any more, and a source that does not answer is asked for minutes.
            () = drained(&mut self.orders), if self.config.rank == 0 => return Err(NotRun::Drained),
        };
        let membership = self.orders.borrow().membership.clone();
        self.config.lost = membership.map_or_else(Vec::new, |membership| membership.lost);
        let (mut child, link) = spawn(self.config.rank)?;
        let pid = child.id();
        self.pod.send_modify(|pod| {
            pod.rank(self.index).started(pid);
        });
        let stderr = child.stderr.take();
        let words = tokio::spawn(async move {
            match stderr {
                Some(stderr) => last_words::forward(stderr, tokio::io::stderr()).await,
                None => Default::default(),
            }
        });
        // On failure the child is killed as it is dropped.
        link::send_files(&link, &self.memory.files(self.index))?;
        let (reader, writer) = link.into_split();
        let instructions = instruct(writer, self.config.clone(), self.orders.clone());
        let instructing = async {
            instructions.await;
            // The process is ending or gone; that is for `wait` to say.
            std::future::pending::<Infallible>().await
        };
        let status = tokio::select! {
            // What the process said last counts: the link is read to its end, also after the process has ended.
            (status, ()) = async {
                tokio::join!(child.wait(), listen(reader, |up| hear(&self.pod, self.index, up, &mut self.config)))
            } => status?,
            never = instructing => match never {},
        };
        let words = words.await.unwrap_or_default();
        Ok(last_words::exit_report(status, &words, SystemTime::now()))
    }
}

/// Why a rank's process did not run.
#[derive(Debug, thiserror::Error)]
enum NotRun {
    /// The checkpoint's folder cannot be filled.
    #[error(transparent)]
    Source(#[from] FetchError),
    /// The group ends before its weights are there.
    #[error("told to stop before the weights were there")]
    Drained,
    /// The operating system does not let it.
    #[error("the process of a rank cannot be run: {0}")]
    Process(#[from] io::Error),
}

/// Returns once the ranks are told to drain.
async fn drained(orders: &mut watch::Receiver<Orders>) {
    if orders.wait_for(|orders| orders.drain).await.is_err() {
        // The supervisor ends, and with it this keeper.
        std::future::pending::<()>().await;
    }
}

/// Returns once there are other members than `known`.
async fn renewed(orders: &mut watch::Receiver<Orders>, known: Option<&Membership>) {
    let is_new = |orders: &Orders| orders.membership.is_some() && orders.membership.as_ref() != known;
    if orders.wait_for(is_new).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn spawn(rank: u32) -> io::Result<(Child, UnixStream)> {
    let (here, there) = StdUnixStream::pair()?;
    here.set_nonblocking(true)?;
    let child = Command::new("/proc/self/exe")
        .arg0("llamero-worker")
        .args(["rank", "--rank", &rank.to_string()])
        .stdin(Stdio::from(OwnedFd::from(there)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // Ctrl-C at a terminal reaches the supervisor only, which drains.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    Ok((child, UnixStream::from_std(here)?))
}

async fn instruct(mut to: OwnedWriteHalf, config: RankConfig, mut orders: watch::Receiver<Orders>) {
    let mut told = Orders::default();
    let serves_clients = config.rank == 0;
    let mut lines = link::line(&Down::Start(Box::new(config)));
    loop {
        let Ok(line) = lines else { return };
        if to.write_all(&line).await.is_err() {
            return;
        }
        lines = loop {
            let wanted = orders.borrow_and_update().clone();
            if wanted.membership != told.membership
                && let Some(membership) = wanted.membership
            {
                told.membership = Some(membership.clone());
                break link::line(&Down::Form(membership));
            }
            if serves_clients
                && wanted.credentials != told.credentials
                && let Some(credentials) = wanted.credentials
            {
                told.credentials = Some(credentials.clone());
                break link::line(&Down::Credentials(credentials));
            }
            if wanted.drain && !told.drain {
                told.drain = true;
                break link::line(&Down::Drain);
            }
            if orders.changed().await.is_err() {
                return;
            }
        };
    }
}

async fn listen(from: OwnedReadHalf, mut hear: impl FnMut(Up)) {
    let mut lines = BufReader::new(from).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str(&line) {
            Ok(up) => hear(up),
            Err(error) => tracing::warn!("a rank said something unknown: {error}"),
        }
    }
}

fn hear(pod: &watch::Sender<Pod>, index: usize, up: Up, config: &mut RankConfig) {
    pod.send_modify(|pod| {
        let view = pod.rank(index);
        match up {
            Up::Listening {
                rank_port,
                inference_port,
            } => {
                // A restarted process takes the same ports, so that the members stay valid.
                config.rank_port = rank_port;
                config.inference_port = inference_port.unwrap_or(config.inference_port);
                view.rank_port = Some(rank_port);
                view.inference_port = inference_port;
            }
            Up::State(state) => view.hear(*state, Instant::now()),
            Up::Left => view.left = true,
        }
    });
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use llamero_engine::mesh::GroupKey;

    use super::*;

    #[tokio::test]
    async fn new_members_end_the_pause_of_a_rank_that_could_not_work() {
        let members = |generation| Membership {
            group_uid: "g".into(),
            generation,
            lost: Vec::new(),
            members: Vec::new(),
            key: GroupKey::from([7; 32]),
        };
        let (sender, mut orders) = watch::channel(Orders::default());
        for (known, next) in [(None, members(1)), (Some(members(1)), members(2))] {
            let mut waiting = Box::pin(renewed(&mut orders, known.as_ref()));
            assert!(waiting.as_mut().now_or_never().is_none(), "{known:?}");
            sender.send_modify(|orders| orders.drain = true);
            assert!(waiting.as_mut().now_or_never().is_none(), "a drain is no news");
            sender.send_modify(|orders| orders.membership = Some(next));
            waiting.await;
        }
    }
}
