//! What is measured, one after another, the reference first.

use std::time::{Duration, Instant};

use kube::Client;
use serde_json::{Value, json};

use crate::{
    cluster::Cluster,
    counts::Counts,
    options::Options,
    process::Process,
    tally::{Stage, Tally, Whose},
};

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(50);

/// How far pods come before a group can serve.
const STAGES: [(&str, Stage); 4] = [
    ("created", Stage::Created),
    ("released", Stage::Released),
    ("bound", Stage::Bound),
    ("podsReady", Stage::Ready),
];

pub(crate) struct Bench {
    pub(crate) client: Client,
    pub(crate) cluster: Cluster,
    pub(crate) tally: Tally,
    pub(crate) operator: Process,
    pub(crate) options: Options,
}

fn seconds(since: Instant) -> f64 {
    (since.elapsed().as_secs_f64() * 100.0).round() / 100.0
}

impl Bench {
    /// Everything; the result is one line of the history.
    pub(crate) async fn run(&self) -> anyhow::Result<Value> {
        let pods = self.options.all_pods();
        eprintln!(
            "{} nodes, {} pods of others",
            self.options.nodes, self.options.foreign
        );
        self.cluster.prepare().await?;
        let nodes = self.options.nodes;
        self.until("nodes ready", async || {
            Ok(self.cluster.ready_nodes().await? >= nodes)
        })
        .await?;
        let groups = self.options.groups() * self.options.deployments;
        let counts = Counts::read(&self.client).await?;
        let reference = self.reference(pods).await?;
        let of_reference = Counts::read(&self.client).await?.since(&counts, groups);
        eprintln!("reference: {reference} {of_reference}");
        let before = self.operator.totals()?;
        let counts = Counts::read(&self.client).await?;
        let start = self.start(pods).await?;
        let of_start = Counts::read(&self.client).await?.since(&counts, groups);
        let after = self.operator.totals()?;
        eprintln!("start: {start} {of_start}");
        let rest = self.rest().await?;
        eprintln!("at rest: {rest}");
        let (halves, zero) = self.scale(pods).await?;
        let soak = self.soak().await?;
        eprintln!("soak: {soak}");
        let (resident, most) = self.operator.memory()?;
        Ok(json!({
            "unixSeconds": std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs(),
            "cores": std::thread::available_parallelism().map_or(0, usize::from),
            "pods": pods, "perGroup": self.options.per_group, "groups": groups, "deployments": self.options.deployments,
            "nodes": nodes, "foreignPods": self.options.foreign,
            "reference": reference, "start": start,
            "controlPlane": {"reference": of_reference, "start": of_start},
            "effectsPerGroup": (after.effects - before.effects) / groups as f64,
            "cpuSecondsOfStart": after.cpu - before.cpu,
            "halfToWhole": halves, "toZero": zero, "soak": soak, "atRest": rest,
            "residentMiB": resident.round(), "mostResidentMiB": most.round(),
        }))
    }

    /// Waits, with an end.
    async fn until(&self, what: &str, done: impl AsyncFn() -> anyhow::Result<bool>) -> anyhow::Result<f64> {
        let began = Instant::now();
        while !done().await? {
            anyhow::ensure!(
                began.elapsed() < Duration::from_secs(self.options.patience),
                "{what}: not within {} s; of our pods {:?} are created, released, bound and ready",
                self.options.patience,
                STAGES.map(|(_, stage)| self.tally.count(Whose::Llamero, stage))
            );
            tokio::time::sleep(LOOK).await;
        }
        Ok(seconds(began))
    }

    async fn pods(&self, whose: Whose, wanted: usize) -> anyhow::Result<f64> {
        self.until("pods", async || {
            Ok(self.tally.count(whose, Stage::Created) == wanted)
        })
        .await
    }

