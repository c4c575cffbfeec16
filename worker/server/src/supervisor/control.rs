//! `llamero.v1.RankControl`: the operator forms, watches and drains the pod's ranks.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::Stream;
use llamero_engine::mesh::GroupKey;
use llamero_proto::v1::rank_control_server::RankControl;
use llamero_proto::v1::{
    DrainRequest, DrainResponse, FormRequest, FormResponse, Member, PodReport, WatchRequest,
};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::pod::{FormRefusal, Pod};
use super::process::Orders;
use crate::link::{Membership, RankAddress};

/// Counters are reported no faster than this.
const COUNTER_INTERVAL: Duration = Duration::from_secs(1);

/// The service of one pod.
#[derive(Clone)]
pub struct Control {
    /// The pod's state.
    pub pod: Arc<watch::Sender<Pod>>,
    /// What its ranks are told.
    pub orders: Arc<watch::Sender<Orders>>,
}

impl Control {
    /// Begin to drain. A member's pod goes on serving until its leader has left.
    pub fn drain(&self) {
        self.pod.send_modify(|pod| pod.draining = pod.leads());
        self.orders.send_modify(|orders| orders.drain = true);
    }

    /// Take new members.
    ///
    /// # Errors
    /// [`FormRefusal`].
    pub fn form(&self, membership: Membership) -> Result<u64, FormRefusal> {
        let mut outcome = Ok(false);
        self.pod.send_modify(|pod| outcome = pod.form(membership.clone()));
        let generation = membership.generation;
        if outcome? {
            tracing::info!(generation, "new members");
            // Later generations may have come meanwhile: hand out what the pod holds, not what came with this call.
            let held = self.pod.borrow().membership.clone();
            self.orders.send_modify(|orders| orders.membership = held);
        }
        Ok(generation)
    }
}

#[tonic::async_trait]
impl RankControl for Control {
    async fn form(&self, request: Request<FormRequest>) -> Result<Response<FormResponse>, Status> {
        let membership = membership(request.into_inner())?;
        match Control::form(self, membership) {
            Ok(generation) => Ok(Response::new(FormResponse { generation })),
            Err(why @ (FormRefusal::Old { .. } | FormRefusal::Changed(_) | FormRefusal::Fixed(_))) => {
                Err(Status::failed_precondition(why.to_string()))
            }
            Err(why) => Err(Status::invalid_argument(why.to_string())),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<PodReport, Status>> + Send>>;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(Box::pin(reports(self.pod.subscribe()))))
    }

    async fn drain(&self, _: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        if !self.pod.borrow().leads() {
            return Err(Status::failed_precondition(
                "this pod does not lead its group: ask the pod of rank 0",
            ));
        }
        tracing::info!("asked to drain");
        Control::drain(self);
        Ok(Response::new(DrainResponse {}))
    }
}

fn membership(request: FormRequest) -> Result<Membership, Status> {
    let lost = request.lost;
    let gone: BTreeSet<u32> = lost.iter().copied().collect();
    if gone.len() != lost.len() {
        return Err(Status::invalid_argument(format!(
            "the lost ranks are {lost:?}: name each once"
        )));
    }
    let mut members = Vec::with_capacity(request.members.len());
    let ranks = (0_u32..).filter(|rank| !gone.contains(rank));
    for (number, (expected, member)) in ranks.zip(request.members).enumerate() {
        if member.rank != expected {
            return Err(Status::invalid_argument(format!(
                "member {number} is rank {} where rank {expected} was due: list all ranks in order from 0, but those that are lost",
                member.rank
            )));
        }
        members.push(address(member)?);
    }
    let key = GroupKey::try_from(request.key.as_slice())
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    Ok(Membership {
        group_uid: request.group_uid,
        generation: request.generation,
        lost,
        members,
        key,
    })
}

fn address(member: Member) -> Result<RankAddress, Status> {
    let Member {
        rank,
        pod_uid,
        ip,
        port,
    } = member;
    let ip = ip.parse().map_err(|_| {
        Status::invalid_argument(format!("the ip of rank {rank} is {ip:?}, which is no IP address"))
    })?;
    let port = u16::try_from(port)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| {
            Status::invalid_argument(format!("the port of rank {rank} is {port}; ports are 1 to 65535"))
        })?;
    Ok(RankAddress { pod_uid, ip, port })
}

/// One report at once, one at each change that matters, and at most one a second while only counters move.
fn reports(pod: watch::Receiver<Pod>) -> impl Stream<Item = Result<PodReport, Status>> + Send {
    futures::stream::unfold((pod, None), |(mut pod, last)| async move {
        loop {
            let now = Instant::now();
            let report = pod.borrow_and_update().report(now);
            let due = match &last {
                None => true,
                Some((sent, at)) => essence(sent) != essence(&report) || now >= *at + COUNTER_INTERVAL,
            };
            if due {
                return Some((Ok(report.clone()), (pod, Some((report, now)))));
            }
            // The clock alone may change a report: a silent rank grows idle and its group stops serving.
            if let Ok(Err(_)) = tokio::time::timeout(COUNTER_INTERVAL / 4, pod.changed()).await {
                return None;
            }
        }
    })
}

/// What is reported at once when it changes: everything but moving counters.
fn essence(report: &PodReport) -> PodReport {
    let mut essence = report.clone();
    for rank in &mut essence.ranks {
        rank.loaded_bytes = 0;
        rank.entered = 0;
        rank.completed = 0;
        rank.idle_millis = None;
        rank.read_bytes = 0;
        rank.layers = 0;
        rank.still_millis = None;
    }
    essence
}
