//! Links are authenticated on both sides: pods enrol, renew without a restart, outlast an operator that is away, admit clients of their
//! user, and groups from before keep what they had.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use llamero_identity::authority::{self, Authority};
use llamero_identity::certificate::Certificate;
use llamero_tests::cluster::Cluster;
use llamero_tests::{command, poll};
use serde_json::{Value, json};

use crate::client::{Stream, ask, chat, chat_on};
use crate::fixture::{Deployment, NAMESPACE, SOON, name_of};
use crate::installation::{Installed, OperatorAway, pods_of};
use crate::parts::{self, Answer, Parts, Port, SYSTEM, identity_of, port_of};

const QUESTION: &str = "What do llamas wear?";
/// Certificates are renewed after half of that.
const LIFE: &str = "security.certificateLife=30s";
const CONTROL: u16 = 18052;
const INFERENCE: u16 = 18051;
const WATCH: &str = "/llamero.v1.RankControl/Watch";
const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// Names, UIDs and restarts of a deployment's pods, which change when one is made or started anew.
fn lives(deployment: &Deployment) -> Result<Vec<[Value; 3]>> {
    let pods = deployment.pods()?;
    let life = |pod: &Value| {
        let container = &pod["status"]["containerStatuses"][0];
        [
            pod["metadata"]["uid"].clone(),
            container["restartCount"].clone(),
            container["state"]["running"]["startedAt"].clone(),
        ]
    };
    Ok(pods.iter().map(life).collect())
}

fn leader(deployment: &Deployment) -> Result<Value> {
    let pods = deployment.pods()?;
    let leads = |pod: &Value| pod["metadata"]["labels"]["llamero.dev/role"] == "leader";
    pods.into_iter().find(leads).context("no leader")
}

/// Waits for a certificate that ends later than `than`.
fn renewed(parts: &Parts, port: &Port, than: &Certificate) -> Result<Certificate> {
    poll::until("a renewed certificate", SOON, || {
        let now = parts.shown(port)?;
        ensure!(now.not_after > than.not_after, "it is that from before");
        Ok(Some(now))
    })
}

#[test]
fn pods_enrol_renew_without_a_restart_and_outlast_an_operator_that_is_away() -> Result<()> {
    let _installed = Installed::with(&[LIFE])?;
    // Those that run have certificates from before, which live for a day.
    let kubectl = Cluster::connect()?.kubectl();
    let gateways = |words: &[&str]| {
        let words = [&["-n", SYSTEM, "rollout"], words, &["deployment/llamero-gateway"]].concat();
        kubectl.run(&words)
    };
    gateways(&["restart"])?;
    gateways(&["status", "--timeout=3m"])?;
    let clients = authority_of_clients(&Cluster::connect()?)?;
    let inference = json!({"clientCaBundle": {"configMap": "clients"}});
    let deployment = Deployment::create("links", json!({"worker": {"inference": inference}}))?;
    deployment.wait_ready(1)?;
    let (cluster, kubectl) = (&deployment.cluster, deployment.kubectl());
    let template = deployment.groups()?[0]["spec"]["template"].clone();
    ensure!(template["transport"] == "Mutual", "{template}");
    deployment.wait_condition("InsecureLinks", "False")?;
    let secrets = kubectl.get(&["-n", NAMESPACE, "secrets"])?;
    ensure!(
        !secrets.to_string().contains("tls.key"),
        "a private key lies in a tenant's namespace"
    );

    let parts = Parts::of(&kubectl)?;
    let pod = leader(&deployment)?;
    let ports = [port_of(&pod, CONTROL)?, port_of(&pod, INFERENCE)?];
    let only = |part: &str| -> Result<Value> {
        let pods = pods_of(&kubectl, part)?;
        pods.into_iter()
            .next()
            .with_context(|| format!("no pod of {part}"))
    };
    let gateway = parts::port_of_gateway(&only("llamero-gateway")?)?;
    let operator = parts::port_of_operator(&only("llamero-operator")?)?;
    clients_are_admitted(&parts, &clients, &ports)?;
    let (before, expected) = (lives(&deployment)?, ask(cluster, &chat("links", QUESTION, 24))?);
    let mut stream = Stream::start(cluster, chat_on("links", "Tell a long story.", 600))?;
    ensure!(stream.read_to(1)?, "the stream ended at once");
    for port in &ports {
        let first = parts.shown(port)?;
        ensure!(first.identity == identity_of(&pod)?, "{first:?}");
        let next = renewed(&parts, port, &first)?;
        let life = next
            .not_after
            .duration_since(SystemTime::now())
            .unwrap_or_default();
        ensure!(life <= Duration::from_secs(30), "it lives for another {life:?}");
    }
    for port in [&gateway, &operator] {
        renewed(&parts, port, &parts.shown(port)?)?;
    }
    stream.finish()?;
    ensure!(lives(&deployment)? == before, "a pod was started anew");

    let away = OperatorAway::now(kubectl)?;
    ensure!(
        ask(cluster, &chat("links", QUESTION, 24))? == expected,
        "the answer is another one without the operator"
    );
    says_that_it_is_not_enrolled(&pod)?;
    // The gateway's connection is from before the end of the certificates.
    ensure!(
        ask(cluster, &chat("links", QUESTION, 24))? == expected,
        "the answer is another one after the end of the certificates"
    );
    drop(away);
    for port in &ports {
        poll::until("the pods to enrol again", SOON, || {
            let shown = parts.shown(port)?;
            Ok((shown.not_after > SystemTime::now()).then_some(()))
        })?;
    }
    deployment.wait_ready(1)?;
    ensure!(
        ask(cluster, &chat("links", QUESTION, 24))? == expected,
        "the answer is another one after the operator came back"
    );
    ensure!(
        lives(&deployment)? == before,
        "an operator that was away cost a pod: {before:?} are {:?}",
        lives(&deployment)?
    );
    Ok(())
}

