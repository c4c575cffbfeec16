//! The state of a pod's ranks as their supervisor knows it. Pure: time comes in as an argument.

use std::time::{Duration, Instant};

use llamero_engine::DeviceReport;
use llamero_proto::v1::{Device, Phase, PodReport, RankExit, RankReport};

use super::phases::PhaseClock;
use crate::link::{Membership, RankState};

/// Who this pod is; does not change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// `metadata.uid` of the pod; empty outside Kubernetes.
    pub pod_uid: String,
    /// UID of the only group this pod serves.
    pub group_uid: String,
    /// First rank of this pod.
    pub first_rank: u32,
    /// Ranks of the group.
    pub world: u32,
    /// Why the ranks of this pod cannot take over a part of what others had; none: they can.
    pub fixed: Option<&'static str>,
    /// A rank that was silent for longer cannot vouch for the group.
    pub stall_timeout: Duration,
}

/// One rank of the pod.
#[derive(Debug, Clone)]
pub struct RankView {
    /// Process id while it runs.
    pub pid: Option<u32>,
    /// How often it was started again.
    pub restarts: u32,
    /// What it said last, and when.
    pub state: Option<(RankState, Instant)>,
    /// How it ended last.
    pub last_exit: Option<RankExit>,
    /// What former processes told of their device: an error of it often ends the process that heard of it.
    pub former_device: Option<DeviceReport>,
    /// Where it listens for its peers.
    pub rank_port: Option<u16>,
    /// Where it listens for clients.
    pub inference_port: Option<u16>,
    /// It was told that the group ends.
    pub left: bool,
    /// How long it took to serve.
    pub clock: PhaseClock,
}

/// All ranks of the pod.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Who this pod is.
    pub identity: Identity,
    /// Its ranks, by local index.
    pub ranks: Vec<RankView>,
    /// The members the pod was told last.
    pub membership: Option<Membership>,
    /// Why there is no certificate that callers would believe.
    pub unenrolled: Option<String>,
    /// The pod was asked to drain.
    pub draining: bool,
}

/// Why a [`Membership`] is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormRefusal {
    /// The pod belongs to another group.
    #[error("this pod belongs to the group with uid {own:?}, not to {asked:?}")]
    OtherGroup {
        /// The pod's group.
        own: String,
        /// The group that was named.
        asked: String,
    },
    /// A later membership is known already.
    #[error("generation {asked} is over: this pod holds generation {held}; send a higher one")]
    Old {
        /// The generation that was sent.
        asked: u64,
        /// The generation that is held.
        held: u64,
    },
    /// The same generation cannot mean two memberships.
    #[error(
        "generation {0} was formed with other members or another key; send others under a higher generation"
    )]
    Changed(u64),
    /// The members do not fit this pod.
    #[error("{0}")]
    Members(String),
    /// Its ranks cannot take over what others had.
    #[error(
        "the group cannot do without some of its ranks: {0}; give it another pod in place of the lost one"
    )]
    Fixed(&'static str),
}

