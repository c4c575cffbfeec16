//! Which pods of a group are listened to. Once a group serves only its leader is: it says so for all ranks, and at once when it is over.

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use llamero_api::{
    LlamaGroup,
    group::{Intent, Transport},
    labels,
};
use llamero_core::{
    observed::{self, PodPhase},
    time::Millis,
};
use llamero_identity::{Identity, Role, connect::Link, credentials::Credentials, verify::Expected};
use llamero_proto::v1;
use tonic::transport::Channel;

use super::{DemandStream, LoadStream, Pool, RankStream, Received};
use crate::{
    apply::calls, build::parts::namespace_of, metrics::Metrics, observe::streams::Demands, wake::Wake,
};

/// A silent member of a group that has stopped serving has at least this long to be heard again before anybody is blamed.
const HEARING: Millis = 3_000;

/// A group and its pods.
pub struct Membership<'a> {
    /// The group.
    pub group: &'a LlamaGroup,
    /// All of its pods that say which member they are.
    pub pods: Vec<&'a observed::Pod>,
    /// The number of groups follows the load.
    pub scaled: bool,
}

/// What pods say.
pub trait Streams {
    /// Listens to the pods of a group that are to be listened to, and to no others of it.
    fn follow(&mut self, membership: &Membership<'_>, now: Millis);
    /// Forgets a pod that is gone.
    fn forget(&mut self, pod_uid: &str);
    /// What a supervisor said last.
    fn report(&self, pod_uid: &str) -> Option<Received<v1::PodReport>>;
    /// Since when a supervisor is listened to; nothing while it is not.
    fn tried_since(&self, pod_uid: &str) -> Option<Timestamp>;
    /// What a leader said last about its load.
    fn load(&self, pod_uid: &str) -> Option<Received<v1::LoadSample>>;
}

/// All streams.
pub struct Links {
    ranks: Pool<RankStream>,
    loads: Pool<LoadStream>,
    gateways: Pool<DemandStream>,
    dialler: Option<Dialler>,
}

/// How links are authenticated.
#[derive(Clone)]
pub struct Dialler {
    /// This operator's certificate.
    pub credentials: Credentials,
    /// Trust domain of all identities.
    pub trust_domain: String,
    /// Namespace of the gateways.
    pub gateway_namespace: String,
}

impl Dialler {
    fn gateways(&self) -> Link {
        let expected = Expected::Gateway {
            trust_domain: self.trust_domain.clone(),
            namespace: self.gateway_namespace.clone(),
        };
        Link::Mutual(self.credentials.clone(), expected)
    }

    fn worker(&self, group: &LlamaGroup, pod: &observed::Pod) -> Link {
        let expected = Expected::Pod(Identity {
            trust_domain: self.trust_domain.clone(),
            namespace: namespace_of(group),
            role: Role::Worker {
                group: group.name_any(),
            },
            pod: pod.name.clone(),
        });
        Link::Mutual(self.credentials.clone(), expected)
    }
}

impl Links {
    /// No streams yet; without a `dialler` all are plain text.
    #[must_use]
    pub fn new(wake: &Wake, dialler: Option<Dialler>) -> Self {
        Self {
            ranks: Pool::new(wake.clone()),
            loads: Pool::new(wake.clone()),
            gateways: Pool::new(wake.clone()),
            dialler,
        }
    }

    /// UIDs of pods that said something since this was asked last.
    pub fn take_heard(&mut self) -> Vec<String> {
        let mut heard = self.ranks.take_changed();
        heard.extend(self.loads.take_changed());
        heard
    }

    /// Listens to exactly these gateways, by UID and address. What they hold, if any of them said something since this was asked last or
    /// others are listened to.
    pub fn demands<'a>(
        &mut self,
        gateways: impl Iterator<Item = (&'a String, &'a String)>,
    ) -> Option<Demands> {
        let wanted = gateways.map(|(uid, ip)| (uid.clone(), calls::address(ip, labels::DEMAND_PORT)));
        let others = self.gateways.set_peers(wanted, &self.link_to_gateways());
        let heard = !self.gateways.take_changed().is_empty();
        (others || heard).then(|| Demands::of(&self.gateways.all()))
    }

    fn link_to_gateways(&self) -> Link {
        self.dialler.as_ref().map_or(Link::Plain, Dialler::gateways)
    }

