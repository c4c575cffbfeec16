//! The NetworkPolicies of chart and operator, enforced: a stranger gets nowhere, and everything still works.

use anyhow::{Context, Result, ensure};
use llamero_tests::cluster::Cluster;
use llamero_tests::poll;
use serde_json::{Value, json};

use crate::client::{ask, chat};
use crate::fixture::{Deployment, NAMESPACE, SOON, name_of};
use crate::installation::Installed;
use crate::stranger::{Enforced, PodNetwork, Stranger};

/// Ports of workers, gateway and operator that are nobody's business.
const CLOSED: [u16; 5] = [18051, 18052, 18100, 18053, 18054];
/// Metrics and probes are open unless the chart's values say otherwise.
const OPEN: u16 = 8080;
const QUESTION: &str = "What do llamas eat?";

fn leader_address(pods: &[Value]) -> Result<&str> {
    pods.iter()
        .find(|pod| pod["metadata"]["labels"]["llamero.dev/role"] == "leader")
        .and_then(|pod| pod["status"]["podIP"].as_str())
        .context("no leader")
}

/// A policy that somebody opens is closed again.
fn is_mended(deployment: &Deployment) -> Result<()> {
    let kubectl = deployment.kubectl();
    let policy = || kubectl.get(&["-n", NAMESPACE, "networkpolicy", "fenced-workers"]);
    let rules = policy()?["spec"]["ingress"].clone();
    let open = r#"{"spec": {"ingress": [{}]}}"#;
    kubectl.run(&[
        "-n",
        NAMESPACE,
        "patch",
        "networkpolicy",
        "fenced-workers",
        "--type=merge",
        "-p",
        open,
    ])?;
    poll::until("the policy to be mended", SOON, || {
        let now = policy()?["spec"]["ingress"].clone();
        ensure!(now == rules, "it is {now}");
        Ok(Some(()))
    })
}

/// The operator reaches its workers, and they each other: a member that is deleted is replaced, and the group forms anew.
fn forms_anew(deployment: &Deployment, expected: &str) -> Result<()> {
    let cluster = &deployment.cluster;
    let workers = deployment.pods()?;
    let member = workers
        .iter()
        .find(|pod| pod["metadata"]["labels"]["llamero.dev/role"] == "member")
        .and_then(|pod| pod["metadata"]["name"].as_str())
        .context("no member")?;
    cluster
        .kubectl()
        .run(&["-n", NAMESPACE, "delete", "pod", member, "--wait=false"])?;
    poll::until("another member", SOON, || {
        // Its address is not known before it runs.
        cluster.enforce_policies()?;
        let pods = deployment.pods()?;
        let there = pods.iter().any(|pod| pod["metadata"]["name"] == member);
        Ok((!there && addresses(&pods).len() == 2).then_some(()))
    })?;
    cluster.enforce_policies()?;
    deployment.wait_ready(1)?;
    ensure!(
        ask(cluster, &chat("fenced", QUESTION, 24))? == expected,
        "the group formed anew answers differently"
    );
    Ok(())
}

fn addresses(pods: &[Value]) -> Vec<&str> {
    pods.iter()
        .filter_map(|pod| pod["status"]["podIP"].as_str())
        .collect()
}

/// Without one of the policies its own pods are open, and no others: each stands before what it is for.
fn each_policy_is_needed(
    cluster: &Cluster,
    stranger: &Stranger<'_>,
    closed: &[(String, u16)],
    fences: &[(&str, Vec<String>, u16)],
) -> Result<()> {
    for (policy, own, port) in fences {
        cluster.enforce_policies_without(policy)?;
        let reached = stranger.reached(closed)?;
        ensure!(
            reached.iter().any(|(_, open)| open == port),
            "{policy} is not what refuses the stranger at {port}: it reaches {reached:?}"
        );
        ensure!(
            reached.iter().all(|(address, _)| own.contains(address)),
            "without {policy} other pods are open: {reached:?}"
        );
    }
    cluster.enforce_policies()
}

/// The addresses of one part of the installation.
fn addresses_of(system: &[Value], app: &str) -> Vec<String> {
    let is_of = |pod: &&Value| pod["metadata"]["labels"]["app.kubernetes.io/name"] == app;
    let pods: Vec<Value> = system.iter().filter(is_of).cloned().collect();
    addresses(&pods).into_iter().map(str::to_owned).collect()
}

