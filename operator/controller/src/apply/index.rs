//! The objects of a pass by name, and which of them a step is about.

use std::{collections::HashMap, sync::Arc};

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::{Resource, ResourceExt as _};
use llamero_api::{LlamaDeployment, LlamaGroup};
use llamero_core::{Action, Key, children::ManagedObject};

use super::error::EffectError;
use crate::{build::parts::namespace_of, observe::Snapshot, watch::slim};

/// What a step is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// A deployment.
    Deployment(Key),
    /// A group.
    Group(Key),
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Deployment(key) => write!(f, "LlamaDeployment {key}"),
            Self::Group(key) => write!(f, "LlamaGroup {key}"),
        }
    }
}

/// Objects by namespace and name.
#[derive(Clone, Debug, Default)]
pub struct Index {
    deployments: HashMap<Key, Arc<LlamaDeployment>>,
    groups: HashMap<Key, Arc<LlamaGroup>>,
    pods: HashMap<Key, Arc<Pod>>,
}

/// Namespace and name of an object.
#[must_use]
pub fn key_of(object: &impl Resource) -> Key {
    Key {
        namespace: namespace_of(object),
        name: object.name_any(),
    }
}

impl Index {
    /// The objects of a snapshot; of the pods only ours.
    #[must_use]
    pub fn new(snapshot: &Snapshot) -> Self {
        fn by_key<'a, K: Resource + 'a>(objects: impl Iterator<Item = &'a Arc<K>>) -> HashMap<Key, Arc<K>> {
            objects
                .map(|object| (key_of(object.as_ref()), Arc::clone(object)))
                .collect()
        }
        Self {
            deployments: by_key(snapshot.deployments.iter()),
            groups: by_key(snapshot.groups.iter()),
            pods: by_key(snapshot.pods.iter().filter(|pod| slim::is_ours(pod))),
        }
    }

    /// The deployment of this name.
    ///
    /// # Errors
    /// When it is gone.
    pub fn deployment(&self, key: &Key) -> Result<&Arc<LlamaDeployment>, EffectError> {
        self.deployments
            .get(key)
            .ok_or_else(|| EffectError::Dropped(format!("LlamaDeployment {key} is gone")))
    }

    /// The group of this name.
    ///
    /// # Errors
    /// When it is gone.
    pub fn group(&self, key: &Key) -> Result<&Arc<LlamaGroup>, EffectError> {
        self.groups
            .get(key)
            .ok_or_else(|| EffectError::Dropped(format!("LlamaGroup {key} is gone")))
    }

    /// The pod of this name.
    ///
    /// # Errors
    /// When it is gone.
    pub fn pod(&self, key: &Key) -> Result<&Arc<Pod>, EffectError> {
        self.pods
            .get(key)
            .ok_or_else(|| EffectError::Dropped(format!("pod {key} is gone")))
    }

    /// What the action is about.
    #[must_use]
    pub fn subject(&self, action: &Action) -> Subject {
        match action {
            Action::CreateGroup { deployment, .. }
            | Action::ScaleDeployment { deployment, .. }
            | Action::CreateRevision { deployment, .. }
            | Action::RenumberRevision { deployment, .. }
            | Action::DeleteRevision { deployment, .. }
            | Action::CreateInspectPod { deployment, .. } => Subject::Deployment(deployment.clone()),
            Action::DeletePod { owner, pod, .. } => {
                // An inspect pod belongs to the deployment even if a group bears the same name.
                let inspects = self
                    .pods
                    .get(&pod.key)
                    .is_some_and(|pod| pod.labels().contains_key(llamero_api::labels::INSPECT));
                if self.groups.contains_key(owner) && !inspects {
                    Subject::Group(owner.clone())
                } else {
                    Subject::Deployment(owner.clone())
                }
            }
            Action::WriteGroup { group, .. }
            | Action::CreatePod { group, .. }
            | Action::Ungate { group, .. }
            | Action::Form { group, .. }
            | Action::DrainGroup { group, .. }
            | Action::DeleteGroup { group, .. } => Subject::Group(group.clone()),
            Action::Apply { owner, object, .. } => match object {
                ManagedObject::Service(_) | ManagedObject::Policy(_) => Subject::Deployment(owner.clone()),
                ManagedObject::Budget(_) => Subject::Group(owner.clone()),
            },
        }
    }

    /// Reference for Events.
    #[must_use]
    pub fn reference(&self, subject: &Subject) -> Option<ObjectReference> {
        match subject {
            Subject::Deployment(key) => self.deployments.get(key).map(|object| object.object_ref(&())),
            Subject::Group(key) => self.groups.get(key).map(|object| object.object_ref(&())),
        }
    }

    /// The deployment that a subject belongs to.
    #[must_use]
    pub fn deployment_of(&self, subject: &Subject) -> Option<Key> {
        match subject {
            Subject::Deployment(key) => Some(key.clone()),
            Subject::Group(key) => {
                let name = self.groups.get(key)?.spec.deployment.clone();
                Some(Key {
                    namespace: key.namespace.clone(),
                    name,
                })
            }
        }
    }
}