    /// How a pod is reached, as the snapshot of its group says; not at all without a certificate of our own where one must be shown.
    fn link(&self, group: &LlamaGroup, pod: &observed::Pod, transport: Transport) -> Option<Link> {
        match transport {
            Transport::Plain => Some(Link::Plain),
            Transport::Mutual => self.dialler.as_ref().map(|dialler| dialler.worker(group, pod)),
        }
    }

    /// The connection to a pod's control port, if it is listened to.
    #[must_use]
    pub fn channel(&self, pod_uid: &str) -> Option<Channel> {
        self.ranks.channel(pod_uid)
    }

    /// Tells how many streams are open.
    pub fn count(&self, metrics: &Metrics) {
        metrics.stream_counts("ranks", self.ranks.counts());
        metrics.stream_counts("load", self.loads.counts());
        metrics.stream_counts("demand", self.gateways.counts());
    }
}

impl Streams for Links {
    fn follow(&mut self, membership: &Membership<'_>, now: Millis) {
        let quiet = speaks_for_all(membership, |uid| self.ranks.latest(uid));
        for pod in &membership.pods {
            let (uid, running) = (pod.uid.as_str(), pod.phase == PodPhase::Running);
            let Some(ip) = pod.ip.as_deref() else { continue };
            let template = &membership.group.spec.template;
            let link = |transport| self.link(membership.group, pod, transport);
            let (Some(control_link), Some(inference_link)) =
                (link(template.transport), link(template.inference_transport()))
            else {
                continue;
            };
            let control = calls::address(ip, labels::CONTROL_PORT);
            if quiet.is_some() && pod.index != 0 {
                self.ranks.pause(uid);
            } else if running {
                let silent_since = quiet.is_none().then(|| last_proof(membership, now, &self.ranks));
                self.ranks
                    .want(uid, &control, &control_link, silent_since.flatten());
            }
            // What a pod said last is kept until it is gone: it may tell why it ended.
            if running && pod.index == 0 && membership.scaled {
                self.loads.want(
                    uid,
                    &calls::address(ip, labels::INFERENCE_PORT),
                    &inference_link,
                    None,
                );
            } else {
                self.loads.drop_peer(uid);
            }
        }
    }

    fn forget(&mut self, pod_uid: &str) {
        self.ranks.drop_peer(pod_uid);
        self.loads.drop_peer(pod_uid);
    }

    fn report(&self, pod_uid: &str) -> Option<Received<v1::PodReport>> {
        self.ranks.latest(pod_uid)
    }

    fn tried_since(&self, pod_uid: &str) -> Option<Timestamp> {
        self.ranks.tried_since(pod_uid)
    }

    fn load(&self, pod_uid: &str) -> Option<Received<v1::LoadSample>> {
        self.loads.latest(pod_uid)
    }
}

/// The leader's report, when that speaks for all members: it leads exactly the recorded ones, and they complete steps together.
#[must_use]
pub fn speaks_for_all(
    membership: &Membership<'_>,
    report: impl Fn(&str) -> Option<Received<v1::PodReport>>,
) -> Option<Received<v1::PodReport>> {
    let spec = &membership.group.spec;
    let mut pods = membership.pods.iter();
    let leader = pods.find(|pod| pod.index == 0 && pod.phase == PodPhase::Running)?;
    let heard = report(&leader.uid).filter(|heard| heard.broken_at.is_none())?;
    let generation = heard.message.generation;
    let serves = heard.message.group_serving
        && !heard.message.draining
        && i64::try_from(generation) == Ok(spec.generation)
        && heard
            .message
            .ranks
            .iter()
            .all(|rank| rank.phase() == v1::Phase::Serving);
    let exactly = spec.intent == Intent::Run
        && membership.pods.len() == spec.members.len()
        && spec.members.iter().all(|member| {
            let mut pods = membership.pods.iter();
            let pod = pods.find(|pod| Some(&pod.uid) == member.pod_uid.as_ref());
            let told = pod.and_then(|pod| report(&pod.uid));
            member.successor.is_none()
                && pod.is_some_and(|pod| pod.phase == PodPhase::Running && pod.deletion.is_none())
                && told.is_some_and(|told| told.message.generation == generation && told.broken_at.is_none())
        });
    (serves && exactly).then_some(heard)
}

