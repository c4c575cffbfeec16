//! Enrolment and calls over real sockets: who gets in and who does not.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use llamero_identity::accept;
use llamero_identity::access::Known;
use llamero_identity::admitted::Admitted;
use llamero_identity::authority::{self, Authority, Pems};
use llamero_identity::connect::Link;
use llamero_identity::credentials::{Clients, Credentials, Current, Material, Publisher, pair, provider};
use llamero_identity::enrol::client::{Enrolment, Roots};
use llamero_identity::enrol::service::{NotKnown, Registrar, Service};
use llamero_identity::guard::guarded;
use llamero_identity::verify::{Expected, ServerIdentity};
use llamero_identity::{Identity, Role, Serving};
use llamero_proto::v1::demand_client::DemandClient;
use llamero_proto::v1::demand_server::{Demand, DemandServer};
use llamero_proto::v1::telemetry_client::TelemetryClient;
use llamero_proto::v1::telemetry_server::{Telemetry, TelemetryServer};
use llamero_proto::v1::{DemandRequest, DemandSample, LoadRequest, LoadSample};
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ClientConfig, SupportedProtocolVersion};
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request, Response, Status};

const DAY: Duration = Duration::from_secs(86_400);
/// Long enough for a machine that many share; nothing waits this long when all is well.
const DEADLINE: Duration = Duration::from_secs(60);

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

fn worker(pod: &str) -> Identity {
    identity("team", Role::Worker { group: "g".into() }, pod)
}

fn new_authority(life: Duration) -> (Pems, Arc<Authority>) {
    let pems = authority::generate(SystemTime::now()).unwrap();
    let authority = Authority::open(&pems, life, SystemTime::now()).unwrap();
    (pems, Arc::new(authority))
}

/// Credentials as if they had been enrolled at `now`.
fn material(authority: &Authority, identity: &Identity, now: SystemTime) -> Material {
    Material::signed(authority, identity, "system", now).unwrap()
}

fn put(authority: &Authority, identity: &Identity) -> (Publisher, Credentials) {
    let (publisher, credentials) = pair();
    publisher.put(Current::new(&material(authority, identity, SystemTime::now())).unwrap());
    (publisher, credentials)
}

fn known() -> Known {
    Known {
        installation: "system".into(),
        ..Known::default()
    }
}

struct Silent;

#[tonic::async_trait]
impl Demand for Silent {
    type WatchStream = futures::stream::Pending<Result<DemandSample, Status>>;

    async fn watch(&self, _: Request<DemandRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(futures::stream::pending()))
    }
}

/// A gateway's demand, which only operators may watch.
async fn demand(credentials: Credentials) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let routes = guarded(Routes::new(DemandServer::new(Silent)), known());
    let incoming = accept::tls(listener, credentials, Clients::WithCertificate);
    tokio::spawn(Server::builder().add_routes(routes).serve_with_incoming(incoming));
    address
}

fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint::from_shared(format!("http://{address}"))
        .unwrap()
        .connect_timeout(Duration::from_secs(20))
        .timeout(DEADLINE)
}

async fn watch_demand(channel: Channel) -> Result<(), Status> {
    DemandClient::new(channel).watch(DemandRequest {}).await.map(drop)
}

async fn call(address: SocketAddr, material: &Material, expected: Expected) -> Result<(), Status> {
    let (publisher, credentials) = pair();
    publisher.put(Current::new(material).unwrap());
    watch_demand(Link::Mutual(credentials, expected).channel(&endpoint(address))).await
}

