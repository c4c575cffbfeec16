//! A worker whose links are authenticated, and who gets past them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use llamero_identity::accept;
use llamero_identity::authority::{self, Authority, Pems};
use llamero_identity::certificate::Certificate;
use llamero_identity::connect::Link;
use llamero_identity::credentials::{Clients, Current, Material, Publisher, pair};
use llamero_identity::enrol::service::{NotKnown, Registrar, Service};
use llamero_identity::verify::Expected;
use llamero_identity::{Identity, Role};
use llamero_proto::v1::completion_client::CompletionClient;
use llamero_proto::v1::rank_control_client::RankControlClient;
use llamero_proto::v1::telemetry_client::TelemetryClient;
use llamero_proto::v1::{FormRequest, LoadRequest, Member, WatchRequest};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Status};
use vllm_proto::LoadLoraRequest;
use vllm_proto::control_client::ControlClient;

use crate::harness::{DEADLINE, Whole, Worker, finish, model_dir, story, turn, until};

const DAY: Duration = Duration::from_secs(86_400);
/// Renewed after two seconds.
const SHORT: Duration = Duration::from_secs(4);
const TOKEN: &str = "the.token.of-this-pod";

fn identity(namespace: &str, role: Role, pod: &str) -> Identity {
    Identity {
        trust_domain: "cluster.local".into(),
        namespace: namespace.into(),
        role,
        pod: pod.into(),
    }
}

fn operator() -> Identity {
    identity("system", Role::Operator, "operator-0")
}

fn gateway() -> Identity {
    identity("system", Role::Gateway, "gateway-0")
}

fn named(name: &str) -> Identity {
    identity("system", Role::Operator, name)
}

fn worker(pod: &str) -> Identity {
    identity("team", Role::Worker { group: "g".into() }, pod)
}

/// Credentials as if they had been enrolled at `now`.
fn material(authority: &Authority, identity: &Identity, now: SystemTime) -> Material {
    Material::signed(authority, identity, "system", now).unwrap()
}

/// Knows one token.
struct OneToken {
    away: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
}

impl Registrar for OneToken {
    async fn identify(&self, token: &str) -> Result<Identity, NotKnown> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.away.load(Ordering::SeqCst) {
            return Err(NotKnown::NotNow("the operator is away".into()));
        }
        match token {
            TOKEN => Ok(worker("g-0-0")),
            _ => Err(NotKnown::Token("it is another's".into())),
        }
    }
}

/// The operator's enrolment.
struct Enrolling {
    address: SocketAddr,
    pems: Pems,
    authorities: watch::Sender<Option<Arc<Authority>>>,
    away: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    _own: Publisher,
}

impl Enrolling {
    async fn start() -> Self {
        let pems = authority::generate(SystemTime::now()).unwrap();
        let (own, credentials) = pair();
        let long = Authority::open(&pems, DAY, SystemTime::now()).unwrap();
        own.put(Current::new(&material(&long, &operator(), SystemTime::now())).unwrap());
        let (authorities, following) = watch::channel(None);
        let (away, asked) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
        let registrar = OneToken {
            away: Arc::clone(&away),
            asked: Arc::clone(&asked),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = accept::tls(listener, credentials, Clients::Anybody);
        let service = Service::new(registrar, following).server();
        tokio::spawn(
            Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming),
        );
        let enrolling = Self {
            address,
            pems,
            authorities,
            away,
            asked,
            _own: own,
        };
        enrolling.sign_for(SHORT);
        enrolling
    }

    fn authority(&self, life: Duration) -> Authority {
        Authority::open(&self.pems, life, SystemTime::now()).unwrap()
    }

    fn sign_for(&self, life: Duration) {
        self.authorities
            .send_replace(Some(Arc::new(self.authority(life))));
    }

