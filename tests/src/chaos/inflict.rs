//! Causing faults and taking them back.

use std::sync::Arc;

use anyhow::{Context, Result};

use super::fault::{Fault, Kind};
use super::load::Shared;
use super::shards::WrongByte;
use super::table::Death;
use super::target::{RANKS, Role, SOON, SYSTEM, failures, groups_are_whole, processes};
use crate::cluster::{Cluster, Impairment, PodProcess, Signal, clock};
use crate::{paths, poll};

/// Megabits a second of a throttled cable: enough that groups go on, slowly.
const SLOW: u32 = 100;
/// Milliseconds that a late cable adds, as between zones that are far from each other.
const LATE: u64 = 10;
/// Seconds by which a clock is wrong: within the life of a certificate, and beyond it.
const SHIFTS: [i64; 4] = [-300, -10, 10, 300];
/// Where ranks listen.
const RANK_PORTS: (u16, u16) = (18_100, 18_355);
const LEASE: &str = "llamero-operator";
/// Images that a new node must have.
const IMAGES: [&str; 2] = ["llamero.tar", "llamero-worker.tar"];

/// How a fault is taken back.
type Undo = Box<dyn FnOnce(&Cluster) -> Result<()>>;

/// A fault that has been caused.
pub(super) struct Inflicted {
    /// What was hit, for the report.
    pub(super) hit: String,
    undo: Option<Undo>,
}

impl Inflicted {
    fn once(hit: impl Into<String>) -> Self {
        Self {
            hit: hit.into(),
            undo: None,
        }
    }

    fn until(hit: impl Into<String>, undo: impl FnOnce(&Cluster) -> Result<()> + 'static) -> Self {
        Self {
            hit: hit.into(),
            undo: Some(Box::new(undo)),
        }
    }

    /// Takes it back, if it lasts.
    pub(super) fn take_back(self, cluster: &Cluster) -> Result<()> {
        self.undo.map_or(Ok(()), |undo| undo(cluster))
    }
}

/// Causes the fault. An error is [`Nothing`], or says why it could not be caused.
pub(super) fn inflict(cluster: &Cluster, shared: &Arc<Shared>, fault: &Fault) -> Result<Inflicted> {
    let pick = fault.pick;
    match fault.kind {
        Kind::KillRank => kill(cluster, Role::Rank, pick),
        Kind::KillSupervisor => kill(cluster, Role::Supervisor, pick),
        Kind::KillOperator => kill(cluster, Role::Operator, pick),
        Kind::KillGateway => kill_gateway(cluster, shared, pick),
        Kind::PauseRank => pause(cluster, Role::Rank, pick),
        Kind::PauseSupervisor => pause(cluster, Role::Supervisor, pick),
        Kind::PauseOperator | Kind::EndCertificates => pause(cluster, Role::Operator, pick),
        Kind::PauseGateway => pause(cluster, Role::Gateway, pick),
        Kind::CutLink => cut(cluster, pick),
        Kind::CutInto => impair(cluster, pick, Impairment::NothingIn),
        Kind::CutOutOf => impair(cluster, pick, Impairment::NothingOut),
        Kind::Throttle => impair(cluster, pick, Impairment::Slow(SLOW)),
        Kind::Delay => impair(cluster, pick, Impairment::Late(LATE)),
        Kind::CorruptFrame => corrupt_frame(cluster, pick),
        Kind::CorruptShard => corrupt_shard(cluster, pick),
        Kind::ShiftClock => shift_clock(cluster, pick),
        Kind::StopApiServer => {
            cluster.stop_api_server()?;
            Ok(Inflicted::until("API server", Cluster::start_api_server))
        }
        Kind::RestartEtcd => {
            cluster.restart_etcd()?;
            Ok(Inflicted::once("etcd"))
        }
        Kind::StealLease => steal_lease(cluster),
        Kind::FillDisk => fill_disk(cluster, pick),
        Kind::LoseNode => lose_node(cluster, shared, pick),
    }
}

