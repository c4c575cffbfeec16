//! Deployments and groups as the decisions take them, put together from what belongs to them.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::ResourceExt as _;
use llamero_api::{LlamaDeployment, LlamaGroup, labels};
use llamero_core::{network::policy_name, observed};

use super::{model::Known, streams, writers};
use crate::{
    apply::{Refusals, Subject, index::key_of},
    links::Streams,
};

impl Known {
    /// A deployment without its groups.
    pub(super) fn deployment(
        &self,
        object: &Arc<LlamaDeployment>,
        refusals: &Refusals,
    ) -> observed::Deployment {
        let uid = object.uid().unwrap_or_default();
        let key = key_of(object.as_ref());
        let mut inspect: Vec<_> = self.pods.of(&uid).filter_map(|pod| pod.inspect.clone()).collect();
        inspect.sort_by(|one, other| (&one.name, &one.uid).cmp(&(&other.name, &other.uid)));
        observed::Deployment {
            groups: Vec::new(),
            names_in_use: self.names.of(&key.namespace),
            claims: self.volumes.of(&key.namespace),
            inspect,
            network_policy: self.policies.named(&uid, &policy_name(&key.name)).cloned(),
            service: self
                .services
                .named(&uid, &labels::service_name(&key.name))
                .cloned(),
            revisions: self.revisions.of(&uid).map(|object| revision(object)).collect(),
            replicas_manager: writers::of_replicas(object),
            refusals: refusals.of(&Subject::Deployment(key.clone())),
            demand: self.demands.for_deployment(&key.namespace, &key.name),
            object: Arc::clone(object),
        }
    }

    /// A group with its pods, as they were heard last.
    pub(super) fn group(
        &self,
        object: &Arc<LlamaGroup>,
        streams: &dyn Streams,
        refusals: &Refusals,
    ) -> observed::Group {
        let uid = object.uid().unwrap_or_default();
        let key = key_of(object.as_ref());
        let mut pods: Vec<observed::Pod> = self.members(&uid).cloned().collect();
        for pod in &mut pods {
            // An address may have passed on to another pod: only believe who says the name.
            let heard = streams
                .report(&pod.uid)
                .filter(|heard| heard.message.pod_uid == pod.uid);
            pod.report = heard.map(|heard| streams::report(&heard));
            let tried = streams.tried_since(&pod.uid).filter(|_| pod.report.is_none());
            pod.unheard_since = tried.map(|at| at.as_millisecond());
        }
        pods.sort_by(|one, other| {
            (one.index, one.attempt, &one.uid).cmp(&(other.index, other.attempt, &other.uid))
        });
        let leader = pods
            .iter()
            .filter(|pod| pod.index == 0 && !pod.phase.ended())
            .max_by_key(|pod| pod.attempt);
        observed::Group {
            load: leader
                .and_then(|pod| streams.load(&pod.uid))
                .map(|heard| streams::load(&heard)),
            placeholders: self
                .pods
                .of(&uid)
                .filter_map(|pod| pod.placeholder.clone())
                .collect(),
            budget: self.budgets.named(&uid, &key.name).cloned(),
            writing: self.writing.get(&key).cloned(),
            refusals: refusals.of(&Subject::Group(key)),
            pods,
            object: Arc::clone(object),
        }
    }

    /// Pods of the group with this UID that say which member they are.
    pub(super) fn members(&self, group_uid: &str) -> impl Iterator<Item = &observed::Pod> {
        self.pods.of(group_uid).filter_map(|pod| pod.member.as_ref())
    }
}

/// A kept snapshot; without its template when that cannot be read.
fn revision(object: &ControllerRevision) -> observed::Revision {
    let data = object.data.as_ref().map(|data| data.0.clone());
    observed::Revision {
        name: object.name_any(),
        uid: object.uid().unwrap_or_default(),
        digest: object.labels().get(labels::REVISION).cloned().unwrap_or_default(),
        number: object.revision,
        template: data.and_then(|data| serde_json::from_value(data.get("template")?.clone()).ok()),
    }
}