    /// The only pod of a group of one rank.
    async fn worker(&self, folder: &tempfile::TempDir, more: &[&str]) -> Worker {
        let token_file = folder.path().join("token");
        std::fs::write(&token_file, TOKEN).unwrap();
        let args = [
            "--group-uid",
            "group",
            "--ranks-per-pod",
            "1",
            "--pod-uid",
            "a",
            "--drain-grace",
            "100ms",
        ];
        let args = [&args[..], more].concat();
        let environment = [
            ("LLAMERO_ENROLMENT", self.address.to_string()),
            ("LLAMERO_INSTALLATION", "system".to_owned()),
            ("LLAMERO_ROOTS", self.pems.roots.clone()),
            ("LLAMERO_TOKEN_FILE", token_file.display().to_string()),
        ];
        let environment = environment
            .each_ref()
            .map(|(name, value)| (*name, value.as_str()));
        Worker::start_with(&model_dir(), &args, &environment).await
    }
}

/// A connection to a port of the pod, by somebody with these credentials who means `expected`.
fn channel(port: u16, material: &Material, expected: Identity) -> Channel {
    let (publisher, credentials) = pair();
    publisher.put(Current::new(material).unwrap());
    Link::Mutual(credentials, Expected::Pod(expected)).channel(&endpoint(port))
}

fn endpoint(port: u16) -> Endpoint {
    Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap()
}

async fn watch_ranks(channel: Channel) -> Result<(), Status> {
    let mut reports = RankControlClient::new(channel)
        .watch(WatchRequest {})
        .await?
        .into_inner();
    reports.message().await.map(drop)
}

async fn ask(channel: Channel) -> Result<Whole, Status> {
    let mut stream = CompletionClient::new(channel)
        .complete(story(8))
        .await?
        .into_inner();
    finish(Whole::default(), &mut stream).await
}

async fn load_adapter(channel: Channel) -> Result<(), Status> {
    let request = LoadLoraRequest {
        lora_name: "sql".into(),
        source_path: "adapters/sql".into(),
    };
    ControlClient::new(channel).load_lora(request).await.map(drop)
}

async fn watch_load(channel: Channel) -> Result<(), Status> {
    let request = LoadRequest { interval_millis: 100 };
    TelemetryClient::new(channel).watch(request).await.map(drop)
}

/// When the certificate ends that is shown at this port.
async fn shown_until(port: u16, material: &Material) -> Option<SystemTime> {
    let client = Current::new(material)
        .unwrap()
        .client(Expected::Pod(worker("g-0-0")))
        .unwrap();
    let stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let name = "llamero".try_into().unwrap();
    let stream = TlsConnector::from(client).connect(name, stream).await.ok()?;
    let shown = stream.get_ref().1.peer_certificates()?.first()?;
    Some(Certificate::read(shown).unwrap().not_after)
}