/// Nothing was there to be hit.
#[derive(Debug)]
pub(super) struct Nothing(&'static str);

impl std::fmt::Display for Nothing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no {} runs", self.0)
    }
}

impl std::error::Error for Nothing {}

fn one<T: Clone>(items: &[T], pick: u64, what: &'static str) -> Result<T> {
    let index = pick.checked_rem(items.len() as u64).ok_or(Nothing(what))?;
    let item = items.get(usize::try_from(index)?).cloned();
    Ok(item.ok_or(Nothing(what))?)
}

fn victim(cluster: &Cluster, role: Role, pick: u64) -> Result<PodProcess> {
    one(&processes(cluster, role)?, pick, role.name())
}

fn node(cluster: &Cluster, pick: u64) -> Result<String> {
    let names: Vec<String> = cluster.nodes()?.iter().map(|node| node.name()).collect();
    one(&names, pick, "node")
}

fn kill(cluster: &Cluster, role: Role, pick: u64) -> Result<Inflicted> {
    let victim = victim(cluster, role, pick)?;
    victim.signal(Signal::KILL)?;
    Ok(Inflicted::once(format!("{} on {}", victim.pod, victim.node)))
}

fn pause(cluster: &Cluster, role: Role, pick: u64) -> Result<Inflicted> {
    let victim = victim(cluster, role, pick)?;
    victim.signal(Signal::STOP)?;
    let hit = format!("{} on {}", victim.pod, victim.node);
    Ok(Inflicted::until(hit, move |_| {
        // It may have been ended meanwhile, as what hangs should be.
        if victim.lives() {
            victim.signal(Signal::CONT)?;
        }
        Ok(())
    }))
}

/// What is done here ends these gateways.
fn ending(shared: &Shared, pods: &[String], act: impl FnOnce() -> Result<()>) -> Result<()> {
    let from = shared.start.elapsed();
    let gateways = shared.gateways.borrow().clone();
    let done = act();
    let to = shared.start.elapsed();
    let dead = pods.iter().filter_map(|pod| gateways.get(pod));
    let deaths: Vec<Death> = dead
        .map(|gateway| Death {
            gateway: *gateway,
            from,
            to,
        })
        .collect();
    shared.deaths.send_modify(|all| all.extend(deaths));
    done
}

fn kill_gateway(cluster: &Cluster, shared: &Shared, pick: u64) -> Result<Inflicted> {
    let victim = victim(cluster, Role::Gateway, pick)?;
    ending(shared, std::slice::from_ref(&victim.pod), || {
        victim.signal(Signal::KILL)
    })?;
    Ok(Inflicted::once(format!("{} on {}", victim.pod, victim.node)))
}

fn cut(cluster: &Cluster, pick: u64) -> Result<Inflicted> {
    let node = node(cluster, pick)?;
    cluster.cut_link(&node)?;
    Ok(Inflicted::until(node.clone(), move |cluster| {
        cluster.restore_link(&node)
    }))
}

fn impair(cluster: &Cluster, pick: u64, impairment: Impairment) -> Result<Inflicted> {
    let node = node(cluster, pick)?;
    cluster.impair_link(&node, impairment)?;
    Ok(Inflicted::until(node.clone(), move |cluster| {
        cluster.heal_link(&node)
    }))
}

/// On a node with a rank: the byte must be one of a frame.
fn corrupt_frame(cluster: &Cluster, pick: u64) -> Result<Inflicted> {
    let node = victim(cluster, Role::Rank, pick)?.node;
    let (first, last) = RANK_PORTS;
    cluster.impair_link(&node, Impairment::WrongByte(first, last))?;
    Ok(Inflicted::until(node.clone(), move |cluster| {
        cluster.heal_link(&node)
    }))
}