/// The address of the API server inside the cluster.
fn api_server(cluster: &Cluster) -> Result<String> {
    let service = cluster
        .kubectl()
        .get(&["-n", "default", "service", "kubernetes"])?;
    let address = service["spec"]["clusterIP"].as_str();
    Ok(address.context("no cluster IP")?.to_owned())
}

/// Outwards, while policies are enforced: each part reaches what it calls, and no metrics of workers, which everybody else may read.
fn the_installation_reaches_what_it_needs_only(
    cluster: &Cluster,
    leader: &str,
    system: &[Value],
) -> Result<()> {
    let first = |app: &str| {
        let addresses = addresses_of(system, app).into_iter().next();
        addresses.with_context(|| format!("no {app}"))
    };
    let (operator, gateway) = (first("llamero-operator")?, first("llamero-gateway")?);
    let api = api_server(cluster)?;
    let to = |address: &str, port: u16| (address.to_owned(), port);
    let needed = [
        (
            "llamero-gateway",
            vec![to(leader, 18051), to(&operator, 18054), to(&api, 443)],
        ),
        (
            "llamero-operator",
            vec![
                to(leader, 18051),
                to(leader, 18052),
                to(&gateway, 18053),
                to(&api, 443),
            ],
        ),
    ];
    for (app, needed) in needed {
        let pod = system
            .iter()
            .find(|pod| pod["metadata"]["labels"]["app.kubernetes.io/name"] == app)
            .with_context(|| format!("no {app}"))?;
        let inside = PodNetwork::of(cluster, "llamero-system", name_of(pod))?;
        let mut targets = needed.clone();
        targets.push(to(leader, OPEN));
        let reached = inside.reached(&targets)?;
        ensure!(
            reached == needed,
            "{app} reaches {reached:?} in place of {needed:?}"
        );
        cluster.enforce_policies_without(app)?;
        let open = inside.reached(&targets)?;
        ensure!(open == targets, "without its policy {app} reaches {open:?} only");
        cluster.enforce_policies()?;
    }
    Ok(())
}

/// Outwards, while policies are enforced: the operator's enrolment, and neither probes of the gateway nor the API server.
fn workers_reach_what_they_need_only(
    deployment: &Deployment,
    workers: &[Value],
    system: &[Value],
) -> Result<()> {
    let cluster = &deployment.cluster;
    let name = workers[0]["metadata"]["name"].as_str().context("no name")?;
    let inside = PodNetwork::of(cluster, NAMESPACE, name)?;
    let address = |app: &str| {
        let first = addresses_of(system, app).into_iter().next();
        first.with_context(|| format!("no {app}"))
    };
    let api = api_server(cluster)?;
    let enrolment = (address("llamero-operator")?, 18054);
    let targets = [enrolment.clone(), (address("llamero-gateway")?, 8081), (api, 443)];
    let reached = inside.reached(&targets)?;
    ensure!(reached == [enrolment], "a worker reaches {reached:?}");
    cluster.lift_policies()?;
    let open = inside.reached(&targets)?;
    ensure!(
        open == targets,
        "with nothing enforced a worker reaches {open:?} only"
    );
    cluster.enforce_policies()
}

fn pods_of_the_installation(cluster: &Cluster) -> Result<Vec<Value>> {
    let words = [
        "-n",
        "llamero-system",
        "pods",
        "-l",
        "app.kubernetes.io/part-of=llamero",
    ];
    let pods = cluster.kubectl().get(&words)?;
    let mut pods = pods["items"].as_array().cloned().unwrap_or_default();
    pods.retain(stays);
    Ok(pods)
}

/// Whether a pod is not about to go, as those of before an upgrade are for a while.
fn stays(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_null()
}

