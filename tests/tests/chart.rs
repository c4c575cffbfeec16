//! What the chart renders: the bounds of tenants and the fences between pods, for several values.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use llamero_tests::paths;
use serde::Deserialize as _;
use serde_json::Value;

/// The chart's objects for these values.
fn rendered(values: &[&str]) -> Result<Vec<Value>> {
    let helm = paths::program("helm");
    let mut command = Command::new(&helm);
    command
        .args(["template", "llamero"])
        .arg(paths::root().join("charts/llamero"));
    command.args(["--namespace", "llamero-system"]).args(values);
    let output = command
        .output()
        .with_context(|| format!("cannot run {}: build it with make cluster-build", helm.display()))?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout)?;
    serde_yaml_ng::Deserializer::from_str(&text)
        .map(|document| Ok(Value::deserialize(document)?))
        .collect()
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> Option<&'a Value> {
    let named = |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == name;
    objects.iter().find(named)
}

fn operator_args(objects: &[Value]) -> Result<Vec<String>> {
    let operator = find(objects, "Deployment", "llamero-operator").context("no operator")?;
    let args = &operator["spec"]["template"]["spec"]["containers"][0]["args"];
    Ok(serde_json::from_value(args.clone())?)
}

#[test]
fn values_of_an_older_chart_are_refused_with_a_way_out() -> Result<()> {
    for missing in [
        "tenants",
        "networkPolicy",
        "security",
        "watchNamespaces",
        "sharedObjects",
    ] {
        let refused = rendered(&["--set", &format!("{missing}=null")])
            .unwrap_err()
            .to_string();
        ensure!(
            refused.contains(&format!("have no {missing}")) && refused.contains("--reset-then-reuse-values"),
            "{refused}"
        );
    }
    Ok(())
}

#[test]
fn operator_and_gateway_take_what_an_installation_adds() -> Result<()> {
    for part in ["operator", "gateway"] {
        let set = |value: &str| format!("{part}.{value}");
        let values = [
            set("extraArgs={--one,--two=2}"),
            set("extraEnv[0].name=RUST_BACKTRACE"),
            set("extraEnv[0].value=full"),
            set("podLabels.team=llamas"),
            set("podAnnotations.note=hum"),
        ];
        let values: Vec<&str> = values.iter().flat_map(|value| ["--set", value]).collect();
        let objects = rendered(&values)?;
        let found = find(&objects, "Deployment", &format!("llamero-{part}")).context(part)?;
        let pod = &found["spec"]["template"];
        ensure!(
            pod["metadata"]["labels"]["team"] == "llamas" && pod["metadata"]["annotations"]["note"] == "hum",
            "{part}: {pod}"
        );
        // The labels are the pod's alone: a selector cannot be changed.
        ensure!(
            found["spec"]["selector"]["matchLabels"]["team"].is_null(),
            "{part}"
        );
        let container = &pod["spec"]["containers"][0];
        let args = container["args"].as_array().context("no arguments")?;
        ensure!(
            args.ends_with(&["--one".into(), "--two=2".into()]),
            "{part}: {args:?}"
        );
        let env = container["env"].as_array().context("no environment")?;
        let added = serde_json::json!({"name": "RUST_BACKTRACE", "value": "full"});
        ensure!(env.last() == Some(&added), "{part}: {env:?}");
    }
    Ok(())
}

#[test]
fn pods_are_monitored_where_that_is_wanted() -> Result<()> {
    ensure!(
        find(&rendered(&[])?, "PodMonitor", "llamero-gateway").is_none(),
        "monitored by default"
    );
    let objects = rendered(&["--set", "metrics.podMonitor=true"])?;
    for part in ["operator", "gateway"] {
        let name = format!("llamero-{part}");
        let monitor = find(&objects, "PodMonitor", &name).context("no PodMonitor")?;
        let pods = find(&objects, "Deployment", &name).context("no Deployment")?;
        ensure!(
            monitor["spec"]["selector"]["matchLabels"] == pods["spec"]["selector"]["matchLabels"],
            "{monitor}"
        );
        let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
        let ports = pods["spec"]["template"]["spec"]["containers"][0]["ports"].as_array();
        let named = ports
            .into_iter()
            .flatten()
            .any(|port| port["name"] == endpoint["port"]);
        ensure!(named && endpoint["path"] == "/metrics", "{endpoint}");
    }
    Ok(())
}

