//! Claims that pods mount, and on which nodes that can be: a local or zonal volume is reached from some nodes only, and one that must be attached to
//! one node at a time keeps all who mount it together. Scheduler and kubelet find that out, too, but when pods are pinned already: such a pod
//! would wait for ever.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{NodeSelector, PersistentVolumeSpec};
use llamero_api::{
    LlamaDeploymentSpec,
    deployment::{Source, Worker},
    group::{GroupTemplate, LlamaGroupSpec},
};

use crate::{
    observed::{Deployment, Group, Node},
    placement::{ANY_NODE, eligible},
};

/// Claims of a namespace by name, as far as their volumes are known.
pub type Claims = BTreeMap<String, Claim>;

/// What a claim's volume asks of nodes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Claim {
    /// Nodes that reach it (`spec.nodeAffinity.required` of the volume); absent: all, or no volume is bound yet and the scheduler has one made
    /// where the pod is.
    pub nodes: Option<NodeSelector>,
    /// It is attached to one node at a time.
    pub is_for_one_node: bool,
}

/// A volume, as far as it matters where it can be mounted.
#[derive(Clone, Debug, PartialEq)]
pub struct Volume {
    nodes: Option<NodeSelector>,
    attached: Attached,
}

/// How a volume gets to where it is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Attached {
    /// Several nodes can have it.
    Anywhere,
    /// It is attached, to one node at a time.
    ToOneNode,
    /// The same, if this driver attaches volumes (`attachRequired`): one that does not lets any node mount them, whatever access modes say.
    ToOneNodeBy(String),
}

impl Volume {
    /// What its specification says. <https://kubernetes.io/docs/concepts/storage/persistent-volumes/#access-modes>: the attach/detach controller holds
    /// volumes of these modes to one node, and only those that are attached at all.
    #[must_use]
    pub fn of(spec: &PersistentVolumeSpec) -> Self {
        let mut modes = spec.access_modes.iter().flatten();
        let is_shared = !modes.all(|mode| matches!(mode.as_str(), "ReadWriteOnce" | "ReadWriteOncePod"));
        let is_attached = spec.aws_elastic_block_store.is_some()
            || spec.azure_disk.is_some()
            || spec.cinder.is_some()
            || spec.fc.is_some()
            || spec.gce_persistent_disk.is_some()
            || spec.iscsi.is_some()
            || spec.rbd.is_some()
            || spec.vsphere_volume.is_some();
        let affinity = spec.node_affinity.as_ref();
        Self {
            nodes: affinity
                .and_then(|affinity| affinity.required.clone())
                .map(of_today),
            attached: match &spec.csi {
                _ if is_shared => Attached::Anywhere,
                Some(csi) => Attached::ToOneNodeBy(csi.driver.clone()),
                None if is_attached => Attached::ToOneNode,
                None => Attached::Anywhere,
            },
        }
    }

    /// What it means for a claim that is bound to it, where these drivers attach nothing.
    #[must_use]
    pub fn claim(&self, direct: &BTreeSet<String>) -> Claim {
        Claim {
            nodes: self.nodes.clone(),
            is_for_one_node: match &self.attached {
                Attached::Anywhere => false,
                Attached::ToOneNode => true,
                Attached::ToOneNodeBy(driver) => !direct.contains(driver),
            },
        }
    }
}

/// Old volumes name zones and regions by labels that nodes have no more. The scheduler translates them, too.
fn of_today(mut nodes: NodeSelector) -> NodeSelector {
    let terms = nodes.node_selector_terms.iter_mut();
    for requirement in terms.flat_map(|term| term.match_expressions.iter_mut().flatten()) {
        if let Some(which) = requirement.key.strip_prefix("failure-domain.beta.kubernetes.io/") {
            requirement.key = format!("topology.kubernetes.io/{which}");
        }
    }
    nodes
}

/// What is known of the claims that pods of a deployment mount.
#[derive(Clone, Copy, Debug)]
pub struct Mounts<'a> {
    claims: &'a Claims,
    groups: &'a [Group],
}

/// What a template's claims ask of its pods' nodes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VolumeNeeds {
    /// Claims with the nodes that reach their volumes.
    reached: Vec<(String, NodeSelector)>,
    one_node: Option<OneNode>,
}

/// A claim whose volume is attached to one node at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct OneNode {
    claim: String,
    /// Where pods of the deployment mount it already.
    at: Option<String>,
}

impl<'a> Mounts<'a> {
    /// Those of a deployment. What other deployments mount of the same claims is not known.
    #[must_use]
    pub fn of(deployment: &'a Deployment) -> Self {
        Self {
            claims: &deployment.claims,
            groups: &deployment.groups,
        }
    }

