//! The objects of a pass by name, and which of them a step is about.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::{Resource, ResourceExt as _};
use llamero_api::{LlamaDeployment, LlamaGroup};
use llamero_core::{Action, Key, children::ManagedObject};

use super::error::EffectError;
use crate::{build::parts::namespace_of, observe::OwnPod};

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
    /// What of pods their binding is written from, while they are gated.
    gated: HashMap<Key, Arc<Pod>>,
    /// Pods that look at a checkpoint.
    inspect: HashSet<Key>,
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
    /// Takes in a deployment.
    pub fn put_deployment(&mut self, key: Key, object: Arc<LlamaDeployment>) {
        self.deployments.insert(key, object);
    }

    /// Forgets a deployment.
    pub fn remove_deployment(&mut self, key: &Key) {
        self.deployments.remove(key);
    }

    /// Takes in a group.
    pub fn put_group(&mut self, key: Key, object: Arc<LlamaGroup>) {
        self.groups.insert(key, object);
    }

    /// Forgets a group.
    pub fn remove_group(&mut self, key: &Key) {
        self.groups.remove(key);
    }

    /// Takes in what became of a pod of ours.
    pub fn pod(&mut self, before: Option<&OwnPod>, after: Option<&OwnPod>) {
        if let Some(before) = before {
            self.gated.remove(&before.key);
            self.inspect.remove(&before.key);
        }
        let Some(after) = after else { return };
        if let Some(gated) = &after.gated {
            self.gated.insert(after.key.clone(), Arc::clone(gated));
        }
        if after.inspect.is_some() {
            self.inspect.insert(after.key.clone());
        }
    }

    /// Of these objects those that steps about the subject need.
    #[must_use]
    pub fn of_subject(&self, subject: &Subject, actions: &[&Action]) -> Self {
        let mut part = Self::default();
        let group = match subject {
            Subject::Group(key) => self.groups.get_key_value(key),
            Subject::Deployment(_) => None,
        };
        if let Some((key, group)) = group {
            part.groups.insert(key.clone(), Arc::clone(group));
        }
        let owner = self.deployment_of(subject);
        if let Some((key, owner)) = owner.and_then(|key| self.deployments.get_key_value(&key)) {
            part.deployments.insert(key.clone(), Arc::clone(owner));
        }
        for action in actions {
            if let Action::Ungate { pod, .. } = action
                && let Some(gated) = self.gated.get(&pod.key)
            {
                part.gated.insert(pod.key.clone(), Arc::clone(gated));
            }
        }
        part
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

    /// The pod of this name, if it is gated.
    #[must_use]
    pub fn gated(&self, key: &Key) -> Option<&Arc<Pod>> {
        self.gated.get(key)
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
                let inspects = self.inspect.contains(&pod.key);
                if self.groups.contains_key(owner) && !inspects {
                    Subject::Group(owner.clone())
                } else {
                    Subject::Deployment(owner.clone())
                }
            }
            Action::WriteGroup { group, .. }
            | Action::CreatePod { group, .. }
            | Action::CreatePlaceholder { group, .. }
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
