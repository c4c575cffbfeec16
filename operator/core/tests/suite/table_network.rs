//! Who may reach the pods of a deployment, and whom they may reach.

use std::{collections::BTreeSet, sync::Arc};

use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicySpec};
use llamero_core::{
    children::ManagedObject,
    decide,
    network::{Network, NetworkOptions, Pods, of_deployment},
    observed::{Deployment, Observed},
    plan::Action,
};
use serde_json::{Value, json};

use crate::build::*;

fn pods(namespace: &str, app: &str) -> Pods {
    Pods {
        namespace: namespace.into(),
        labels: [("app.kubernetes.io/name".to_owned(), app.to_owned())].into(),
    }
}

fn network(options: Value) -> Network {
    Network {
        options: serde_json::from_value::<NetworkOptions>(options).unwrap(),
        operator: pods("llamero-system", "llamero-operator"),
        gateways: pods("llamero-system", "llamero-gateway"),
        enrolment: None,
    }
}

fn spec(deployment: &Deployment, options: Value) -> NetworkPolicySpec {
    of_deployment(deployment, &network(options))
        .unwrap()
        .spec
        .unwrap()
}

/// Ports that each kind of peer may reach, as `port: peers`.
fn ingress(spec: &NetworkPolicySpec) -> Vec<String> {
    let told = serde_json::to_value(&spec.ingress).unwrap();
    let rules = told.as_array().unwrap().iter().map(|rule| {
        let port = &rule["ports"][0];
        let last = port["endPort"]
            .as_i64()
            .map(|port| format!("-{port}"))
            .unwrap_or_default();
        let peers = rule["from"].as_array().cloned().unwrap_or_default();
        let peers: Vec<String> = peers
            .iter()
            .map(|peer| {
                let namespace = &peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"];
                let labels = peer["podSelector"]["matchLabels"].as_object().unwrap();
                let label = labels.values().next().unwrap();
                format!(
                    "{}/{}",
                    namespace.as_str().unwrap_or("."),
                    label.as_str().unwrap()
                )
            })
            .collect();
        format!("{}{last}: {}", port["port"], peers.join(" "))
    });
    rules.collect()
}

fn hub(endpoint: Option<&str>) -> Deployment {
    deployment(|object| {
        object["spec"]["model"]["source"] =
            json!({"huggingFace": {"repo": "org/llama", "endpoint": endpoint}});
        object["spec"]["worker"] = json!({"env": [{"name": "https_proxy", "value": "http://proxy:3128"}]});
    })
}

/// Ports that the pods may reach anywhere, in the order of their rules.
fn outside(spec: &NetworkPolicySpec) -> BTreeSet<i64> {
    let told = serde_json::to_value(&spec.egress).unwrap();
    let rules = told
        .as_array()
        .unwrap()
        .iter()
        .filter(|rule| rule["to"][0]["ipBlock"].is_object());
    let ports = rules.flat_map(|rule| rule["ports"].as_array().unwrap().clone());
    ports.map(|port| port["port"].as_i64().unwrap()).collect()
}

/// The port that is open towards one address, of a rule of its own.
fn to_address(spec: &NetworkPolicySpec, cidr: &str) -> Option<i64> {
    let told = serde_json::to_value(&spec.egress).unwrap();
    let mut rules = told.as_array().unwrap().iter();
    let rule = rules.find(|rule| rule["to"][0]["ipBlock"]["cidr"] == cidr)?;
    rule["ports"][0]["port"].as_i64()
}

#[test]
fn each_port_is_open_to_who_needs_it_and_nobody_else() {
    let spec = spec(&deployment(|_| {}), json!({}));
    assert_eq!(
        ingress(&spec),
        [
            "18100-18355: ./llama",
            "18051: llamero-system/llamero-gateway llamero-system/llamero-operator",
            "18052: llamero-system/llamero-operator",
            "8080: ",
        ]
    );
    assert_eq!(spec.policy_types.as_ref().unwrap(), &["Ingress", "Egress"]);
    assert_eq!(
        outside(&spec),
        BTreeSet::new(),
        "weights of a claim come over no network"
    );
}

#[test]
fn pods_reach_the_operator_where_they_enrol_there() {
    let mut network = network(json!({}));
    network.enrolment = Some(18054);
    let policy = of_deployment(&deployment(|_| {}), &network).unwrap();
    let told = json!(policy.spec.unwrap().egress);
    let rule = told.as_array().unwrap().last().unwrap();
    assert_eq!(rule["ports"], json!([{"port": 18054, "protocol": "TCP"}]));
    let to = &rule["to"][0];
    assert_eq!(
        to["podSelector"]["matchLabels"],
        json!({"app.kubernetes.io/name": "llamero-operator"})
    );
    assert!(
        !json!(spec(&deployment(|_| {}), json!({})))
            .to_string()
            .contains("18054"),
        "only there"
    );
}