    /// What pods of the template ask of their nodes; `own` is their group, if there is one yet.
    #[must_use]
    pub fn needs(&self, template: &GroupTemplate, own: Option<&Group>) -> VolumeNeeds {
        let mut needs = VolumeNeeds::default();
        for name in claims_of(&template.source, &template.worker) {
            let Some(claim) = self.claims.get(name) else {
                continue;
            };
            let nodes = claim.nodes.clone();
            needs.reached.extend(nodes.map(|nodes| (name.to_owned(), nodes)));
            let is_settled = needs.given_node().is_some();
            if claim.is_for_one_node && !is_settled {
                let at = own.and_then(|group| node_of(group, name));
                needs.one_node = Some(OneNode {
                    claim: name.to_owned(),
                    at: at.or_else(|| self.node_of(name)).map(str::to_owned),
                });
            }
        }
        needs
    }

    /// Where pods should be that mount what the deployment's own words say: a volume may be attached to the node of a group.
    #[must_use]
    pub fn node_of_own(&self, spec: &LlamaDeploymentSpec) -> Option<&'a str> {
        let mut claims = claims_of(&spec.model.source, &spec.worker);
        claims.find_map(|name| {
            let claim = self.claims.get(name)?;
            claim.is_for_one_node.then(|| self.node_of(name)).flatten()
        })
    }

    /// Where one of the groups mounts a claim.
    fn node_of(&self, claim: &str) -> Option<&'a str> {
        self.groups.iter().find_map(|group| node_of(group, claim))
    }
}

/// Where a group mounts a claim: where its pods are, else where they are to go, also as far as that is only being written.
fn node_of<'g>(group: &'g Group, claim: &str) -> Option<&'g str> {
    let mounts = |spec: &&LlamaGroupSpec| {
        let mut claims = claims_of(&spec.template.source, &spec.template.worker);
        claims.any(|name| name == claim)
    };
    let specs = [Some(&group.object.spec), group.writing.as_deref()];
    let mut specs = specs.into_iter().flatten().filter(mounts).peekable();
    specs.peek()?;
    let pods = group.pods.iter().filter(|pod| !pod.phase.ended());
    let bound = pods.filter_map(|pod| pod.node.as_deref()).next();
    let members = specs.flat_map(|spec| &spec.members);
    let mut chosen = members.filter_map(|member| member.node.as_deref());
    bound.or_else(|| chosen.find(|node| *node != ANY_NODE))
}

/// Claims that one node at a time has, with the nodes that groups were given in the pass that is being made.
#[derive(Debug, Default)]
pub struct GivenNodes(BTreeMap<(String, String), String>);

impl GivenNodes {
    /// Lets a request follow who was placed before it.
    pub fn settle(&self, namespace: &str, needs: &mut VolumeNeeds) {
        let Some(one @ OneNode { at: None, .. }) = &mut needs.one_node else {
            return;
        };
        one.at = self.0.get(&(namespace.to_owned(), one.claim.clone())).cloned();
    }

    /// Notes where a group goes.
    pub fn note(&mut self, namespace: &str, needs: &VolumeNeeds, node: &str) {
        if let Some(OneNode { claim, .. }) = &needs.one_node {
            let key = (namespace.to_owned(), claim.clone());
            self.0.entry(key).or_insert_with(|| node.to_owned());
        }
    }
}

/// The claims that pods mount.
fn claims_of<'t>(source: &'t Source, worker: &'t Worker) -> impl Iterator<Item = &'t str> {
    let source = source.persistent_volume_claim.as_ref();
    let more = worker.volumes.iter();
    let more = more.filter_map(|volume| volume.persistent_volume_claim.as_ref());
    source
        .map(|source| source.claim_name.as_str())
        .into_iter()
        .chain(more.map(|source| source.claim_name.as_str()))
}

impl VolumeNeeds {
    /// Why a node is out of the question, in a few words about such nodes.
    ///
    /// # Errors
    /// The reason.
    pub fn check(&self, node: &Node) -> Result<(), String> {
        let far = self
            .reached
            .iter()
            .find(|(_, nodes)| !eligible::is_selected(nodes, node));
        if let Some((claim, _)) = far {
            return Err(format!("do not reach the volume of claim {claim}"));
        }
        match &self.one_node {
            Some(OneNode { claim, at: Some(at) }) if *at != node.name => Err(format!(
                "are not {at}, where claim {claim} is mounted, which is for one node at a time"
            )),
            _ => Ok(()),
        }
    }

    /// All pods must be on one node.
    #[must_use]
    pub const fn are_for_one_node(&self) -> bool {
        self.one_node.is_some()
    }

    /// The node that is given by pods which are there; others make no room.
    #[must_use]
    pub fn given_node(&self) -> Option<&str> {
        self.one_node.as_ref()?.at.as_deref()
    }

    /// Why a group of so many pods that may not share a node cannot be, where that is so.
    #[must_use]
    pub fn forbid_spreading(&self, pods: usize) -> Option<String> {
        let claim = &self.one_node.as_ref()?.claim;
        (pods > 1).then(|| {
            format!(
                "the volume of claim {claim} is attached to one node at a time, and the group's {pods} pods are on as many nodes: take a claim that \
                 several nodes can mount (ReadOnlyMany or ReadWriteMany), a source that each pod reads by itself (huggingFace, s3), or \
                 placement.onePodPerNode: Preferred"
            )
        })
    }
}