impl Pod {
    /// What is known of one of its ranks.
    #[allow(
        clippy::indexing_slicing,
        reason = "each process has one of the places that the pod was made with"
    )]
    pub(super) fn rank(&mut self, index: usize) -> &mut RankView {
        &mut self.ranks[index]
    }

    /// A pod whose ranks have not started, and whose supervisor does.
    #[must_use]
    pub fn new(identity: Identity, ranks: u32, now: Instant) -> Self {
        let ranks = (0..ranks).map(|_| RankView::new(now)).collect();
        Self {
            identity,
            ranks,
            membership: None,
            unenrolled: None,
            draining: false,
        }
    }

    /// Whether rank 0 lives here.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.identity.first_rank == 0
    }

    /// Take new members. True when they differ from what was known.
    ///
    /// # Errors
    /// [`FormRefusal`]; the pod is unchanged then.
    pub fn form(&mut self, membership: Membership) -> Result<bool, FormRefusal> {
        let Identity {
            pod_uid,
            group_uid,
            first_rank,
            world,
            ..
        } = &self.identity;
        if membership.group_uid != *group_uid {
            return Err(FormRefusal::OtherGroup {
                own: group_uid.clone(),
                asked: membership.group_uid,
            });
        }
        if let Some(known) = &self.membership {
            if membership.generation < known.generation {
                return Err(FormRefusal::Old {
                    asked: membership.generation,
                    held: known.generation,
                });
            }
            if membership.generation == known.generation {
                return if membership == *known {
                    Ok(false)
                } else {
                    Err(FormRefusal::Changed(known.generation))
                };
            }
        }
        let lost = &membership.lost;
        if let Some(why) = self.identity.fixed.filter(|_| !lost.is_empty()) {
            return Err(FormRefusal::Fixed(why));
        }
        if membership.members.len().saturating_add(lost.len()) != *world as usize {
            let sent = membership.members.len();
            return Err(FormRefusal::Members(format!(
                "{sent} members were sent; this group has {world} ranks, of which {} are lost",
                lost.len()
            )));
        }
        if let Some(rank) = lost.iter().find(|rank| **rank == 0 || **rank >= *world) {
            return Err(FormRefusal::Members(format!(
                "rank {rank} cannot be a lost one: a group of {world} can do without some of the ranks behind 0, which leads"
            )));
        }
        for rank in (*first_rank..).take(self.ranks.len()) {
            let found = membership.present().find(|(present, _)| *present == rank);
            let Some(named) = found.map(|(_, member)| &member.pod_uid) else {
                return Err(FormRefusal::Members(format!(
                    "rank {rank} lives in this pod and is not among the members"
                )));
            };
            if !pod_uid.is_empty() && named != pod_uid {
                return Err(FormRefusal::Members(format!(
                    "rank {rank} lives in the pod with uid {pod_uid:?}, but the members name {named:?}"
                )));
            }
        }
        self.membership = Some(membership);
        Ok(true)
    }

    /// Whether the whole group completed a step within the stall time-out, or computes one whose layers move. Only ever true
    /// on the leader's pod.
    #[must_use]
    pub fn group_serving(&self, now: Instant) -> bool {
        let Some(RankView {
            state: Some((state, heard)),
            pid: Some(_),
            ..
        }) = self.ranks.first()
        else {
            return false;
        };
        let idle = age(*heard, now).saturating_add(Duration::from_millis(state.group_idle_millis()));
        self.leads() && state.group_serving && !self.draining && idle <= self.identity.stall_timeout
    }

    /// Whether the pod counts as ready, or the sentence that says why not.
    ///
    /// # Errors
    /// That sentence.
    pub fn ready(&self, now: Instant) -> Result<(), String> {
        if self.draining {
            return Err("draining".to_owned());
        }
        if let Some(why) = &self.unenrolled {
            return Err(format!("this pod is not enrolled: {why}"));
        }
        for (rank, view) in (self.identity.first_rank..).zip(&self.ranks) {
            let report = view.report(rank, now);
            if report.phase() != Phase::Serving {
                let phase = report.phase().as_str_name().to_ascii_lowercase();
                return Err(format!("rank {rank} is {phase}: {}", report.message));
            }
        }
        if self.leads() && !self.group_serving(now) {
            return Err(format!(
                "the whole group has not moved for {} s",
                self.identity.stall_timeout.as_secs_f32()
            ));
        }
        Ok(())
    }

    /// The pod's report for the operator.
    #[must_use]
    pub fn report(&self, now: Instant) -> PodReport {
        PodReport {
            pod_uid: self.identity.pod_uid.clone(),
            group_uid: self.identity.group_uid.clone(),
            generation: self
                .membership
                .as_ref()
                .map_or(0, |membership| membership.generation),
            ranks: (self.identity.first_rank..)
                .zip(&self.ranks)
                .map(|(rank, view)| view.report(rank, now))
                .collect(),
            group_serving: self.group_serving(now),
            draining: self.draining
                || self
                    .ranks
                    .iter()
                    .filter_map(|rank| rank.state.as_ref())
                    .any(|s| s.0.draining),
            lost: (self.membership.as_ref()).map_or_else(Vec::new, |membership| membership.lost.clone()),
            longest_sequence: (self.ranks.first())
                .and_then(|rank| rank.state.as_ref()?.0.longest_sequence)
                .unwrap_or(0),
        }
    }
}

impl RankView {
    fn new(now: Instant) -> Self {
        Self {
            pid: None,
            restarts: 0,
            state: None,
            last_exit: None,
            former_device: None,
            rank_port: None,
            inference_port: None,
            left: false,
            clock: PhaseClock::new(now),
        }
    }

    /// The rank says what state it is in.
    pub fn hear(&mut self, state: RankState, now: Instant) {
        self.clock.hear(state.phase(), now);
        self.state = Some((state, now));
    }