/// An authority of the user's own, in the ConfigMap `clients`.
pub(crate) fn authority_of_clients(cluster: &Cluster) -> Result<Authority> {
    let now = SystemTime::now();
    let clients = Authority::open(&authority::generate(now)?, parts::DAY, now)?;
    cluster.kubectl().apply(&json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "clients", "namespace": NAMESPACE},
        "data": {"ca.crt": clients.roots_pem()}
    }))?;
    Ok(clients)
}

/// Whom the user's authority names may ask for answers, and may do nothing else, whatever it is called.
fn clients_are_admitted(parts: &Parts, clients: &Authority, [control, inference]: &[Port; 2]) -> Result<()> {
    let client = parts.by(clients, &parts::operator())?;
    let answer = parts.call(inference, &client, HEALTH)?;
    ensure!(
        answer == Answer::Done,
        "a client of the user is refused: {answer:?}"
    );
    let stranger = parts.by_a_foreigner(&parts::operator())?;
    for (port, caller, method) in [(inference, &stranger, HEALTH), (control, &client, WATCH)] {
        let answer = parts.call(port, caller, method)?;
        ensure!(matches!(answer, Answer::NoConnection(_)), "let in: {answer:?}");
    }
    Ok(())
}

/// The certificate has ended, and probes say why.
fn says_that_it_is_not_enrolled(pod: &Value) -> Result<()> {
    let ip = pod["status"]["podIP"].as_str().context("no address")?;
    let url = format!("http://{ip}:8080/readyz");
    poll::until("the pod to say that its certificate has ended", SOON, || {
        let said =
            command::output(std::process::Command::new("curl").args(["-sS", "--max-time", "10", &url]))?;
        ensure!(
            said.contains("this pod is not enrolled: the operator gave no certificate"),
            "it says {said}"
        );
        Ok(Some(()))
    })
}

#[test]
fn groups_from_before_keep_plain_text_until_they_are_rolled() -> Result<()> {
    let installed = Installed::with(&["security.mtls=false"])?;
    let deployment = Deployment::create("older", json!({}))?;
    deployment.wait_ready(1)?;
    let cluster = &deployment.cluster;
    let (before, expected) = (lives(&deployment)?, ask(cluster, &chat("older", QUESTION, 24))?);
    let group = name_of(&deployment.groups()?[0]).to_owned();

    installed.change(&[])?;
    let message = deployment.wait_condition("InsecureLinks", "True")?;
    ensure!(
        message.contains(&group) && message.contains("spec.rollout.restartedAt"),
        "{message}"
    );
    deployment.wait_ready(1)?;
    ensure!(
        ask(cluster, &chat("older", QUESTION, 24))? == expected,
        "the answer is another one"
    );
    ensure!(lives(&deployment)? == before, "switching it on has rolled pods");

    let restart = json!({"spec": {"rollout": {"restartedAt": "2026-01-01T00:00:00Z"}}});
    let words = [
        "-n",
        NAMESPACE,
        "patch",
        "llamadeployment",
        "older",
        "--type=merge",
        "-p",
        &restart.to_string(),
    ];
    deployment.kubectl().run(&words)?;
    deployment.wait_condition("InsecureLinks", "False")?;
    deployment.wait_ready(1)?;
    let parts = Parts::of(&deployment.kubectl())?;
    let control = port_of(&leader(&deployment)?, CONTROL)?;
    let plain = parts.call(&control, &parts::Caller::Plain, "/llamero.v1.RankControl/Watch")?;
    ensure!(
        matches!(plain, Answer::NoConnection(_)),
        "a new group answers in plain text: {plain:?}"
    );
    ensure!(
        ask(cluster, &chat("older", QUESTION, 24))? == expected,
        "the answer is another one"
    );
    Ok(())
}