/// When the members of a group were last known to be there, as its leader knows: when they completed a step together. Not so long ago that
/// one would be given up before it could be asked.
fn last_proof(membership: &Membership<'_>, now: Millis, ranks: &Pool<RankStream>) -> Option<Timestamp> {
    let leader = membership.pods.iter().find(|pod| pod.index == 0)?;
    let heard = ranks.latest(&leader.uid)?;
    let idle = heard
        .message
        .ranks
        .iter()
        .filter_map(|rank| rank.idle_millis)
        .min()?;
    let stepped = heard
        .at
        .as_millisecond()
        .saturating_sub(i64::try_from(idle).ok()?);
    let patience = membership.group.spec.template.stall_timeout.millis();
    let earliest = now.saturating_sub(patience.saturating_sub(HEARING).max(0));
    Timestamp::from_millisecond(stepped.max(earliest).min(now)).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn group(change: impl FnOnce(&mut serde_json::Value)) -> LlamaGroup {
        let mut object = json!({
            "apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaGroup", "metadata": {"name": "d-0"},
            "spec": {"deployment": "d", "revision": "r", "generation": 2,
                "members": [{"index": 0, "attempt": 0, "node": "a", "podUID": "p0"}, {"index": 1, "attempt": 0, "node": "b", "podUID": "p1"}],
                "template": {"modelName": "m", "source": {}, "maxContextLength": 1, "tensor": 2, "pipeline": 1,
                    "ranksPerPod": 1, "kvBytesPerRank": 1, "weightBytesPerRank": 1, "stallTimeout": "1s"}},
        });
        change(&mut object);
        serde_json::from_value(object).unwrap()
    }

    fn pod(index: i32) -> observed::Pod {
        observed::Pod {
            uid: format!("p{index}"),
            index,
            phase: PodPhase::Running,
            ..observed::Pod::default()
        }
    }

    fn says(generation: u64, serving: bool) -> Received<v1::PodReport> {
        let rank = v1::RankReport {
            phase: v1::Phase::Serving.into(),
            ..v1::RankReport::default()
        };
        Received {
            message: v1::PodReport {
                generation,
                group_serving: serving,
                ranks: vec![rank],
                ..v1::PodReport::default()
            },
            at: Timestamp::UNIX_EPOCH,
            broken_at: None,
        }
    }

    #[test]
    fn a_leader_speaks_for_all_while_exactly_the_recorded_members_serve() {
        let (zero, one) = (pod(0), pod(1));
        let quiet =
            |group: &LlamaGroup, pods: &[&observed::Pod], member: u64, leader: Received<v1::PodReport>| {
                let membership = Membership {
                    group,
                    pods: pods.to_vec(),
                    scaled: false,
                };
                let report = |uid: &str| {
                    Some(if uid == "p0" {
                        leader.clone()
                    } else {
                        says(member, false)
                    })
                };
                speaks_for_all(&membership, report).is_some()
            };
        let pods = [&zero, &one];
        let whole = group(|_| {});
        assert!(quiet(&whole, &pods, 2, says(2, true)));
        assert!(!quiet(&whole, &pods, 2, says(2, false)), "it does not serve");
        assert!(
            !quiet(&whole, &pods, 1, says(2, true)),
            "a member does not know it yet"
        );
        assert!(
            !quiet(&whole, &pods[..1], 2, says(2, true)),
            "a member is missing"
        );
        let mut broken = says(2, true);
        broken.broken_at = Some(broken.at);
        assert!(!quiet(&whole, &pods, 2, broken), "the leader is not heard");
        let draining = group(|g| g["spec"]["intent"] = json!("Drain"));
        assert!(!quiet(&draining, &pods, 2, says(2, true)));
        let third = group(|g| g["spec"]["generation"] = json!(3));
        assert!(
            !quiet(&third, &pods, 2, says(2, true)),
            "another membership is to be formed"
        );
        let moving = group(|g| {
            g["spec"]["members"][1]["successor"] =
                json!({"attempt": 1, "node": "c", "placedAt": "2026-01-01T00:00:00Z"});
        });
        assert!(!quiet(&moving, &pods, 2, says(2, true)));
    }
}