#[tokio::test]
async fn a_worker_answers_whom_the_table_names_and_renews_while_it_serves() {
    let _turn = turn().await;
    let (enrolling, folder) = (Enrolling::start().await, tempfile::tempdir().unwrap());
    // A user's own authority, whose clients may ask.
    let clients = authority::generate(SystemTime::now()).unwrap();
    let clients_file = folder.path().join("clients.pem");
    std::fs::write(&clients_file, &clients.roots).unwrap();
    let admitting = [
        "--client-roots-file",
        clients_file.to_str().unwrap(),
        "--adapter-client",
        "deployer",
    ];
    let pod = enrolling.worker(&folder, &admitting).await;
    let (control, inference) = (pod.ports.control, pod.ports.inference.unwrap());
    let long = enrolling.authority(DAY);
    let of = |identity: Identity| material(&long, &identity, SystemTime::now());
    let own = of(operator());

    // The operator is away: the pod says so and lets nobody in.
    until("it says that it is not enrolled", async || {
        let (code, why) = pod.get("/readyz").await;
        (code == 503 && why.contains("not enrolled") && why.contains("away")).then_some(())
    })
    .await;
    assert!(
        watch_ranks(channel(control, &own, worker("g-0-0")))
            .await
            .is_err()
    );

    // It comes, and certificates of four seconds are renewed without a restart, also those of rank 0's own process.
    enrolling.away.store(false, Ordering::SeqCst);
    let from = enrolling.asked.load(Ordering::SeqCst);
    until("it renews", async || {
        (enrolling.asked.load(Ordering::SeqCst) >= from + 3).then_some(())
    })
    .await;
    enrolling.sign_for(DAY);
    for port in [control, inference] {
        until("long certificates are shown", async || {
            let end = shown_until(port, &own).await?;
            (end > SystemTime::now() + DAY / 2).then_some(())
        })
        .await;
    }

    form(&pod, &own).await;
    until("the pod is ready", async || {
        (pod.get("/readyz").await.0 == 200).then_some(())
    })
    .await;
    let reference = ask(channel(inference, &of(gateway()), worker("g-0-0")))
        .await
        .unwrap();
    assert_eq!(reference.token_ids.len(), 8);
    ask(channel(inference, &own, worker("g-0-0"))).await.unwrap();
    watch_load(channel(inference, &own, worker("g-0-0")))
        .await
        .unwrap();

    strangers_are_refused(&enrolling, control, inference).await;
    // Whatever its certificate says, a client is a client: it may ask, and nothing else.
    let clients = Authority::open(&clients, DAY, SystemTime::now()).unwrap();
    let client = Material {
        roots: own.roots.clone(),
        ..material(&clients, &operator(), SystemTime::now())
    };
    let answer = ask(channel(inference, &client, worker("g-0-0"))).await.unwrap();
    assert_eq!(answer, reference);
    let status = watch_ranks(channel(control, &client, worker("g-0-0")))
        .await
        .unwrap_err();
    assert_ne!(
        status.code(),
        Code::PermissionDenied,
        "it got past the handshake: {status}"
    );

    // Adapters are loaded by whom the user lists: this model has no room for any, which only who is let in hears.
    let deployer = Material {
        roots: own.roots.clone(),
        ..material(&clients, &named("deployer"), SystemTime::now())
    };
    for (who, code) in [
        (&client, Code::PermissionDenied),
        (&of(gateway()), Code::PermissionDenied),
        (&deployer, Code::FailedPrecondition),
        (&own, Code::FailedPrecondition),
    ] {
        let status = load_adapter(channel(inference, who, worker("g-0-0")))
            .await
            .unwrap_err();
        assert_eq!(status.code(), code, "{status}");
    }

    // The operator goes for good: the pod serves on, over new connections too.
    enrolling.away.store(true, Ordering::SeqCst);
    enrolling.authorities.send_replace(None);
    assert_eq!(
        ask(channel(inference, &of(gateway()), worker("g-0-0")))
            .await
            .unwrap(),
        reference
    );
    assert_eq!(pod.get("/readyz").await.0, 200);

    // The plain port answers probes and metrics and nothing else.
    assert_eq!(pod.get("/livez").await.0, 200);
    assert_eq!(pod.get("/metrics").await.0, 200);
    for path in [
        "/",
        "/llamero.v1.RankControl/Watch",
        "/llamero.v1.Completion/Complete",
    ] {
        assert_eq!(pod.get(path).await.0, 404, "{path}");
    }
}

#[tokio::test]
async fn beside_a_mesh_the_inference_port_is_plain_text_and_the_control_port_is_not() {
    let _turn = turn().await;
    let (enrolling, folder) = (Enrolling::start().await, tempfile::tempdir().unwrap());
    enrolling.away.store(false, Ordering::SeqCst);
    enrolling.sign_for(DAY);
    let pod = enrolling.worker(&folder, &["--inference-auth", "none"]).await;
    let (control, inference) = (pod.ports.control, pod.ports.inference.unwrap());
    let own = material(&enrolling.authority(DAY), &operator(), SystemTime::now());
    until("the pod to be enrolled", async || {
        let (_, why) = pod.get("/readyz").await;
        (!why.contains("not enrolled")).then_some(())
    })
    .await;
    form(&pod, &own).await;
    until("the pod is ready", async || {
        (pod.get("/readyz").await.0 == 200).then_some(())
    })
    .await;
    let answer = ask(endpoint(inference).connect_lazy()).await.unwrap();
    assert_eq!(answer.token_ids.len(), 8);
    let status = load_adapter(endpoint(inference).connect_lazy())
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    watch_ranks(endpoint(control).connect_lazy())
        .await
        .expect_err("the control port answers in plain text");
}