/// The leader of the group whose own snapshot says how it is asked, once it serves and no other group is there.
fn rolled_leader(deployment: &Deployment, auth: &str) -> Result<(String, Value)> {
    poll::until("the group that is asked in another way", SOON, || {
        let groups = deployment.groups()?;
        let [group] = groups.as_slice() else {
            anyhow::bail!("{} groups are there", groups.len());
        };
        let asked = &group["spec"]["template"]["worker"]["inference"]["auth"];
        ensure!(
            asked == auth && group["status"]["ready"] == true,
            "{asked}: {}",
            group["status"]
        );
        let name = name_of(group).to_owned();
        let leads = |pod: &Value| {
            let labels = &pod["metadata"]["labels"];
            labels["llamero.dev/group"] == name.as_str()
                && labels["llamero.dev/role"] == "leader"
                && pod["metadata"]["deletionTimestamp"].is_null()
        };
        let leader = deployment.pods()?.into_iter().find(leads);
        Ok(leader.map(|leader| (name, leader)))
    })
}

#[test]
fn leaders_beside_a_mesh_are_asked_in_plain_text_and_controlled_over_tls() -> Result<()> {
    let deployment = Deployment::create("mesh", json!({}))?;
    deployment.wait_ready(1)?;
    deployment.wait_condition("InsecureLinks", "False")?;
    let cluster = &deployment.cluster;
    let expected = ask(cluster, &chat("mesh", QUESTION, 24))?;
    let before = name_of(&deployment.groups()?[0]).to_owned();

    let open = json!({"spec": {"worker": {"inference": {"auth": "None"}}}}).to_string();
    let words = [
        "-n",
        NAMESPACE,
        "patch",
        "llamadeployment",
        "mesh",
        "--type=merge",
        "-p",
        &open,
    ];
    deployment.kubectl().run(&words)?;
    let (group, leader) = rolled_leader(&deployment, "None")?;
    ensure!(group != before, "the group from before was changed");
    poll::until("the condition to name the new group", SOON, || {
        let told = deployment.wait_condition("InsecureLinks", "True")?;
        ensure!(
            told.contains(&group) && told.contains("worker.inference.auth is None"),
            "{told}"
        );
        Ok(Some(()))
    })?;

    let parts = Parts::of(&deployment.kubectl())?;
    let (control, inference) = (port_of(&leader, CONTROL)?, port_of(&leader, INFERENCE)?);
    let plain = parts::Caller::Plain;
    let answer = parts.call(&inference, &plain, HEALTH)?;
    ensure!(
        answer == Answer::Done,
        "plain text is refused beside a mesh: {answer:?}"
    );
    // What not even every client may, nobody may who shows no certificate.
    let answer = parts.call(&inference, &plain, "/vllm.Control/LoadLora")?;
    let refused = matches!(&answer, Answer::Status(code, _) if *code == tonic::Code::PermissionDenied);
    ensure!(refused, "whoever comes may load adapters: {answer:?}");
    let answer = parts.call(&control, &plain, WATCH)?;
    ensure!(
        matches!(answer, Answer::NoConnection(_)),
        "control is plain text: {answer:?}"
    );
    let answer = parts.call(&control, &parts.as_who(&parts::operator())?, WATCH)?;
    ensure!(answer == Answer::Done, "the operator is refused: {answer:?}");
    ensure!(
        ask(cluster, &chat("mesh", QUESTION, 24))? == expected,
        "the answer is another one"
    );
    Ok(())
}