    /// A new process of the rank has been started.
    pub fn started(&mut self, pid: Option<u32>) {
        self.pid = pid;
        let last = self.state.take().and_then(|(state, _)| state.device);
        self.former_device = after(last, self.former_device.as_ref());
    }

    fn report(&self, rank: u32, now: Instant) -> RankReport {
        let (state, heard) = match &self.state {
            Some((state, heard)) => (state.clone(), *heard),
            None => (
                RankState {
                    phase: Phase::Preflight.into(),
                    ..RankState::default()
                },
                now,
            ),
        };
        let (phase, message) = match (self.pid, &self.last_exit) {
            (Some(_), _) => (state.phase, state.message),
            (None, Some(exit)) => (Phase::Failed.into(), exit.message.clone()),
            (None, None) => (Phase::Preflight.into(), "the process is being started".to_owned()),
        };
        let waited = u64::try_from(age(heard, now).as_millis()).unwrap_or(u64::MAX);
        RankReport {
            rank,
            phase,
            loaded_bytes: state.loaded_bytes,
            total_bytes: state.total_bytes,
            generation: state.generation,
            epoch: state.epoch,
            entered: state.entered,
            completed: state.completed,
            idle_millis: state.idle_millis.map(|idle| idle.saturating_add(waited)),
            layers: state.layers,
            still_millis: state.still_millis.map(|still| still.saturating_add(waited)),
            content_identity: state.content_identity,
            numerics: state.numerics,
            device: after(state.device, self.former_device.as_ref()).map(device),
            pid: self.pid.unwrap_or(0),
            restarts: self.restarts,
            last_exit: self.last_exit.clone(),
            message,
            read_bytes: state.read_bytes,
            times: Some(self.clock.times()),
        }
    }
}

/// What is known of a device: what the present process says, and the errors that former ones heard of.
fn after(present: Option<DeviceReport>, former: Option<&DeviceReport>) -> Option<DeviceReport> {
    let Some(former) = former else { return present };
    let mut report = present.unwrap_or_else(|| DeviceReport {
        faults: 0,
        last_fault: None,
        ..former.clone()
    });
    report.faults = report.faults.saturating_add(former.faults);
    report.last_fault = report.last_fault.or(former.last_fault);
    Some(report)
}

fn device(report: DeviceReport) -> Device {
    Device {
        name: report.name,
        id: report.id,
        driver: report.driver,
        memory_bytes: report.memory,
        read_bandwidth: report.read_bandwidth,
        nominal_bandwidth: report.nominal_bandwidth,
        exchange_bandwidth: report.exchange_bandwidth,
        exchange_nanos: report.exchange_nanos,
        uncorrected_errors: report.uncorrected_errors,
        faults: report.faults,
        last_fault: report.last_fault,
        warning: report.warning,
    }
}