#[test]
fn a_stranger_is_refused_on_every_port_while_everything_works() -> Result<()> {
    let deployment = Deployment::create("fenced", json!({}))?;
    deployment.wait_ready(1)?;
    let cluster = &deployment.cluster;
    let expected = ask(cluster, &chat("fenced", QUESTION, 24))?;
    let system = pods_of_the_installation(cluster)?;
    let workers = deployment.pods()?;
    is_mended(&deployment)?;
    let stranger = Stranger::create(cluster)?;
    let leader = leader_address(&workers)?;
    ensure!(
        stranger.reaches(leader, 18052)?,
        "nothing is enforced yet, and the control port does not answer"
    );

    let enforced = Enforced::now(cluster)?;
    let everybody = addresses(&workers).into_iter().chain(addresses(&system));
    let targets: Vec<(String, u16)> = everybody
        .flat_map(|address| CLOSED.map(|port| (address.to_owned(), port)))
        .collect();
    let reached = stranger.reached(&targets)?;
    ensure!(reached.is_empty(), "the stranger reaches {reached:?}");
    ensure!(
        stranger.reaches(leader, OPEN)?,
        "metrics are closed although everybody may read them"
    );
    ensure!(
        ask(cluster, &chat("fenced", QUESTION, 24))? == expected,
        "the fenced group answers differently"
    );

    let own: Vec<String> = addresses(&workers).into_iter().map(str::to_owned).collect();
    let fences = [
        ("fenced-workers", own, 18052),
        ("llamero-gateway", addresses_of(&system, "llamero-gateway"), 18053),
        (
            "llamero-operator",
            addresses_of(&system, "llamero-operator"),
            18054,
        ),
    ];
    each_policy_is_needed(cluster, &stranger, &targets, &fences)?;
    the_installation_reaches_what_it_needs_only(cluster, leader, &system)?;
    workers_reach_what_they_need_only(&deployment, &workers, &system)?;
    forms_anew(&deployment, &expected)?;
    drop(enforced);

    let workers = deployment.pods()?;
    ensure!(
        stranger.reaches(leader_address(&workers)?, 18052)?,
        "without enforcement the stranger is still refused"
    );
    Ok(())
}

/// Metrics of workers, gateway and operator are for whom the chart's `networkPolicy.metricsFrom` names. It installs anew twice, so that only long runs do.
#[test]
fn metrics_are_for_whom_the_installation_names() -> Result<()> {
    const GATEWAYS_METRICS: u16 = 8081;
    if std::env::var_os("LLAMERO_LONG").is_none() {
        return Ok(());
    }
    let deployment = Deployment::create("metered", json!({}))?;
    deployment.wait_ready(1)?;
    let cluster = &deployment.cluster;
    let peer = "networkPolicy.metricsFrom[0]";
    let _installed = Installed::with(&[
        &format!("{peer}.namespaceSelector.matchLabels.kubernetes\\.io/metadata\\.name={NAMESPACE}"),
        &format!("{peer}.podSelector.matchLabels.role=scraper"),
    ])?;
    poll::until("the operator to write it into the workers' policy", SOON, || {
        let policy = cluster
            .kubectl()
            .get(&["-n", NAMESPACE, "networkpolicy", "metered-workers"])?;
        Ok(policy.to_string().contains("scraper").then_some(()))
    })?;
    let system = pods_of_the_installation(cluster)?;
    let mut workers = deployment.pods()?;
    workers.retain(stays);
    let mut targets = Vec::new();
    for (addresses, port) in [
        (addresses(&workers).into_iter().map(str::to_owned).collect(), OPEN),
        (addresses_of(&system, "llamero-operator"), OPEN),
        (addresses_of(&system, "llamero-gateway"), GATEWAYS_METRICS),
    ] {
        let addresses: Vec<String> = addresses;
        targets.extend(addresses.into_iter().map(|address| (address, port)));
    }
    let reached = |labels: Value| -> Result<Vec<(String, u16)>> {
        let stranger = Stranger::wearing(cluster, NAMESPACE, labels)?;
        let _enforced = Enforced::now(cluster)?;
        stranger.reached(&targets)
    };
    let by_stranger = reached(json!({}))?;
    ensure!(
        by_stranger.is_empty(),
        "a stranger reaches metrics: {by_stranger:?}"
    );
    let by_scraper = reached(json!({"role": "scraper"}))?;
    ensure!(
        by_scraper == targets,
        "who is named reaches {by_scraper:?} in place of {targets:?}"
    );
    Ok(())
}
