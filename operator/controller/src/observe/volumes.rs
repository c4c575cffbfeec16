//! Claims, their volumes and the drivers of these: what is kept of them, and what it means for nodes.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::CSIDriver,
};
use kube::ResourceExt as _;
use llamero_core::volumes::{Claims, Volume};

use crate::watch::Change;

/// A claim and the volume that it is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenClaim {
    namespace: String,
    name: String,
    volume: Option<String>,
}

/// A volume.
#[derive(Clone, Debug, PartialEq)]
pub struct SeenVolume {
    name: String,
    /// Namespace of the claim that it is bound to.
    claimed_in: Option<String>,
    volume: Volume,
}

/// A driver of volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenDriver {
    name: String,
    attaches: bool,
}

/// What is kept of a claim.
#[must_use]
pub fn claim(claim: PersistentVolumeClaim) -> SeenClaim {
    SeenClaim {
        namespace: claim.namespace().unwrap_or_default(),
        name: claim.name_any(),
        volume: claim.spec.and_then(|spec| spec.volume_name),
    }
}

/// What is kept of a volume.
#[must_use]
pub fn volume(volume: PersistentVolume) -> Arc<SeenVolume> {
    let name = volume.name_any();
    let spec = volume.spec.unwrap_or_default();
    Arc::new(SeenVolume {
        name,
        volume: Volume::of(&spec),
        claimed_in: spec.claim_ref.and_then(|claim| claim.namespace),
    })
}

/// What is kept of a driver.
#[must_use]
pub fn driver(driver: CSIDriver) -> SeenDriver {
    SeenDriver {
        name: driver.name_any(),
        attaches: driver.spec.attach_required != Some(false),
    }
}

/// All that are known.
#[derive(Default)]
pub(super) struct Volumes {
    /// By namespace and name, the volume of each claim.
    claims: HashMap<String, HashMap<String, Option<String>>>,
    volumes: HashMap<String, Arc<SeenVolume>>,
    /// Drivers that attach nothing.
    direct: BTreeSet<String>,
    shared: HashMap<String, Arc<Claims>>,
    touched: BTreeSet<String>,
}

impl Volumes {
    pub(super) fn claim(&mut self, change: Change<SeenClaim>) {
        if let Some(before) = change.before {
            if let Some(claims) = self.claims.get_mut(&before.namespace) {
                claims.remove(&before.name);
            }
            self.touched.insert(before.namespace);
        }
        if let Some(after) = change.after {
            self.touched.insert(after.namespace.clone());
            let claims = self.claims.entry(after.namespace).or_default();
            claims.insert(after.name, after.volume);
        }
    }

    pub(super) fn volume(&mut self, change: Change<Arc<SeenVolume>>) {
        for one in [&change.before, &change.after].into_iter().flatten() {
            self.touched.extend(one.claimed_in.clone());
        }
        if let Some(before) = change.before {
            self.volumes.remove(&before.name);
        }
        if let Some(after) = change.after {
            self.volumes.insert(after.name.clone(), after);
        }
    }

    pub(super) fn driver(&mut self, change: Change<SeenDriver>) {
        if let Some(before) = change.before {
            self.direct.remove(&before.name);
        }
        if let Some(after) = change.after.filter(|driver| !driver.attaches) {
            self.direct.insert(after.name);
        }
        self.touched.extend(self.claims.keys().cloned());
    }

    /// Claims of a namespace.
    pub(super) fn of(&self, namespace: &str) -> Arc<Claims> {
        self.shared.get(namespace).cloned().unwrap_or_default()
    }

