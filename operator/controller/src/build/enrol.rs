//! What a pod needs that enrols: where, whom to believe, and a token that says who it is.

use k8s_openapi::api::core::v1::{
    EnvVar, Pod, ProjectedVolumeSource, ServiceAccountTokenProjection, Volume, VolumeMount, VolumeProjection,
};
use llamero_core::observed::Enrolment;
use llamero_identity::enrol::AUDIENCE;

use super::parts;

/// Name of the volume.
const VOLUME: &str = "llamero-token";
/// Where it is mounted.
const MOUNT: &str = "/var/run/secrets/llamero";
/// Seconds; the kubelet replaces it after four fifths of that.
const TOKEN_LIFE: i64 = 3_600;

/// Lets the pod's worker enrol.
pub fn let_enrol(pod: &mut Pod, enrolment: &Enrolment) {
    let Some(spec) = &mut pod.spec else { return };
    let token = ServiceAccountTokenProjection {
        audience: Some(AUDIENCE.to_owned()),
        expiration_seconds: Some(TOKEN_LIFE),
        path: "token".to_owned(),
    };
    let projection = VolumeProjection {
        service_account_token: Some(token),
        ..VolumeProjection::default()
    };
    spec.volumes.get_or_insert_default().push(Volume {
        name: VOLUME.to_owned(),
        projected: Some(ProjectedVolumeSource {
            sources: Some(vec![projection]),
            default_mode: None,
        }),
        ..Volume::default()
    });
    let workers = spec
        .containers
        .iter_mut()
        .filter(|container| container.name == parts::WORKER);
    for container in workers {
        container.volume_mounts.get_or_insert_default().push(VolumeMount {
            name: VOLUME.to_owned(),
            mount_path: MOUNT.to_owned(),
            read_only: Some(true),
            ..VolumeMount::default()
        });
        let ours = [
            ("LLAMERO_ENROLMENT", enrolment.address.clone()),
            ("LLAMERO_INSTALLATION", enrolment.installation.clone()),
            ("LLAMERO_TRUST_DOMAIN", enrolment.trust_domain.clone()),
            ("LLAMERO_ROOTS", enrolment.roots.clone()),
            ("LLAMERO_TOKEN_FILE", format!("{MOUNT}/token")),
        ];
        let variables = container.env.get_or_insert_default();
        // Users cannot name another authority.
        variables.retain(|variable| {
            variable.name != "LLAMERO_ROOTS_FILE" && ours.iter().all(|(name, _)| variable.name != *name)
        });
        variables.extend(ours.map(|(name, value)| EnvVar {
            name: name.to_owned(),
            value: Some(value),
            value_from: None,
        }));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_worker_is_given_a_token_for_nothing_else_and_users_name_no_other_authority() {
        let mut pod: Pod = serde_json::from_value(json!({"spec": {"containers": [
            {"name": "worker", "env": [{"name": "LLAMERO_ROOTS", "value": "theirs"}, {"name": "LLAMERO_ROOTS_FILE", "value": "/x"}, {"name": "A", "value": "1"}]},
            {"name": "sidecar"}]}}))
        .unwrap();
        let enrolment = Enrolment {
            address: "operator.system.svc:18054".into(),
            installation: "system".into(),
            trust_domain: "cluster.local".into(),
            roots: "PEM".into(),
        };
        let_enrol(&mut pod, &enrolment);
        let told: Value = serde_json::to_value(&pod.spec).unwrap();
        let token = json!({"audience": "llamero", "expirationSeconds": 3600, "path": "token"});
        assert_eq!(
            told["volumes"],
            json!([{"name": "llamero-token", "projected": {"sources": [{"serviceAccountToken": token}]}}])
        );
        let worker = &told["containers"][0];
        assert_eq!(
            worker["volumeMounts"],
            json!([{"name": "llamero-token", "mountPath": "/var/run/secrets/llamero", "readOnly": true}])
        );
        let value = |name: &str| {
            let all = worker["env"].as_array().unwrap();
            let found: Vec<_> = all.iter().filter(|one| one["name"] == name).collect();
            assert!(found.len() < 2, "{found:?}");
            found.first().map(|one| one["value"].clone())
        };
        assert_eq!(value("LLAMERO_ROOTS"), Some(json!("PEM")));
        assert_eq!(
            value("LLAMERO_ENROLMENT"),
            Some(json!("operator.system.svc:18054"))
        );
        assert_eq!(
            (value("LLAMERO_ROOTS_FILE"), value("A")),
            (None, Some(json!("1")))
        );
        assert_eq!(
            told["containers"][1],
            json!({"name": "sidecar"}),
            "it gets no token"
        );
    }
}
