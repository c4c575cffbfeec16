//! What answers for the workers: one server behind the addresses of all fake pods. A pod is known by the address it is called at; it has
//! loaded as soon as it runs, and a group serves as soon as all of its pods were told who they are.

use std::{
    collections::HashMap,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Config, Event},
    },
};
use llamero_api::{CheckpointSummary, labels, summary::ShardPlan};
use llamero_proto::v1::{self, rank_control_server};
use serde_json::{Value, json};
use tokio::sync::watch;
use tonic::{Request, Response, Status, transport::server::TcpConnectInfo};

use crate::cluster::NAMESPACE;

/// A worker pod.
struct Worker {
    name: String,
    uid: String,
    index: u32,
    group_uid: String,
    report: watch::Sender<v1::PodReport>,
    /// Members of the generation it holds.
    peers: Vec<IpAddr>,
}

type Workers = Arc<Mutex<HashMap<IpAddr, Worker>>>;

/// The server's state.
#[derive(Clone)]
struct Control {
    workers: Workers,
    pods: Api<Pod>,
}

fn lock(workers: &Workers) -> MutexGuard<'_, HashMap<IpAddr, Worker>> {
    workers.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the server and the watch that tells it which pods there are.
pub(crate) async fn start(client: &Client) -> anyhow::Result<()> {
    let control = Control {
        workers: Workers::default(),
        pods: Api::namespaced(client.clone(), NAMESPACE),
    };
    let listener = tokio::net::TcpListener::bind(("0.0.0.0", labels::CONTROL_PORT)).await?;
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let service = rank_control_server::RankControlServer::new(control.clone());
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming),
    );
    tokio::spawn(control.watch_pods());
    Ok(())
}

impl Control {
    async fn watch_pods(self) {
        let ours = Config::default().labels(labels::DEPLOYMENT);
        let mut events = Box::pin(watcher::watcher(self.pods.clone(), ours).default_backoff());
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Apply(pod) | Event::InitApply(pod)) => self.seen(&pod),
                Ok(Event::Delete(pod)) => drop(address(&pod).and_then(|ip| lock(&self.workers).remove(&ip))),
                Ok(Event::Init | Event::InitDone) => {}
                Err(error) => eprintln!("the watch of workers broke: {error}"),
            }
        }
    }

    fn seen(&self, pod: &Pod) {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let on_a_node = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
        if pod.labels().contains_key(labels::INSPECT) {
            if on_a_node && phase != Some("Succeeded") {
                let answer = serde_json::to_string(&summary()).unwrap_or_default();
                self.end(pod.name_any(), "inspect", answer);
            }
            return;
        }
        let (Some(ip), Some(uid)) = (address(pod), pod.uid()) else {
            return;
        };
        let index: u32 = pod
            .labels()
            .get(labels::MEMBER)
            .and_then(|word| word.parse().ok())
            .unwrap_or(0);
        let mut workers = lock(&self.workers);
        if workers.get(&ip).is_some_and(|known| known.uid == uid) {
            return;
        }
        let report = v1::PodReport {
            pod_uid: uid.clone(),
            ranks: vec![rank(index, 0, v1::Phase::Connecting)],
            ..v1::PodReport::default()
        };
        let worker = Worker {
            name: pod.name_any(),
            uid,
            index,
            group_uid: String::new(),
            report: watch::channel(report).0,
            peers: Vec::new(),
        };
        workers.insert(ip, worker);
    }

    /// Its container ends well, with these last words.
    fn end(&self, pod: String, container: &'static str, message: String) {
        let pods = self.pods.clone();
        tokio::spawn(async move {
            let patch = Patch::Strategic(ended(container, &message));
            if let Err(error) = pods.patch_status(&pod, &PatchParams::default(), &patch).await {
                eprintln!("pod {pod} could not be ended: {error}");
            }
        });
    }
}

fn ended(container: &str, message: &str) -> Value {
    json!({"status": {"phase": "Succeeded", "containerStatuses": [{"name": container, "image": "stand-in", "imageID": "", "ready": false,
        "restartCount": 0, "state": {"terminated": {"exitCode": 0, "reason": "Completed", "message": message}}}]}})
}

fn address(pod: &Pod) -> Option<IpAddr> {
    pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()
}