/// It counts as caused when the group says which file is wrong, so that nothing was served of it. All groups read the same file: unless each of them serves,
/// and so reads nothing, the byte could take them all for a minute and more, which no deployment survives.
fn corrupt_shard(cluster: &Cluster, pick: u64) -> Result<Inflicted> {
    groups_are_whole(cluster).map_err(|_| Nothing("group that would serve meanwhile"))?;
    let victim = victim(cluster, Role::Supervisor, pick)?;
    // `DEPLOYMENT-GROUP-INDEX-ATTEMPT`, with one rank a pod.
    let index = victim.pod.rsplit('-').nth(1).and_then(|index| index.parse().ok());
    let rank = index.with_context(|| format!("pod {} has no index", victim.pod))?;
    let before = failures(cluster)?;
    let wrong = WrongByte::put(rank, RANKS, pick)?;
    let refused = victim.signal(Signal::KILL).and_then(|()| {
        poll::until("the wrong byte to be noticed", SOON, || {
            let names = |text: &&String| text.contains(&wrong.name) && text.contains("SHA-256");
            let now = failures(cluster)?;
            Ok(now.difference(&before).any(|text| names(&text)).then_some(()))
        })
    });
    match refused {
        Ok(()) => {
            let hit = format!("{}, and {} on {}", wrong.name, victim.pod, victim.node);
            Ok(Inflicted::until(hit, move |_| wrong.take_back()))
        }
        Err(error) => {
            wrong.take_back()?;
            Err(error)
        }
    }
}

fn shift_clock(cluster: &Cluster, pick: u64) -> Result<Inflicted> {
    let roles = [Role::Gateway, Role::Operator, Role::Supervisor, Role::Rank];
    let role = one(&roles, pick, "part")?;
    let pick = pick / roles.len() as u64;
    let seconds = one(&SHIFTS, pick, "shift")?;
    let victim = victim(cluster, role, pick / SHIFTS.len() as u64)?;
    let shifted = clock::shift(&victim, seconds)?;
    let (name, pod, node) = (role.name(), &victim.pod, &victim.node);
    let hit = format!("{name} {pod} on {node}, by {seconds} s");
    Ok(Inflicted::until(hit, move |_| shifted.take_back()))
}

fn steal_lease(cluster: &Cluster) -> Result<Inflicted> {
    let patch = r#"{"spec": {"holderIdentity": "somebody-else"}}"#;
    let words = ["-n", SYSTEM, "patch", "lease", LEASE, "--type=merge", "-p", patch];
    poll::until("the lease to be stolen", SOON, || {
        cluster.kubectl().run(&words).map(Some)
    })?;
    Ok(Inflicted::once(format!("lease {LEASE}")))
}

fn fill_disk(cluster: &Cluster, pick: u64) -> Result<Inflicted> {
    let victim = victim(cluster, Role::Supervisor, pick)?;
    let node = victim.node.clone();
    cluster.fill_run(&node)?;
    let inflicted = Inflicted::until(format!("{node}, and {} there", victim.pod), {
        let node = node.clone();
        move |cluster| cluster.empty_run(&node)
    });
    match victim.signal(Signal::KILL) {
        Ok(()) => Ok(inflicted),
        Err(error) => {
            inflicted.take_back(cluster)?;
            Err(error)
        }
    }
}

fn lose_node(cluster: &Cluster, shared: &Shared, pick: u64) -> Result<Inflicted> {
    let node = node(cluster, pick)?;
    let gateways = processes(cluster, Role::Gateway)?;
    let lost: Vec<String> = gateways
        .into_iter()
        .filter(|gateway| gateway.node == node)
        .map(|gateway| gateway.pod)
        .collect();
    ending(shared, &lost, || cluster.remove_node(&node))?;
    Ok(Inflicted::until(node, |cluster| {
        cluster.add_node()?;
        IMAGES
            .iter()
            .try_for_each(|image| cluster.import_image(&paths::images().join(image)))
    }))
}