#[tokio::test]
async fn only_who_the_table_names_gets_through() {
    let (_, ours) = new_authority(DAY);
    let (_, foreign) = new_authority(DAY);
    let (_serving, credentials) = put(&ours, &gateway());
    let address = demand(credentials).await;
    let now = SystemTime::now();
    let of = |identity: Identity| material(&ours, &identity, now);
    let there = || Expected::Pod(gateway());

    call(address, &of(operator()), there()).await.unwrap();
    for other in [
        worker("g-0-0"),
        gateway(),
        identity("team", Role::Operator, "o"),
        identity("team", Role::Gateway, "p"),
    ] {
        let status = call(address, &of(other), there()).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        assert!(
            status.message().contains("may not call llamero.v1.Demand"),
            "{status}"
        );
    }

    // These do not get past the handshake.
    let expired = material(&ours, &operator(), now - 2 * DAY);
    let mut of_foreigner = material(&foreign, &operator(), now);
    of_foreigner.roots = of(operator()).roots;
    let other_domain = Identity {
        trust_domain: "elsewhere".into(),
        ..operator()
    };
    for refused in [expired, of_foreigner, of(other_domain)] {
        let status = call(address, &refused, there()).await.unwrap_err();
        assert_ne!(status.code(), Code::PermissionDenied, "{status}");
    }
    assert!(
        watch_demand(endpoint(address).connect_lazy()).await.is_err(),
        "in plain text"
    );
    let config = llamero_identity::credentials::anonymous(
        authority::store(ours.roots()).unwrap(),
        Expected::Pod(gateway()),
    );
    let stranger = llamero_identity::connect::anonymous(&endpoint(address), config.unwrap());
    assert!(watch_demand(stranger).await.is_err(), "without a certificate");
    call(address, &of(operator()), there()).await.unwrap();
}

struct Load;

#[tonic::async_trait]
impl Telemetry for Load {
    type WatchStream = futures::stream::Pending<Result<LoadSample, Status>>;

    async fn watch(&self, _: Request<LoadRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(futures::stream::pending()))
    }
}

/// A leader's load, for clients too by whose authority there is a file; and demand beside it, for operators only.
async fn load(credentials: Credentials, clients: PathBuf) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving =
        Serving::mutual(credentials, "system".into()).admitting(Some(Admitted::by(clients)), vec![]);
    let routes = Routes::new(TelemetryServer::new(Load)).add_service(DemandServer::new(Silent));
    let incoming = serving.incoming(listener);
    tokio::spawn(
        Server::builder()
            .add_routes(serving.guard(routes))
            .serve_with_incoming(incoming),
    );
    address
}

async fn watch_load(address: SocketAddr, material: &Material) -> Result<(), Status> {
    let (publisher, credentials) = pair();
    publisher.put(Current::new(material).unwrap());
    let channel = Link::Mutual(credentials, Expected::Pod(worker("g-0-0"))).channel(&endpoint(address));
    TelemetryClient::new(channel)
        .watch(LoadRequest { interval_millis: 100 })
        .await
        .map(drop)
}