#[test]
fn installations_extend_and_restrict() {
    let team = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "team"}}, "podSelector": {"matchLabels": {"app": "client"}}});
    let options = json!({"inferenceFrom": [team], "metricsFrom": [team], "restrictEgress": false});
    let spec = spec(&deployment(|_| {}), options);
    let told = ingress(&spec);
    assert!(
        told[1].ends_with("team/client") && told[3] == "8080: team/client",
        "{told:?}"
    );
    assert!(spec.egress.is_none() && spec.policy_types.as_ref().unwrap() == &["Ingress"]);
}

#[test]
fn weights_over_the_network_open_their_port_but_not_the_clouds_credentials() {
    assert_eq!(outside(&spec(&hub(None), json!({}))), BTreeSet::from([443, 3128]));
    let mirror = spec(&hub(Some("http://mirror:8080")), json!({}));
    assert_eq!(outside(&mirror), BTreeSet::from([443, 3128, 8080]));
    let told = json!(mirror).to_string();
    assert!(
        told.contains("169.254.169.254/32") && told.contains("fd00:ec2::254/128"),
        "{told}"
    );
    assert_eq!(to_address(&mirror, "169.254.169.254/32"), None);
    let open = spec(&hub(None), json!({"metadataAddress": true}));
    assert_eq!(to_address(&open, "169.254.169.254/32"), Some(80));
    assert_eq!(to_address(&open, "169.254.170.23/32"), None);

    let of = |source: Value| {
        let env = json!([{"name": "AWS_ENDPOINT_URL_STS", "value": "https://sts.internal:8443"}]);
        let deployment = deployment(|object| {
            object["spec"]["model"]["source"] = source;
            object["spec"]["worker"] = json!({"env": env});
        });
        spec(&deployment, json!({}))
    };
    let web = of(json!({"https": {"url": "http://files:8000/llama"}}));
    assert_eq!(outside(&web), BTreeSet::from([443, 8000, 8443]));
    let bucket = of(json!({"s3": {"uri": "s3://weights/llama", "endpoint": "https://minio:9000"}}));
    assert_eq!(outside(&bucket), BTreeSet::from([80, 443, 8443, 9000]));
    assert_eq!(to_address(&bucket, "169.254.170.23/32"), Some(80));
    let keyed = json!({"s3": {"uri": "gs://weights/llama", "credentialsSecretRef": {"name": "keys"}}});
    assert_eq!(outside(&of(keyed)), BTreeSet::from([443, 8443]));
    let volume = of(json!({"persistentVolumeClaim": {"claimName": "weights"}}));
    assert_eq!(outside(&volume), BTreeSet::new());
}

fn applied(observed: &Observed) -> Option<NetworkPolicy> {
    let plan = decide(observed, NOW);
    plan.steps.into_iter().find_map(|step| match step.action {
        Action::Apply {
            object: ManagedObject::Policy(policy),
            ..
        } => Some(*policy),
        _ => None,
    })
}

#[test]
fn the_fence_stands_before_any_pod_and_is_mended() {
    let mut observed = observed(deployment(|_| {}));
    assert_eq!(applied(&observed), None, "nobody looks after it");
    observed.settings.network = Some(network(json!({})));
    let plan = decide(&observed, NOW);
    assert_eq!(words(&plan)[0], "apply policy");
    let policy = applied(&observed).unwrap();
    observed.deployments[0].network_policy = Some(Arc::new(policy.clone()));
    assert_eq!(applied(&observed), None);
    let mut opened = policy.clone();
    opened.spec.as_mut().unwrap().ingress = Some(vec![]);
    observed.deployments[0].network_policy = Some(Arc::new(opened));
    assert_eq!(applied(&observed), Some(policy.clone()));
    // A peer that is taken away leaves no field that would differ.
    observed.deployments[0].network_policy = Some(Arc::new(policy));
    observed.settings.network = Some(network(json!({"metadataAddress": true, "restrictEgress": false})));
    assert!(applied(&observed).is_some());
}

#[test]
fn a_fence_that_is_switched_off_lets_everybody_through_where_it_stood() {
    let mut observed = observed(deployment(|_| {}));
    observed.settings.network = Some(network(json!({"enabled": false})));
    assert_eq!(applied(&observed), None);
    let before = of_deployment(&observed.deployments[0], &network(json!({}))).unwrap();
    observed.deployments[0].network_policy = Some(Arc::new(before));
    let open = applied(&observed).unwrap().spec.unwrap();
    assert_eq!(json!(open.ingress), json!([{}]));
    assert_eq!(json!(open.egress), json!([{}]));
}