#[test]
fn tenants_are_bounded_by_policy_and_operator_alike() -> Result<()> {
    let values = [
        "--set",
        "tenants.hostPaths={/models,/data}",
        "--set",
        "tenants.images={ours/*}",
    ];
    let objects = rendered(&values)?;
    let policy = find(&objects, "ValidatingAdmissionPolicy", "llamero-tenants").context("no policy")?;
    let variables = policy["spec"]["variables"].as_array().context("no variables")?;
    let variable = |name: &str| {
        variables
            .iter()
            .find(|one| one["name"] == name)
            .map(|one| &one["expression"])
    };
    ensure!(
        variable("hostPaths").is_some_and(|list| list == r#"["/models","/data"]"#),
        "{variables:?}"
    );
    ensure!(
        variable("images").is_some_and(|list| list == r#"["llamero-worker:0.1.0","ours/*"]"#),
        "{variables:?}"
    );
    ensure!(
        find(&objects, "ValidatingAdmissionPolicyBinding", "llamero-tenants").is_some(),
        "it is not bound"
    );
    let args = operator_args(&objects)?;
    for wanted in ["--allowed-host-paths=/models,/data", "--allowed-images=ours/*"] {
        ensure!(
            args.iter().any(|arg| arg == wanted),
            "{wanted} is not in {args:?}"
        );
    }
    // Directories of nodes are allowed by nobody's default.
    let usual = operator_args(&rendered(&[])?)?;
    ensure!(
        usual.iter().any(|arg| arg == "--allowed-host-paths="),
        "{usual:?}"
    );
    let without = rendered(&["--set", "tenants.admissionPolicy=false"])?;
    ensure!(
        find(&without, "ValidatingAdmissionPolicy", "llamero-tenants").is_none(),
        "the policy stays"
    );
    ensure!(
        rendered(&["--set", "tenants.hostPaths={relative}"]).is_err(),
        "a relative directory is taken"
    );
    Ok(())
}

#[test]
fn fences_stand_by_default_and_are_moved_by_values() -> Result<()> {
    let objects = rendered(&[])?;
    for name in ["llamero-operator", "llamero-gateway"] {
        let policy = find(&objects, "NetworkPolicy", name).with_context(|| format!("no policy of {name}"))?;
        let types = policy["spec"]["policyTypes"].as_array().context("no types")?;
        ensure!(types.len() == 2, "{name} restricts {types:?} only");
        for rule in policy["spec"]["egress"].as_array().context("no egress")? {
            ensure!(
                rule["ports"].as_array().is_some_and(|ports| !ports.is_empty()),
                "{name} may reach any port"
            );
        }
    }
    let peers = r#"networkPolicy.metricsFrom=[{"namespaceSelector":{"matchLabels":{"name":"a: #b"}}}]"#;
    let objects = rendered(&["--set-json", peers, "--set", "networkPolicy.restrictEgress=false"])?;
    let gateway = find(&objects, "NetworkPolicy", "llamero-gateway").context("no policy")?;
    ensure!(
        gateway["spec"]["ingress"][1]["from"][0]["namespaceSelector"]["matchLabels"]["name"] == "a: #b",
        "{gateway}"
    );
    ensure!(gateway["spec"]["egress"].is_null(), "{gateway}");
    let args = operator_args(&objects)?;
    let json = args
        .iter()
        .find_map(|arg| arg.strip_prefix("--network-policy="))
        .context("nothing is said of workers")?;
    let options: Value = serde_json::from_str(json)?;
    ensure!(
        options["metricsFrom"][0]["namespaceSelector"]["matchLabels"]["name"] == "a: #b",
        "{options}"
    );
    ensure!(options["restrictEgress"] == false, "{options}");
    let off = rendered(&["--set", "networkPolicy.enabled=false"])?;
    ensure!(
        !off.iter().any(|object| object["kind"] == "NetworkPolicy"),
        "a policy stays"
    );
    let args = operator_args(&off)?;
    ensure!(
        args.iter().any(|arg| arg.contains(r#""enabled":false"#)),
        "{args:?}"
    );
    Ok(())
}

#[test]
fn links_are_authenticated_unless_the_installation_says_otherwise() -> Result<()> {
    let plain = rendered(&["--set", "security.mtls=false"])?;
    let args = operator_args(&plain)?;
    ensure!(
        args.contains(&"--mtls=false".to_owned()) && find(&plain, "Service", "llamero-operator").is_some(),
        "groups from before could not renew: {args:?}"
    );
    let off = rendered(&["--set", "security.mtls=false,security.certificates=false"])?;
    ensure!(
        find(&off, "Service", "llamero-operator").is_none(),
        "pods enrol although links are plain text"
    );
    let text = serde_json::to_string(&off)?;
    for absent in ["tokenreviews", "--mtls=true", "18054", "--enrolment"] {
        ensure!(
            !text.contains(absent),
            "{absent} is there although links are plain text"
        );
    }
    let objects = rendered(&[])?;
    let args = operator_args(&objects)?;
    for wanted in [
        "--mtls=true",
        "--ca-secret=llamero-ca",
        "--trust-domain=cluster.local",
        "--certificate-life=24h",
        "--enrolment-address=llamero-operator.llamero-system.svc:18054",
    ] {
        ensure!(
            args.iter().any(|arg| arg == wanted),
            "{wanted} is not in {args:?}"
        );
    }
    let service = find(&objects, "Service", "llamero-operator").context("no Service")?;
    ensure!(service["spec"]["ports"][0]["port"] == 18054, "{service}");
    let role = find(&objects, "Role", "llamero-operator-lease").context("no Role")?;
    let secrets = role["rules"].as_array().context("no rules")?.iter();
    let told: Vec<Value> = secrets
        .filter(|rule| rule["resources"][0] == "secrets")
        .map(|rule| serde_json::json!([rule["resourceNames"], rule["verbs"]]))
        .collect();
    let wanted = serde_json::json!([
        [["llamero-form-keys", "llamero-ca"], ["get"]],
        [["llamero-ca-state"], ["get", "update"]],
        [null, ["create"]],
    ]);
    ensure!(serde_json::json!(told) == wanted, "{told:?}");
    // Nobody reads a Secret of a tenant.
    for role in objects.iter().filter(|object| object["kind"] == "ClusterRole") {
        ensure!(!role["rules"].to_string().contains("secrets"), "{role}");
    }
    // The gateway is given the authority's certificate and not its key.
    let gateway = find(&objects, "Deployment", "llamero-gateway").context("no gateway")?;
    let volumes = &gateway["spec"]["template"]["spec"]["volumes"];
    let sources = &volumes[0]["projected"]["sources"];
    ensure!(
        sources[1]["secret"]
            == serde_json::json!({"name": "llamero-ca", "items": [{"key": "ca.crt", "path": "ca.crt"}]})
            && sources[0]["serviceAccountToken"]["audience"] == "llamero",
        "{volumes}"
    );
    Ok(())
}

#[test]
fn images_are_pinned_by_digest() -> Result<()> {
    let digest = format!("sha256:{}", "0a".repeat(32));
    let (image, worker) = (
        format!("image.digest={digest}"),
        format!("workerImage.digest={digest}"),
    );
    let objects = rendered(&["--set", &image, "--set", &worker, "--set", "image.tag=unused"])?;
    for name in ["llamero-operator", "llamero-gateway"] {
        let deployment = find(&objects, "Deployment", name).with_context(|| format!("no {name}"))?;
        let image = &deployment["spec"]["template"]["spec"]["containers"][0]["image"];
        ensure!(*image == format!("llamero@{digest}"), "{image}");
    }
    let args = operator_args(&objects)?;
    let wanted = format!("--worker-image=llamero-worker@{digest}");
    ensure!(args.contains(&wanted), "{wanted} is not in {args:?}");
    ensure!(
        rendered(&["--set", "image.digest=abc"]).is_err(),
        "a digest of no kind is taken"
    );
    Ok(())
}

#[test]
fn the_gateway_is_reached_and_scaled_as_values_say() -> Result<()> {
    let usual = rendered(&[])?;
    for kind in ["Ingress", "HTTPRoute", "HorizontalPodAutoscaler"] {
        ensure!(
            find(&usual, kind, "llamero-gateway").is_none(),
            "{kind} is there by default"
        );
    }
    let budget = find(&usual, "PodDisruptionBudget", "llamero-gateway").context("no budget")?;
    ensure!(budget["spec"]["maxUnavailable"] == 1, "{budget}");
    let values = [
        "gateway.ingress={\"enabled\":true,\"className\":\"nginx\",\"host\":\"llm.example.com\",\"annotations\":{\"a\":\"b\"},\"tlsSecretName\":\"cert\"}",
        "gateway.httpRoute={\"enabled\":true,\"parentRefs\":[{\"name\":\"public\"}],\"hostnames\":[\"llm.example.com\"]}",
        "gateway.autoscaling={\"enabled\":true,\"minReplicas\":3,\"maxReplicas\":9,\"targetCPU\":50}",
        "gateway.extraArgs=[\"--max-requests=9\"]",
        "gateway.extraEnv=[{\"name\":\"A\",\"value\":\"b\"}]",
        "gateway.podLabels={\"team\":\"x\"}",
        "gateway.podAnnotations={\"note\":\"y\"}",
    ];
    let words: Vec<&str> = values.iter().flat_map(|value| ["--set-json", value]).collect();
    let objects = rendered(&words)?;
    let ingress = &find(&objects, "Ingress", "llamero-gateway").context("no Ingress")?["spec"];
    let rule = &ingress["rules"][0];
    ensure!(
        ingress["ingressClassName"] == "nginx"
            && ingress["tls"][0]["secretName"] == "cert"
            && rule["host"] == "llm.example.com"
            && rule["http"]["paths"][0]["backend"]["service"]["name"] == "llamero-gateway",
        "{ingress}"
    );
    let route = &find(&objects, "HTTPRoute", "llamero-gateway").context("no HTTPRoute")?["spec"];
    ensure!(
        route["parentRefs"][0]["name"] == "public" && route["rules"][0]["timeouts"]["request"] == "0s",
        "{route}"
    );
    let scaler = find(&objects, "HorizontalPodAutoscaler", "llamero-gateway").context("no autoscaler")?;
    ensure!(
        scaler["spec"]["minReplicas"] == 3 && scaler["spec"]["maxReplicas"] == 9,
        "{scaler}"
    );
    let gateway = &find(&objects, "Deployment", "llamero-gateway").context("no gateway")?["spec"];
    ensure!(
        gateway["replicas"].is_null(),
        "the chart and the autoscaler decide both"
    );
    let pod = &gateway["template"];
    let container = &pod["spec"]["containers"][0];
    let args = container["args"].as_array().context("no arguments")?;
    let env = container["env"].as_array().context("no variables")?;
    ensure!(
        args.iter().any(|arg| arg == "--max-requests=9")
            && env.contains(&serde_json::json!({"name": "A", "value": "b"}))
            && pod["metadata"]["labels"]["team"] == "x"
            && pod["metadata"]["annotations"]["note"] == "y"
            && pod["spec"]["topologySpreadConstraints"]
                .as_array()
                .is_some_and(|all| all.len() == 2),
        "{pod}"
    );
    Ok(())
}

/// Kinds that belong to no namespace.
const OF_THE_CLUSTER: [&str; 5] = [
    "ClusterRole",
    "ClusterRoleBinding",
    "PriorityClass",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
];

/// Kind, namespace and name of every object of an installation.
fn names(objects: &[Value], release: &str) -> std::collections::BTreeSet<(String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let named = objects.iter().filter(|object| !object.is_null()).map(|object| {
        let (kind, metadata) = (text(&object["kind"]), &object["metadata"]);
        let namespace = match metadata["namespace"].as_str() {
            _ if OF_THE_CLUSTER.contains(&kind.as_str()) => "",
            Some(namespace) => namespace,
            None => release,
        };
        (kind, namespace.to_owned(), text(&metadata["name"]))
    });
    named.collect()
}

#[test]
fn an_installation_for_some_namespaces_may_change_nothing_elsewhere() -> Result<()> {
    let objects = rendered(&["--set", "watchNamespaces={team-a,team-b}"])?;
    for part in ["operator", "gateway"] {
        let name = format!("llamero-{part}");
        for namespace in ["team-a", "team-b"] {
            let of = |kind: &str| {
                let there = |object: &&Value| object["metadata"]["namespace"] == namespace;
                let named = objects
                    .iter()
                    .filter(|object| object["kind"] == kind && object["metadata"]["name"] == name.as_str());
                named.clone().find(there).cloned()
            };
            let role = of("Role").with_context(|| format!("{name} has no Role in {namespace}"))?;
            let binding = of("RoleBinding").with_context(|| format!("{name} is not bound in {namespace}"))?;
            ensure!(
                binding["subjects"][0]["namespace"] == "llamero-system"
                    && binding["roleRef"]["name"] == name.as_str(),
                "{binding}"
            );
            ensure!(role["rules"].to_string().contains("llamagroups"), "{role}");
        }
        let container = &find(&objects, "Deployment", &name).context("no Deployment")?["spec"]["template"]["spec"]
            ["containers"][0];
        let args = container["args"].as_array().context("no arguments")?;
        ensure!(
            args.iter().any(|arg| arg == "--watch-namespaces=team-a,team-b"),
            "{args:?}"
        );
    }
    ensure!(
        find(&objects, "ClusterRole", "llamero-gateway-llamero-system").is_none(),
        "gateways read something of the whole cluster"
    );
    // What is left for the whole cluster, said one by one.
    let role = find(&objects, "ClusterRole", "llamero-operator-llamero-system").context("no ClusterRole")?;
    let rules = role["rules"].as_array().context("no rules")?.iter();
    let told: Vec<Value> = rules
        .map(|rule| serde_json::json!([rule["resources"], rule["resourceNames"], rule["verbs"]]))
        .collect();
    let definitions = ["llamadeployments.llamero.dev", "llamagroups.llamero.dev"];
    let wanted = serde_json::json!([
        [["nodes", "pods"], null, ["list", "watch"]],
        [["priorityclasses"], null, ["list", "watch"]],
        [["persistentvolumes"], null, ["list", "watch"]],
        [["csidrivers"], null, ["list", "watch"]],
        [["tokenreviews"], null, ["create"]],
        [["customresourcedefinitions"], definitions, ["get", "patch"]],
    ]);
    ensure!(serde_json::json!(told) == wanted, "{told:?}");
    let binding = find(
        &objects,
        "ValidatingAdmissionPolicyBinding",
        "llamero-tenants-llamero-system",
    )
    .context("no binding")?;
    let bound = &binding["spec"]["matchResources"]["namespaceSelector"]["matchExpressions"][0];
    ensure!(
        bound["values"] == serde_json::json!(["team-a", "team-b"]),
        "{binding}"
    );
    ensure!(
        rendered(&["--set", "watchNamespaces={Team}"]).is_err(),
        "a name of no namespace is taken"
    );
    Ok(())
}

#[test]
fn an_installation_can_do_without_any_cluster_role() -> Result<()> {
    let less = "rbac.clusterReader=false,sharedObjects=false,crds.manage=false,security.mtls=false,security.certificates=false";
    let values = ["--set", "watchNamespaces={team-a}", "--set", less];
    let objects = rendered(&values)?;
    for kind in ["ClusterRole", "ClusterRoleBinding", "PriorityClass"] {
        ensure!(
            !objects.iter().any(|object| object["kind"] == kind),
            "a {kind} is there"
        );
    }
    // Gateways are found in the installation's own namespace.
    let role = find(&objects, "Role", "llamero-operator-lease").context("no Role")?;
    let pods =
        serde_json::json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]});
    ensure!(
        role["rules"]
            .as_array()
            .is_some_and(|rules| rules.contains(&pods)),
        "{role}"
    );
    let refused = rendered(&["--set", "rbac.clusterReader=false"])
        .unwrap_err()
        .to_string();
    ensure!(refused.contains("needs watchNamespaces"), "{refused}");
    Ok(())
}

#[test]
fn two_installations_for_different_namespaces_share_no_object() -> Result<()> {
    let one = rendered(&["--set", "watchNamespaces={a}"])?;
    let other = rendered(&[
        "--namespace",
        "second",
        "--set",
        "watchNamespaces={b},sharedObjects=false",
    ])?;
    let (one, other) = (names(&one, "llamero-system"), names(&other, "second"));
    let both: Vec<_> = one.intersection(&other).collect();
    ensure!(both.is_empty(), "{both:?}");
    ensure!(
        one.iter().any(|(kind, ..)| kind == "PriorityClass"),
        "nobody makes the class of placeholders"
    );
    // By default the names are those of before, so that an upgrade finds its objects.
    let usual = names(&rendered(&[])?, "llamero-system");
    for kind in ["ClusterRole", "ClusterRoleBinding"] {
        let name = (kind.to_owned(), String::new(), "llamero-operator".to_owned());
        ensure!(usual.contains(&name), "{kind}");
    }
    Ok(())
}