#[tokio::test]
async fn clients_of_a_user_are_admitted_and_are_never_a_part_of_llamero() {
    let (_, ours) = new_authority(DAY);
    let (theirs_pems, theirs) = new_authority(DAY);
    let (_, foreign) = new_authority(DAY);
    let (_serving, credentials) = put(&ours, &worker("g-0-0"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bundle.pem");
    let address = load(credentials, file.clone()).await;
    let now = SystemTime::now();
    // They believe the leader's authority, and show a certificate that says that they are the operator.
    let by = |authority: &Authority| Material {
        roots: material(&ours, &operator(), now).roots,
        ..material(authority, &operator(), now)
    };
    let there = || Expected::Pod(worker("g-0-0"));

    // Without roots of clients only parts of Llamero get in; the same where they are garbage.
    watch_load(address, &by(&ours)).await.unwrap();
    watch_load(address, &by(&theirs)).await.unwrap_err();
    std::fs::write(&file, "no certificates").unwrap();
    watch_load(address, &by(&ours)).await.unwrap();

    std::fs::write(&file, &theirs_pems.roots).unwrap();
    tokio::time::timeout(DEADLINE, async {
        while watch_load(address, &by(&theirs)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .expect("a client is admitted once its authority is in the file");
    let status = call(address, &by(&theirs), there()).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    assert!(status.message().starts_with("the client "), "{status}");
    call(address, &by(&ours), there()).await.unwrap();
    watch_load(address, &by(&foreign)).await.unwrap_err();
    let expired = Material {
        roots: by(&ours).roots,
        ..material(&theirs, &operator(), now - 2 * DAY)
    };
    watch_load(address, &expired).await.unwrap_err();

    // Garbage takes nothing away, and an empty bundle does, as does none.
    for gone in [Some(""), None] {
        std::fs::write(&file, &theirs_pems.roots).unwrap();
        until(async || watch_load(address, &by(&theirs)).await.is_ok()).await;
        match gone {
            Some(text) => std::fs::write(&file, text).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
        until(async || watch_load(address, &by(&theirs)).await.is_err()).await;
        watch_load(address, &by(&ours)).await.unwrap();
    }
}

/// A user's program, which believes the leader's authority.
fn client_config(ours: &Authority, certificate: &CertificateDer<'_>, key: &KeyPair) -> Arc<ClientConfig> {
    let roots = Arc::new(authority::store(ours.roots()).unwrap());
    let verifier = ServerIdentity::new(roots, Expected::Pod(worker("g-0-0")));
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(
            vec![certificate.clone().into_owned()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

async fn until(holds: impl AsyncFn() -> bool) {
    tokio::time::timeout(DEADLINE, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .expect("it does not come to hold");
}

#[tokio::test]
async fn clients_may_have_certificates_of_the_root_that_signs_for_llamero() {
    let (pems, ours) = new_authority(DAY);
    let (_serving, credentials) = put(&ours, &worker("g-0-0"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bundle.pem");
    std::fs::write(&file, &pems.roots).unwrap();
    let address = load(credentials, file).await;
    // A web server's certificate of a company's authority, and one of another installation.
    let issuer_key = KeyPair::from_pem(&pems.key).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_der(&ours.roots()[0], issuer_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["app.example".to_owned()]).unwrap();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let config = client_config(&ours, certificate.der(), &key);
    let channel = || llamero_identity::connect::anonymous(&endpoint(address), Arc::clone(&config));
    TelemetryClient::new(channel())
        .watch(LoadRequest { interval_millis: 100 })
        .await
        .unwrap();
    let status = watch_demand(channel()).await.unwrap_err();
    assert!(status.message().starts_with("the client "), "{status}");
}

#[tokio::test]
async fn an_older_tls_is_refused() {
    let (_, ours) = new_authority(DAY);
    let (_serving, credentials) = put(&ours, &gateway());
    let address = demand(credentials).await;
    let connect = async |version: &'static SupportedProtocolVersion| {
        let roots = Arc::new(authority::store(ours.roots()).unwrap());
        let expected = Expected::Gateway {
            trust_domain: "cluster.local".into(),
            namespace: "system".into(),
        };
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ServerIdentity::new(roots, expected)))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(address).await.unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        connector
            .connect("llamero".try_into().unwrap(), stream)
            .await
            .map(drop)
    };
    connect(&TLS13).await.unwrap();
    let refused = connect(&TLS12).await.unwrap_err().to_string();
    assert!(refused.contains("ProtocolVersion"), "{refused}");
}

#[tokio::test]
async fn a_server_must_be_who_is_meant() {
    let (_, ours) = new_authority(DAY);
    let (_, foreign) = new_authority(DAY);
    let now = SystemTime::now();
    let own = material(&ours, &operator(), now);
    let (_serving, credentials) = put(&ours, &gateway());
    let address = demand(credentials).await;
    let any = Expected::Gateway {
        trust_domain: "cluster.local".into(),
        namespace: "system".into(),
    };
    call(address, &own, any.clone()).await.unwrap();
    for expected in [
        Expected::Pod(worker("g-0-0")),
        Expected::Pod(identity("system", Role::Gateway, "gateway-1")),
        Expected::Operator {
            trust_domain: "cluster.local".into(),
            namespace: "system".into(),
        },
    ] {
        assert!(call(address, &own, expected.clone()).await.is_err(), "{expected}");
    }
    let (_impostor, credentials) = put(&foreign, &gateway());
    assert!(
        call(demand(credentials).await, &own, any.clone()).await.is_err(),
        "a foreign authority"
    );
    let (late, credentials) = pair();
    late.put(Current::new(&material(&ours, &gateway(), now - 2 * DAY)).unwrap());
    assert!(
        call(demand(credentials).await, &own, any).await.is_err(),
        "an expired certificate"
    );
}

/// Tokens and the pods behind them.
struct Book {
    pods: BTreeMap<String, Identity>,
    away: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
}

impl Registrar for Book {
    async fn identify(&self, token: &str) -> Result<Identity, NotKnown> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.away.load(Ordering::SeqCst) {
            return Err(NotKnown::NotNow("away".into()));
        }
        if token == "stranger" {
            return Err(NotKnown::Stranger("no member".into()));
        }
        self.pods
            .get(token)
            .cloned()
            .ok_or_else(|| NotKnown::Token("unknown".into()))
    }
}

struct Office {
    address: SocketAddr,
    roots: String,
    away: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    authority: Arc<Authority>,
    _own: Publisher,
    _authorities: watch::Sender<Option<Arc<Authority>>>,
    folder: PathBuf,
}

impl Office {
    async fn open(life: Duration, name: &str) -> Self {
        let (pems, authority) = new_authority(life);
        let long = Authority::open(&pems, DAY, SystemTime::now()).unwrap();
        let (own, credentials) = put(&long, &operator());
        let (authorities, following) = watch::channel(Some(Arc::clone(&authority)));
        let (away, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let book = Book {
            pods: [
                ("of-worker".to_owned(), worker("g-0-0")),
                ("of-gateway".to_owned(), gateway()),
            ]
            .into(),
            away: Arc::clone(&away),
            asked: Arc::clone(&asked),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = accept::tls(listener, credentials, Clients::Anybody);
        let routes = guarded(Routes::new(Service::new(book, following).server()), known());
        tokio::spawn(Server::builder().add_routes(routes).serve_with_incoming(incoming));
        let folder = std::env::temp_dir().join(format!("llamero-identity-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Self {
            address,
            roots: pems.roots,
            away,
            asked,
            authority,
            _own: own,
            _authorities: authorities,
            folder,
        }
    }

    fn enrolment(&self, token: &str) -> Enrolment {
        let token_file = self.folder.join(format!("token-{}", token.len()));
        std::fs::write(&token_file, token).unwrap();
        Enrolment {
            address: self.address.to_string(),
            installation: "system".into(),
            roots: Roots::Pem(self.roots.clone()),
            token_file,
            trust_domain: "cluster.local".into(),
        }
    }
}

impl Drop for Office {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[tokio::test]
async fn pods_enrol_as_who_their_token_says() {
    let office = Office::open(DAY, "enrol").await;
    let enrolled = office.enrolment("of-worker").enrol(None).await.unwrap();
    let current = Current::new(&enrolled).unwrap();
    assert_eq!(current.identity, worker("g-0-0"));
    let half = current.renew_in(SystemTime::now());
    assert!(half <= DAY / 2 && half > DAY / 2 - DEADLINE * 2, "{half:?}");

    for (token, code) in [
        ("nobody's", Code::Unauthenticated),
        ("stranger", Code::PermissionDenied),
    ] {
        let error = office.enrolment(token).enrol(None).await.unwrap_err();
        assert_eq!(error.code(), Some(code), "{error}");
    }
    let asked = office.asked.load(Ordering::SeqCst);
    let long = "x".repeat(20 << 10);
    assert!(
        office
            .enrolment(&long)
            .enrol(None)
            .await
            .unwrap_err()
            .to_string()
            .contains("bytes")
    );
    // An impostor with another authority's certificate is not given the token.
    let (elsewhere, _) = new_authority(DAY);
    let distrusting = Enrolment {
        roots: Roots::Pem(elsewhere.roots),
        ..office.enrolment("of-worker")
    };
    assert!(distrusting.enrol(None).await.is_err());
    let other_installation = Enrolment {
        installation: "other".into(),
        ..office.enrolment("of-worker")
    };
    assert!(other_installation.enrol(None).await.is_err());
    assert_eq!(office.asked.load(Ordering::SeqCst), asked);
}

#[tokio::test]
async fn who_asks_without_end_is_refused_before_anybody_is_asked() {
    let office = Office::open(DAY, "limit").await;
    let enrolment = office.enrolment("nobody's");
    let mut last = None;
    for _ in 0..40 {
        last = enrolment.enrol(None).await.unwrap_err().code();
        if last == Some(Code::ResourceExhausted) {
            break;
        }
    }
    assert_eq!(last, Some(Code::ResourceExhausted));
    assert!(office.asked.load(Ordering::SeqCst) < 40);
}

#[tokio::test]
async fn who_connects_and_says_nothing_keeps_nobody_from_enrolling() {
    let office = Office::open(DAY, "silent").await;
    let silent = (0..256).map(|_| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        socket.connect(office.address)
    });
    // Some are dropped at once.
    let _silent = futures::future::join_all(silent).await;
    office.enrolment("of-worker").enrol(None).await.unwrap();
}

#[tokio::test]
async fn certificates_are_renewed_under_a_running_server_and_outlast_an_operator_that_is_away() {
    // Half of it passes in two seconds.
    let office = Office::open(Duration::from_secs(4), "renew").await;
    let (publisher, mut serving) = pair();
    let address = demand(publisher.credentials()).await;
    tokio::spawn(office.enrolment("of-gateway").keep(publisher, |_, _| ()));
    let mut ends = Vec::new();
    let watching = async {
        let first = serving.first().await.unwrap();
        ends.push(first.not_after);
        while ends.len() < 3 {
            ends.push(serving.next().await.unwrap().not_after);
        }
    };
    tokio::time::timeout(DEADLINE, watching).await.unwrap();
    assert!(ends.is_sorted() && ends[0] < ends[2], "{ends:?}");

    // The operator goes: the server goes on with what it has.
    office.away.store(true, Ordering::SeqCst);
    let own = material(&office.authority, &operator(), SystemTime::now());
    let answered = call(address, &own, Expected::Pod(gateway())).await;
    // Certificates of four seconds may end on a machine that is busy; never by the operator's absence alone.
    if answered.is_err() {
        assert!(
            serving.current().unwrap().not_after <= SystemTime::now(),
            "{answered:?}"
        );
    }

    // And comes back: the next renewal succeeds.
    let before = serving.current().unwrap().not_after;
    office.away.store(false, Ordering::SeqCst);
    let renewed = async {
        while serving.current().unwrap().not_after <= before {
            serving.next().await.unwrap();
        }
    };
    tokio::time::timeout(DEADLINE, renewed).await.unwrap();
}

#[test]
fn a_signing_request_names_nobody() {
    let (_, ours) = new_authority(DAY);
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["operator.example".to_owned()]).unwrap();
    let request = params.serialize_request(&key).unwrap();
    let chain = ours
        .sign(request.der(), &worker("g-0-0"), SystemTime::now())
        .unwrap();
    let read = llamero_identity::certificate::Certificate::read(&chain[0]).unwrap();
    assert_eq!(read.identity, worker("g-0-0"));
    let (_, parsed) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
    let names = parsed.subject_alternative_name().unwrap().unwrap();
    assert!(!parsed.is_ca() && names.value.general_names.len() == 1);

    let mut broken = request.der().to_vec();
    *broken.last_mut().unwrap() ^= 1;
    assert!(
        ours.sign(&broken, &worker("g-0-0"), SystemTime::now()).is_err(),
        "not signed by its key"
    );
    assert!(
        ours.sign(&[0; 100_000], &worker("g-0-0"), SystemTime::now())
            .is_err()
    );
}

#[test]
fn an_authority_that_cannot_sign_is_refused_with_a_way_out() {
    let now = SystemTime::now();
    let (pems, _) = new_authority(DAY);
    let refused = |pems: Pems, part: &str| {
        let error = Authority::open(&pems, DAY, now).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    let (others, _) = new_authority(DAY);
    refused(
        Pems {
            key: others.key,
            ..pems.clone()
        },
        "another key",
    );
    refused(
        Pems {
            key: "-----BEGIN".into(),
            ..pems.clone()
        },
        "PKCS8",
    );
    refused(
        Pems {
            roots: String::new(),
            ..pems.clone()
        },
        "ca.crt",
    );
    let expired = authority::generate(now - 11 * 365 * DAY).unwrap();
    refused(expired, "not valid any more");
    refused(authority::generate(now + DAY).unwrap(), "does not count yet");
    let (elsewhere, _) = new_authority(DAY);
    refused(
        Pems {
            roots: elsewhere.roots,
            ..pems.clone()
        },
        "lead to none of the roots of ca.crt",
    );
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::default().self_signed(&key).unwrap().pem();
    let nobody = Pems {
        key: key.serialize_pem(),
        roots: certificate.clone(),
        certificate,
    };
    refused(nobody, "no authority");
}
