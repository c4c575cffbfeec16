//! What a pod needs that enrols: where, whom to believe, a token that says who it is, and which clients it admits.

use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, Container, EnvVar, KeyToPath, Pod, ProjectedVolumeSource,
    ServiceAccountTokenProjection, Volume, VolumeMount, VolumeProjection,
};
use llamero_api::deployment::{CaBundle, InferenceAuth, Worker};
use llamero_core::observed::Enrolment;
use llamero_identity::enrol::AUDIENCE;

use super::parts;

/// Name of the volume.
const VOLUME: &str = "llamero-token";
/// Where it is mounted.
const MOUNT: &str = "/var/run/secrets/llamero";
/// Name of the volume with the authorities of clients.
const CLIENTS_VOLUME: &str = "llamero-clients";
/// Where it is mounted. A folder, since the kubelet renews no single files.
const CLIENTS_MOUNT: &str = "/etc/llamero/clients";
/// Name of their file.
const CLIENTS_FILE: &str = "bundle.pem";
/// Seconds; the kubelet replaces it after four fifths of that.
const TOKEN_LIFE: i64 = 3_600;

/// Lets the pod's worker enrol, and admit the clients that its user names.
pub fn let_enrol(pod: &mut Pod, enrolment: &Enrolment, worker: &Worker) {
    let Some(spec) = &mut pod.spec else { return };
    let clients = worker.client_ca_bundle();
    spec.volumes
        .get_or_insert_default()
        .extend(clients.map(clients_volume));
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
        admit(container, worker);
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

fn clients_volume(bundle: &CaBundle) -> Volume {
    let item = KeyToPath {
        key: bundle.key.clone(),
        path: CLIENTS_FILE.to_owned(),
        mode: None,
    };
    Volume {
        name: CLIENTS_VOLUME.to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: bundle.config_map.clone(),
            items: Some(vec![item]),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// Tells the worker how clients prove who they are.
fn admit(container: &mut Container, worker: &Worker) {
    let arguments = container.args.get_or_insert_default();
    if worker.inference_auth() == InferenceAuth::None {
        arguments.extend(["--inference-auth".to_owned(), "none".to_owned()]);
    }
    if worker.client_ca_bundle().is_none() {
        return;
    }
    arguments.extend([
        "--client-roots-file".to_owned(),
        format!("{CLIENTS_MOUNT}/{CLIENTS_FILE}"),
    ]);
    for name in worker.adapter_clients() {
        arguments.push(format!("--adapter-client={name}"));
    }
    container.volume_mounts.get_or_insert_default().push(VolumeMount {
        name: CLIENTS_VOLUME.to_owned(),
        mount_path: CLIENTS_MOUNT.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    });
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
        let_enrol(&mut pod, &enrolment, &Worker::default());
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

    #[test]
    fn clients_are_admitted_as_the_user_says() {
        let made = |inference: Value| {
            let mut pod: Pod = serde_json::from_value(
                json!({"spec": {"containers": [{"name": "worker", "args": ["serve"]}]}}),
            )
            .unwrap();
            let worker: Worker = serde_json::from_value(json!({"inference": inference})).unwrap();
            let_enrol(&mut pod, &Enrolment::default(), &worker);
            serde_json::to_value(&pod.spec).unwrap()
        };
        let usual = made(Value::Null);
        assert_eq!(usual["containers"][0]["args"], json!(["serve"]));
        assert_eq!(usual, made(json!({"auth": "Mutual"})));
        let open = made(json!({"auth": "None"}));
        assert_eq!(
            open["containers"][0]["args"],
            json!(["serve", "--inference-auth", "none"])
        );
        let admitting = made(json!({"clientCaBundle": {"configMap": "clients"}}));
        assert_eq!(
            admitting["containers"][0]["args"],
            json!(["serve", "--client-roots-file", "/etc/llamero/clients/bundle.pem"])
        );
        let loading =
            made(json!({"clientCaBundle": {"configMap": "clients"}, "adapterClients": ["deployer"]}));
        assert_eq!(
            loading["containers"][0]["args"].as_array().unwrap().last(),
            Some(&json!("--adapter-client=deployer"))
        );
        assert_eq!(
            admitting["volumes"][0],
            json!({"name": "llamero-clients", "configMap": {"name": "clients", "items": [{"key": "ca.crt", "path": "bundle.pem"}]}})
        );
        assert!(
            admitting["containers"][0]["volumeMounts"]
                .to_string()
                .contains("/etc/llamero/clients")
        );
    }
}