    /// Namespaces whose claims changed, with all of these.
    pub(super) fn changed(&mut self) -> Vec<(String, Arc<Claims>)> {
        let touched = std::mem::take(&mut self.touched);
        let anew: Vec<_> = touched
            .into_iter()
            .map(|namespace| {
                let claims = self.claims.get(&namespace).into_iter().flatten();
                let claims: Claims = claims
                    .filter_map(|(name, volume)| {
                        Some((
                            name.clone(),
                            self.volumes.get(volume.as_ref()?)?.volume.claim(&self.direct),
                        ))
                    })
                    .collect();
                (namespace, Arc::new(claims))
            })
            .collect();
        for (namespace, claims) in &anew {
            if claims.is_empty() {
                self.shared.remove(namespace);
            } else {
                self.shared.insert(namespace.clone(), Arc::clone(claims));
            }
        }
        anew
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn added<T>(value: T) -> Change<T> {
        Change {
            before: None,
            after: Some(value),
        }
    }

    fn bound(spec: Value) -> Volumes {
        let mut known = Volumes::default();
        let object = json!({"metadata": {"namespace": "n", "name": "weights"}, "spec": {"volumeName": "pv"}});
        known.claim(added(claim(serde_json::from_value(object).unwrap())));
        let mut spec = spec;
        spec["claimRef"] = json!({"namespace": "n", "name": "weights"});
        let object = json!({"metadata": {"name": "pv"}, "spec": spec});
        known.volume(added(volume(serde_json::from_value(object).unwrap())));
        known
    }

    fn is_for_one_node(known: &mut Volumes) -> bool {
        known.changed();
        known.of("n")["weights"].is_for_one_node
    }

    #[test]
    fn only_what_is_attached_is_for_one_node() {
        let csi = json!({"driver": "ebs.csi.aws.com", "volumeHandle": "v"});
        for (modes, source, expected) in [
            (json!(["ReadWriteOnce"]), ("csi", csi.clone()), true),
            (json!(["ReadWriteOncePod"]), ("csi", csi.clone()), true),
            (
                json!(["ReadWriteOnce", "ReadOnlyMany"]),
                ("csi", csi.clone()),
                false,
            ),
            (json!(["ReadWriteMany"]), ("csi", csi), false),
            (
                json!(["ReadWriteOnce"]),
                ("nfs", json!({"server": "s", "path": "/"})),
                false,
            ),
            (
                json!(["ReadWriteOnce"]),
                ("hostPath", json!({"path": "/w"})),
                false,
            ),
            (
                json!(["ReadWriteOnce"]),
                ("cinder", json!({"volumeID": "v"})),
                true,
            ),
        ] {
            let mut known = bound(json!({"accessModes": modes, source.0: source.1}));
            assert_eq!(is_for_one_node(&mut known), expected, "{modes} {}", source.0);
        }
    }

    #[test]
    fn a_driver_that_attaches_nothing_lets_every_node_mount() {
        let csi = json!({"driver": "efs.csi.aws.com", "volumeHandle": "v"});
        let mut known = bound(json!({"accessModes": ["ReadWriteOnce"], "csi": csi}));
        assert!(is_for_one_node(&mut known));
        let object = json!({"metadata": {"name": "efs.csi.aws.com"}, "spec": {"attachRequired": false}});
        let direct = driver(serde_json::from_value(object).unwrap());
        known.driver(added(direct.clone()));
        assert!(!is_for_one_node(&mut known));
        known.driver(Change {
            before: Some(direct),
            after: None,
        });
        assert!(is_for_one_node(&mut known));
    }

    #[test]
    fn claims_come_and_go_with_their_volumes() {
        let nodes = json!({"nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]});
        let mut known = bound(json!({"local": {"path": "/w"}, "nodeAffinity": {"required": nodes}}));
        let changed = known.changed();
        assert_eq!(changed.len(), 1);
        assert!(changed[0].1["weights"].nodes.is_some());
        assert!(known.changed().is_empty());
        let gone = known.volumes["pv"].clone();
        known.volume(Change {
            before: Some(gone),
            after: None,
        });
        assert!(known.changed()[0].1.is_empty() && known.of("n").is_empty());
    }
}