fn rank(index: u32, generation: u64, phase: v1::Phase) -> v1::RankReport {
    v1::RankReport {
        rank: index,
        phase: phase.into(),
        loaded_bytes: 1 << 30,
        total_bytes: 1 << 30,
        read_bytes: 1 << 30,
        generation,
        idle_millis: Some(0),
        still_millis: Some(0),
        pid: 7,
        content_identity: "stand-in".into(),
        numerics: "stand-in".into(),
        ..v1::RankReport::default()
    }
}

fn summary() -> CheckpointSummary {
    let plan = |tensor: i64| ShardPlan {
        tensor,
        weight_bytes_per_rank: (1 << 30) / tensor,
        kv_bytes_per_token_per_rank: 1024,
        workspace_bytes_per_rank: None,
        workspace_bytes_per_batched_token_per_rank: None,
    };
    CheckpointSummary {
        tokenizer_bytes: None,
        format_version: 1,
        architecture: "LlamaForCausalLM".into(),
        hidden_size: 4096,
        layers: 32,
        q_heads: 32,
        kv_heads: 8,
        head_dim: 128,
        ffn_size: 14336,
        vocab_size: 128_256,
        max_position_embeddings: 8192,
        weights: "fp8".into(),
        quantization: None,
        parameters: 1 << 30,
        checkpoint_bytes: 1 << 30,
        plans: [1, 2, 4, 8].map(plan).to_vec(),
        problem: None,
        backends: vec!["cpu".into()],
        one_device_backends: vec![],
        one_node_backends: vec![],
        stage_backends: vec![],
        fp8_kv_backends: vec![],
        commit: None,
        content_identity: None,
    }
}

/// The address that the request was sent to.
fn called<T>(request: &Request<T>) -> Result<IpAddr, Status> {
    let info = request.extensions().get::<TcpConnectInfo>();
    let address = info.and_then(TcpConnectInfo::local_addr);
    address
        .map(|address| address.ip())
        .ok_or_else(|| Status::internal("the connection has no address"))
}

#[tonic::async_trait]
impl rank_control_server::RankControl for Control {
    async fn form(&self, request: Request<v1::FormRequest>) -> Result<Response<v1::FormResponse>, Status> {
        let (ip, form) = (called(&request)?, request.into_inner());
        let peers: Vec<IpAddr> = form
            .members
            .iter()
            .filter_map(|member| member.ip.parse().ok())
            .collect();
        let mut workers = lock(&self.workers);
        let worker = workers
            .get_mut(&ip)
            .ok_or_else(|| Status::unavailable("no pod has this address yet"))?;
        worker.group_uid.clone_from(&form.group_uid);
        worker.peers.clone_from(&peers);
        worker.report.send_modify(|report| {
            (report.generation, report.group_uid) = (form.generation, form.group_uid.clone());
        });
        let told = |ip: &IpAddr| {
            workers
                .get(ip)
                .is_some_and(|w| w.report.borrow().generation == form.generation)
        };
        if peers.iter().all(told) {
            for peer in &peers {
                let Some(worker) = workers.get(peer) else { continue };
                let leads = worker.index == 0;
                worker.report.send_modify(|report| {
                    report.ranks = vec![rank(worker.index, form.generation, v1::Phase::Serving)];
                    report.group_serving = leads;
                });
            }
        }
        Ok(Response::new(v1::FormResponse {
            generation: form.generation,
        }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::PodReport, Status>> + Send>>;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let ip = called(&request)?;
        let workers = lock(&self.workers);
        let worker = workers
            .get(&ip)
            .ok_or_else(|| Status::unavailable("no pod has this address yet"))?;
        let reports = tokio_stream::wrappers::WatchStream::new(worker.report.subscribe());
        Ok(Response::new(Box::pin(reports.map(Ok))))
    }

    async fn drain(&self, request: Request<v1::DrainRequest>) -> Result<Response<v1::DrainResponse>, Status> {
        let ip = called(&request)?;
        let workers = lock(&self.workers);
        let worker = workers
            .get(&ip)
            .ok_or_else(|| Status::unavailable("no pod has this address yet"))?;
        worker
            .report
            .send_modify(|report| (report.draining, report.group_serving) = (true, false));
        self.end(worker.name.clone(), "worker", String::new());
        Ok(Response::new(v1::DrainResponse {}))
    }
}