fn age(heard: Instant, now: Instant) -> Duration {
    now.saturating_duration_since(heard)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use llamero_engine::mesh::GroupKey;

    use super::*;
    use crate::link::RankAddress;

    fn pod() -> Pod {
        let identity = Identity {
            pod_uid: "me".into(),
            group_uid: "g".into(),
            first_rank: 0,
            world: 2,
            fixed: None,
            stall_timeout: Duration::from_secs(3),
        };
        Pod::new(identity, 1, Instant::now())
    }

    fn members(generation: u64, second: &str) -> Membership {
        let member = |uid: &str| RankAddress {
            pod_uid: uid.into(),
            ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 18_100,
        };
        Membership {
            group_uid: "g".into(),
            generation,
            lost: Vec::new(),
            members: vec![member("me"), member(second)],
            key: GroupKey::from([7; 32]),
        }
    }

    #[test]
    fn generations_only_grow_and_mean_one_membership() {
        let mut pod = pod();
        assert_eq!(pod.form(members(2, "b")), Ok(true));
        assert_eq!(pod.form(members(2, "b")), Ok(false));
        assert_eq!(pod.form(members(2, "c")), Err(FormRefusal::Changed(2)));
        let rekeyed = Membership {
            key: GroupKey::from([8; 32]),
            ..members(2, "b")
        };
        assert_eq!(pod.form(rekeyed), Err(FormRefusal::Changed(2)));
        assert_eq!(
            pod.form(members(1, "b")),
            Err(FormRefusal::Old { asked: 1, held: 2 })
        );
        assert_eq!(pod.form(members(3, "c")), Ok(true));
        let other = Membership {
            group_uid: "h".into(),
            ..members(9, "c")
        };
        assert!(matches!(pod.form(other), Err(FormRefusal::OtherGroup { .. })));
        let mut few = members(9, "c");
        few.members.pop();
        assert!(matches!(pod.form(few), Err(FormRefusal::Members(_))));
        let mut foreign = members(9, "c");
        foreign.members.swap(0, 1);
        assert!(matches!(pod.form(foreign), Err(FormRefusal::Members(_))));
        assert_eq!(pod.membership.unwrap().generation, 3);
    }

    #[test]
    fn who_is_lost_is_named_and_cannot_be_here_nor_lead() {
        let mut pod = pod();
        pod.identity.world = 3;
        let without = |lost: &[u32]| Membership {
            lost: lost.to_vec(),
            ..members(2, "b")
        };
        let refused = |pod: &mut Pod, lost: &[u32], part: &str| {
            let why = pod.form(without(lost)).unwrap_err().to_string();
            assert!(why.contains(part), "{why}");
        };
        refused(&mut pod, &[], "3 ranks, of which 0 are lost");
        refused(&mut pod, &[0], "rank 0 cannot be a lost one");
        refused(&mut pod, &[3], "rank 3 cannot be a lost one");
        refused(&mut pod, &[1, 2], "2 are lost");
        for lost in [1, 2] {
            let membership = Membership {
                generation: u64::from(lost) + 2,
                ..without(&[lost])
            };
            let there: Vec<u32> = membership.present().map(|(rank, _)| rank).collect();
            assert_eq!(there, [0, 3 - lost]);
            assert_eq!(pod.form(membership), Ok(true));
        }
        assert_eq!(pod.report(Instant::now()).lost, [2]);
        // A rank of this pod is not among the members, and so is who else stands there.
        pod.identity.first_rank = 1;
        let away = Membership {
            generation: 9,
            ..without(&[1])
        };
        assert!(
            pod.form(away.clone())
                .unwrap_err()
                .to_string()
                .contains("rank 1 lives in this pod")
        );
        pod.identity.first_rank = 0;
        pod.identity.fixed = Some("it is a GPU");
        let why = pod.form(away).unwrap_err();
        assert_eq!(why, FormRefusal::Fixed("it is a GPU"));
        assert!(why.to_string().contains("another pod"), "{why}");
    }

    #[test]
    fn a_silent_leader_does_not_vouch_for_its_group() {
        let start = Instant::now();
        let mut pod = pod();
        assert!(pod.ready(start).is_err());
        let state = RankState {
            phase: Phase::Serving.into(),
            group_serving: true,
            idle_millis: Some(1_000),
            ..RankState::default()
        };
        pod.ranks[0].pid = Some(7);
        pod.ranks[0].state = Some((state, start));
        assert_eq!(pod.ready(start), Ok(()));
        assert!(pod.group_serving(start + Duration::from_secs(2)));
        assert!(!pod.group_serving(start + Duration::from_millis(2_001)));
        assert_eq!(
            pod.report(start + Duration::from_secs(2)).ranks[0].idle_millis,
            Some(3_000)
        );
        pod.draining = true;
        assert!(!pod.group_serving(start));
    }

    #[test]
    fn a_slow_step_keeps_the_pod_ready() {
        let start = Instant::now();
        let mut pod = pod();
        pod.ranks[0].pid = Some(7);
        let mut hear = |phase: Phase, still| {
            let state = RankState {
                phase: phase.into(),
                group_serving: true,
                idle_millis: Some(90_000),
                still_millis: Some(still),
                ..RankState::default()
            };
            pod.ranks[0].state = Some((state, start));
            pod.group_serving(start + Duration::from_secs(1))
        };
        assert!(hear(Phase::Serving, 2_000));
        assert!(!hear(Phase::Serving, 2_001), "its layers stand still");
        assert!(
            !hear(Phase::Warming, 0),
            "a group that forms again has no step under way"
        );
    }

    #[test]
    fn a_dead_rank_has_failed_with_its_last_words() {
        let now = Instant::now();
        let mut pod = pod();
        pod.ranks[0].last_exit = Some(RankExit {
            signal: Some(9),
            message: "killed".into(),
            ..RankExit::default()
        });
        let report = pod.report(now);
        assert_eq!(report.ranks[0].phase(), Phase::Failed);
        assert_eq!(report.ranks[0].message, "killed");
        assert!(pod.ready(now).unwrap_err().contains("killed"));
    }
}
