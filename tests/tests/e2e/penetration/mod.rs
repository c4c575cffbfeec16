//! Whoever should not get in tries every port and every method of every part.
//!
//! | module | what is tried |
//! |---|---|
//! | [`methods`] | all methods, by who has no certificate or the wrong one |
//! | [`enrolment`] | certificates, with tokens of others |
//! | [`plain`] | ports, and the paths of the plain ones |
//! | [`hostile`] | sources, names and checkpoints that mean harm |
//! | [`files`] | tokenizers, templates, GGUF, adapters and manifests that do |
//! | [`tenants`] | keys that ask for models of others, and adapters that are loaded by whom they must not be |
//! | [`frames`] | frames between ranks; held by tests of engine and worker |
//! | [`attempts`] | the page of all that |

mod attempts;
mod enrolment;
mod files;
mod frames;
mod hostile;
mod methods;
mod plain;
mod tenants;

use anyhow::{Context, Result};
use llamero_identity::authority::Authority;
use llamero_tests::cluster::Cluster;
use serde_json::{Value, json};

use crate::client::{ask, chat};
use crate::fixture::Deployment;
use crate::identities::authority_of_clients;
use crate::installation::pods_of;
use crate::parts::{Parts, Port, port_of, port_of_gateway, port_of_operator};
use crate::stranger::Stranger;

/// A namespace of another tenant.
const OTHERS: &str = "team";
/// Common name of a client that may load adapters.
const LOADER: &str = "deployer";

/// What is attacked: a group over two pods, and the installation.
struct Target {
    group: Deployment,
    parts: Parts,
    /// Of clients that the group admits.
    clients: Authority,
    leader: Value,
    member: Value,
    gateway: Value,
    operator: Value,
}

impl Target {
    fn create() -> Result<Self> {
        let clients = authority_of_clients(&Cluster::connect()?)?;
        let inference = json!({"clientCaBundle": {"configMap": "clients"}, "adapterClients": [LOADER]});
        let group = Deployment::create("target", json!({"worker": {"inference": inference}}))?;
        group.wait_ready(1)?;
        let kubectl = group.kubectl();
        let with_role = |role: &str| -> Result<Value> {
            let pods = group.pods()?;
            let has = |pod: &Value| pod["metadata"]["labels"]["llamero.dev/role"] == role;
            pods.into_iter()
                .find(has)
                .with_context(|| format!("no pod is {role}"))
        };
        let only = |part: &str| -> Result<Value> {
            let pods = pods_of(&kubectl, part)?;
            pods.into_iter()
                .next()
                .with_context(|| format!("no pod of {part}"))
        };
        Ok(Self {
            parts: Parts::of(&kubectl)?,
            clients,
            leader: with_role("leader")?,
            member: with_role("member")?,
            gateway: only("llamero-gateway")?,
            operator: only("llamero-operator")?,
            group,
        })
    }

    fn cluster(&self) -> &Cluster {
        &self.group.cluster
    }

    /// Ports that speak gRPC, by the words of the page.
    fn ports(&self) -> Result<Vec<(&'static str, Port)>> {
        Ok(vec![
            ("leader, inference (18051)", port_of(&self.leader, 18051)?),
            ("leader, control (18052)", port_of(&self.leader, 18052)?),
            ("member, control (18052)", port_of(&self.member, 18052)?),
            ("gateway, demand (18053)", port_of_gateway(&self.gateway)?),
            ("operator, enrolment (18054)", port_of_operator(&self.operator)?),
        ])
    }
}

fn ip(pod: &Value) -> Result<&str> {
    pod["status"]["podIP"].as_str().context("a pod has no address")
}

#[test]
fn penetration() -> Result<()> {
    const QUESTION: &str = "Who guards a herd?";
    let target = Target::create()?;
    let cluster = target.cluster();
    let expected = ask(cluster, &chat("target", QUESTION, 24))?;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OTHERS}});
    cluster.kubectl().apply(&namespace)?;
    let stranger = Stranger::create(cluster)?;
    let sections = [
        plain::ports(&target, &stranger)?,
        plain::paths(&target)?,
        methods::all(&target)?,
        tenants::adapters(&target)?,
        enrolment::all(&target)?,
        frames::all()?,
        hostile::sources(cluster)?,
        hostile::names(&target)?,
        hostile::checkpoints()?,
        files::all()?,
        tenants::keys(&target)?,
    ];
    // The gateway asks for no key any more.
    anyhow::ensure!(
        ask(cluster, &chat("target", QUESTION, 24))? == expected,
        "the group answers differently after the attempts"
    );
    attempts::hold(&sections)
}