    async fn reference(&self, pods: usize) -> anyhow::Result<Value> {
        let began = Instant::now();
        self.cluster.create_reference().await?;
        self.pods(Whose::Reference, pods).await?;
        let created = seconds(began);
        self.until("reference ready", async || {
            Ok(self.tally.count(Whose::Reference, Stage::Ready) == pods)
        })
        .await?;
        let ready = seconds(began);
        self.cluster.delete_reference().await?;
        let deleted = self.pods(Whose::Reference, 0).await?;
        Ok(json!({"created": created, "ready": ready, "deleted": deleted}))
    }

    /// Ready is what a user waits for: every LlamaDeployment has all its groups serving.
    async fn start(&self, pods: usize) -> anyhow::Result<Value> {
        let (all, groups) = (self.options.deployments, self.options.groups());
        let began = Instant::now();
        self.cluster.deploy(groups).await?;
        let mut reached = serde_json::Map::new();
        for (name, stage) in STAGES {
            self.until(name, async || Ok(self.tally.count(Whose::Llamero, stage) == pods))
                .await?;
            reached.insert(name.to_owned(), seconds(began).into());
        }
        self.until("groups ready", async || self.cluster.all_ready(all, groups).await)
            .await?;
        reached.insert("ready".to_owned(), seconds(began).into());
        Ok(reached.into())
    }

    /// Half of the groups, all of them again, none.
    async fn scale(&self, pods: usize) -> anyhow::Result<(Value, f64)> {
        let (all, groups) = (self.options.deployments, self.options.groups());
        self.scaled(all, groups / 2).await?;
        let began = Instant::now();
        self.cluster.scale(all, groups).await?;
        self.pods(Whose::Llamero, pods).await?;
        let created = seconds(began);
        self.until("groups ready", async || self.cluster.all_ready(all, groups).await)
            .await?;
        let halves = json!({"created": created, "ready": seconds(began)});
        eprintln!("half to whole: {halves}");
        let zero = self.scaled(all, 0).await?;
        eprintln!("to zero: {zero} s");
        Ok((halves, zero))
    }

    /// Scales the first `deployments`; seconds until all of it is so.
    async fn scaled(&self, deployments: usize, groups: usize) -> anyhow::Result<f64> {
        let began = Instant::now();
        self.cluster.scale(deployments, groups).await?;
        self.until("scaled", async || {
            self.cluster.all_ready(deployments, groups).await
        })
        .await?;
        self.pods(Whose::Llamero, groups * deployments * self.options.per_group)
            .await?;
        Ok(seconds(began))
    }

    /// One deployment goes up and down.
    async fn soak(&self) -> anyhow::Result<Value> {
        let whole = (self.options.all_pods() / 10 / self.options.per_group).max(2);
        self.scaled(1, whole / 2).await?;
        let (mut up, mut down) = (Vec::new(), Vec::new());
        for _ in 0..self.options.soak {
            up.push(self.scaled(1, whole).await?);
            down.push(self.scaled(1, whole / 2).await?);
        }
        self.scaled(1, 0).await?;
        Ok(json!({"pods": whole * self.options.per_group, "up": spread(&mut up), "down": spread(&mut down)}))
    }

    /// What the operator takes while nothing happens.
    async fn rest(&self) -> anyhow::Result<Value> {
        // Statuses are written, streams to members are closed.
        tokio::time::sleep(Duration::from_secs(10)).await;
        let (before, began) = (self.operator.totals()?, Instant::now());
        tokio::time::sleep(Duration::from_secs(self.options.rest)).await;
        let (after, took) = (self.operator.totals()?, began.elapsed().as_secs_f64());
        let passes = after.passes.0 - before.passes.0;
        Ok(json!({
            "percentOfACore": 100.0 * (after.cpu - before.cpu) / took,
            "writes": after.effects - before.effects,
            "passesPerSecond": passes / took,
            "passMillis": 1000.0 * (after.passes.1 - before.passes.1) / passes.max(1.0),
            "residentMiB": self.operator.memory()?.0.round(),
        }))
    }
}

/// Median and worst.
fn spread(seconds: &mut [f64]) -> Value {
    seconds.sort_by(f64::total_cmp);
    json!({"median": seconds.get(seconds.len() / 2), "worst": seconds.last()})
}