async fn form(pod: &Worker, own: &Material) {
    let member = Member {
        rank: 0,
        pod_uid: "a".into(),
        ip: "127.0.0.1".into(),
        port: pod.ports.ranks[0].into(),
    };
    let request = FormRequest {
        group_uid: "group".into(),
        generation: 1,
        members: vec![member],
        key: vec![7; 32],
        lost: Vec::new(),
    };
    let channel = channel(pod.ports.control, own, worker("g-0-0"));
    let formed = tokio::time::timeout(DEADLINE, RankControlClient::new(channel).form(request)).await;
    assert_eq!(formed.unwrap().unwrap().into_inner().generation, 1);
}

async fn strangers_are_refused(enrolling: &Enrolling, control: u16, inference: u16) {
    let (authority, now) = (enrolling.authority(DAY), SystemTime::now());
    let there = || worker("g-0-0");
    let denied = |status: Status, what: &str| {
        assert_eq!(status.code(), Code::PermissionDenied, "{what}: {status}");
    };
    // Valid certificates, and calls that the table does not allow.
    for other in [
        gateway(),
        there(),
        worker("h-0-0"),
        identity("team", Role::Operator, "o"),
    ] {
        let own = material(&authority, &other, now);
        denied(
            watch_ranks(channel(control, &own, there())).await.unwrap_err(),
            &other.to_string(),
        );
    }
    for other in [there(), worker("h-0-0"), identity("team", Role::Gateway, "g")] {
        let own = material(&authority, &other, now);
        denied(
            ask(channel(inference, &own, there())).await.unwrap_err(),
            &other.to_string(),
        );
        denied(
            watch_load(channel(inference, &own, there())).await.unwrap_err(),
            &other.to_string(),
        );
    }
    // No certificate that counts: the handshake fails, so there is no answer at all.
    let foreign = authority::generate(now).unwrap();
    let foreign = Authority::open(&foreign, DAY, now).unwrap();
    let mut of_foreigner = material(&foreign, &operator(), now);
    of_foreigner.roots = material(&authority, &operator(), now).roots;
    let expired = material(&authority, &operator(), now - 2 * DAY);
    for own in [of_foreigner, expired] {
        let status = watch_ranks(channel(control, &own, there())).await.unwrap_err();
        assert_ne!(status.code(), Code::PermissionDenied, "{status}");
        ask(channel(inference, &own, there())).await.unwrap_err();
    }
    watch_ranks(endpoint(control).connect_lazy())
        .await
        .expect_err("in plain text");
    ask(endpoint(inference).connect_lazy())
        .await
        .expect_err("in plain text");
    let believed = authority::store(authority.roots()).unwrap();
    let config = llamero_identity::credentials::anonymous(believed, Expected::Pod(there())).unwrap();
    let anonymous = llamero_identity::connect::anonymous(&endpoint(control), config);
    watch_ranks(anonymous).await.expect_err("without a certificate");
    // And whoever means another pod does not talk to this one.
    let own = material(&authority, &operator(), now);
    watch_ranks(channel(control, &own, worker("g-1-0")))
        .await
        .expect_err("another pod is meant");
}

#[tokio::test]
async fn a_worker_without_roots_to_believe_says_what_to_give() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_llamero-worker"))
        .args([
            "serve",
            "--model-dir",
            "/none",
            "--enrolment",
            "operator:18054",
            "--installation",
            "system",
        ])
        .args(crate::harness::ANY_PORTS)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("--roots-file"),
        "{said}"
    );
}
