//! Pods enrol over real sockets at an operator whose API server is a scenario.

use std::time::SystemTime;

use clap::Parser as _;
use llamero_identity::{
    authority::{self, Pems},
    credentials::Current,
    enrol::client::{EnrolError, Enrolment, Roots},
};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tonic::Code;

use super::{keeper::Held, *};
use crate::mock::{Answer, ApiServer, failure};

const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const GROUP: &str = "/apis/llamero.dev/v1alpha1/namespaces/team/llamagroups/d-0";
const GATEWAY: &str = "/api/v1/namespaces/system/pods/gateway-1";
const SECRETS: &str = "/api/v1/namespaces/system/secrets";
const SECRET: &str = "/api/v1/namespaces/system/secrets/llamero-ca";
const RECORD: &str = "/api/v1/namespaces/system/secrets/llamero-ca-state";
const GROUPS: &str = "/apis/llamero.dev/v1alpha1/llamagroups";

fn options(listen: &str) -> Options {
    let words = [
        "llamero-operator",
        "--lease-namespace=system",
        "--mtls=true",
        "--identity=operator-0",
        "--enrolment-listen",
        listen,
    ];
    Options::try_parse_from(words).unwrap()
}

fn base64(text: &str) -> Value {
    serde_json::to_value(k8s_openapi::ByteString(text.as_bytes().to_vec())).unwrap()
}

fn secret(pems: &Pems) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "llamero-ca"}, "data": {
        "tls.crt": base64(&pems.certificate), "tls.key": base64(&pems.key), "ca.crt": base64(&pems.roots)}})
}

/// What the API server says of the token of a pod.
fn review(account: &str, pod: &str, uid: &str) -> Value {
    json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {}, "status": {
        "authenticated": true, "audiences": ["llamero"], "user": {"username": format!("system:serviceaccount:{account}"),
            "extra": {"authentication.kubernetes.io/pod-name": [pod], "authentication.kubernetes.io/pod-uid": [uid]}}}})
}

fn group() -> Value {
    json!({"apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaGroup", "metadata": {"name": "d-0", "namespace": "team"},
        "spec": {"deployment": "d", "revision": "r", "generation": 2,
            "members": [{"index": 0, "attempt": 0, "podUID": "uid-0"}, {"index": 1, "attempt": 0, "podUID": "uid-1",
                "successor": {"attempt": 1, "node": "b", "placedAt": "2026-01-01T00:00:00Z", "podUID": "uid-2"}}],
            "template": {"modelName": "m", "source": {}, "maxContextLength": 1, "tensor": 2, "pipeline": 1,
                "ranksPerPod": 1, "kvBytesPerRank": 1, "weightBytesPerRank": 1, "stallTimeout": "1s"}}})
}

fn metrics() -> Metrics {
    Metrics::register(&mut Registry::default())
}

struct Installation {
    server: ApiServer,
    enrolment: Enrolment,
    identities: Identities,
    enrolling: Enrolling,
    _folder: tempfile::TempDir,
}

impl Drop for Installation {
    fn drop(&mut self) {
        self.enrolling.abort();
    }
}

impl Installation {
    async fn start(answers: Vec<Answer>) -> Self {
        let (client, server) = ApiServer::start(answers).await;
        server.keep(SECRETS);
        // A port that is free now; it is asked for by number.
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let options = options(&free.to_string());
        let (identities, enrolling) = start(
            &client,
            (&options, Scope::Cluster),
            &Leadership::held_for_tests(),
            (&Health::default(), &metrics()),
        )
        .unwrap();
        let mut identities = identities.unwrap();
        identities.authority.wait_for(Option::is_some).await.unwrap();
        identities.dialler.credentials.first().await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let token_file = folder.path().join("token");
        std::fs::write(&token_file, "a.token.of-a-pod\n").unwrap();
        let roots = identities
            .authority
            .borrow()
            .as_ref()
            .unwrap()
            .roots_pem()
            .to_owned();
        let enrolment = Enrolment {
            address: free.to_string(),
            installation: "system".into(),
            roots: Roots::Pem(roots),
            token_file,
            trust_domain: "cluster.local".into(),
        };
        Self {
            server,
            enrolment,
            identities,
            enrolling,
            _folder: folder,
        }
    }

    async fn enrol(&self) -> Result<Identity, EnrolError> {
        let material = self.enrolment.enrol(None).await?;
        Ok(Current::new(&material)?.identity)
    }
}

fn reviewed(account: &str, pod: &str, uid: &str) -> Answer {
    ("POST", REVIEWS, 201, review(account, pod, uid))
}

#[tokio::test]
async fn a_member_enrols_and_nobody_else_does() {
    let pems = authority::generate(SystemTime::now()).unwrap();
    let not_for_us = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {}, "status": {
        "authenticated": false, "error": "token audiences [\"api\"] is invalid for the target audiences [\"llamero\"]"}});
    let other_audience = {
        let mut answer = review("team:default", "d-0-0-0", "uid-0");
        answer["status"]["audiences"] = json!(["api"]);
        answer
    };
    let unbound = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {}, "status": {
        "authenticated": true, "audiences": ["llamero"], "user": {"username": "system:serviceaccount:team:default"}}});
    let answers = vec![
        ("GET", SECRET, 200, secret(&pems)),
        reviewed("team:default", "d-0-0-0", "uid-0"),
        ("GET", GROUP, 200, group()),
        reviewed("team:default", "d-0-1-1", "uid-2"),
        ("GET", GROUP, 200, group()),
        // Another pod's token: its name is a member's, its UID is not; or both are members', not of one pod.
        reviewed("team:default", "d-0-0-0", "uid-9"),
        ("GET", GROUP, 200, group()),
        reviewed("team:default", "d-0-0-0", "uid-1"),
        ("GET", GROUP, 200, group()),
        // No member at all; the group is asked for and not there.
        reviewed("team:default", "x-0-0-0", "uid-0"),
        reviewed("team:default", "shell", "uid-0"),
        ("POST", REVIEWS, 201, not_for_us),
        ("POST", REVIEWS, 201, other_audience),
        ("POST", REVIEWS, 201, unbound),
    ];
    let installation = Installation::start(answers).await;
    let member = |pod: &str| format!("spiffe://cluster.local/ns/team/group/d-0/pod/{pod}");
    assert_eq!(installation.enrol().await.unwrap().to_string(), member("d-0-0-0"));
    assert_eq!(
        installation.enrol().await.unwrap().to_string(),
        member("d-0-1-1"),
        "a successor"
    );
    for part in ["team/d-0-0-0", "team/d-0-0-0", "team/x-0-0-0", "team/shell"] {
        let error = installation.enrol().await.unwrap_err();
        assert_eq!(error.code(), Some(Code::PermissionDenied), "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
    for _ in 0..3 {
        let error = installation.enrol().await.unwrap_err();
        assert_eq!(error.code(), Some(Code::Unauthenticated), "{error}");
    }
    let asked = installation.server.asked();
    let reviews: Vec<_> = asked.iter().filter(|asked| asked.path == REVIEWS).collect();
    assert_eq!(reviews.len(), 9);
    assert!(reviews.iter().all(|asked| {
        asked.body["spec"] == json!({"audiences": ["llamero"], "token": "a.token.of-a-pod"})
    }));
}

#[tokio::test]
async fn a_gateway_enrols_by_its_account_and_labels() {
    let pems = authority::generate(SystemTime::now()).unwrap();
    let pod = |uid: &str, app: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "gateway-1", "namespace": "system", "uid": uid,
            "labels": {"app.kubernetes.io/name": app}}})
    };
    let account = "system:llamero-gateway";
    let answers = vec![
        ("GET", SECRET, 200, secret(&pems)),
        reviewed(account, "gateway-1", "uid-0"),
        ("GET", GATEWAY, 200, pod("uid-0", "llamero-gateway")),
        reviewed(account, "gateway-1", "uid-0"),
        ("GET", GATEWAY, 200, pod("uid-0", "something-else")),
        reviewed(account, "gateway-1", "uid-0"),
        ("GET", GATEWAY, 200, pod("uid-1", "llamero-gateway")),
        // The same account's name in a tenant's namespace, and another account beside the gateways.
        reviewed("team:llamero-gateway", "gateway-1", "uid-0"),
        reviewed("system:default", "gateway-1", "uid-0"),
    ];
    let installation = Installation::start(answers).await;
    let gateway = "spiffe://cluster.local/ns/system/gateway/pod/gateway-1";
    assert_eq!(installation.enrol().await.unwrap().to_string(), gateway);
    for _ in 0..4 {
        let error = installation.enrol().await.unwrap_err();
        assert_eq!(error.code(), Some(Code::PermissionDenied), "{error}");
    }
}

#[tokio::test]
async fn the_lease_holder_makes_an_authority_in_cert_managers_layout() {
    let answers = vec![
        (
            "POST",
            REVIEWS,
            500,
            failure(500, "InternalError", "etcd is away"),
        ),
        reviewed("team:default", "d-0-0-0", "uid-0"),
        ("GET", GROUP, 200, group()),
    ];
    let installation = Installation::start(answers).await;
    let error = installation.enrol().await.unwrap_err();
    assert_eq!(error.code(), Some(Code::Unavailable), "{error}");
    installation.enrol().await.unwrap();
    let made = installation.server.get(SECRET).unwrap();
    let mut entries: Vec<_> = made["data"].as_object().unwrap().keys().cloned().collect();
    entries.sort();
    assert_eq!(
        (entries, &made["type"]),
        (
            ["ca.crt", "tls.crt", "tls.key"].map(str::to_owned).into(),
            &json!("kubernetes.io/tls")
        )
    );
    let own = installation.identities.dialler.credentials.current().unwrap();
    assert_eq!(
        own.identity.to_string(),
        "spiffe://cluster.local/ns/system/operator/pod/operator-0"
    );
}

/// A replica that has just started.
struct Replica {
    keeper: Keeper,
    authority: watch::Receiver<Option<Arc<Authority>>>,
    credentials: llamero_identity::credentials::Credentials,
    held: Option<Held>,
    unenrollable: watch::Receiver<Option<String>>,
}

const DAY: Duration = Duration::from_secs(86_400);

fn replica(client: &Client, leadership: Leadership) -> Replica {
    let (authorities, authority) = watch::channel(None);
    let (publisher, credentials) = pair();
    let (why, unenrollable) = watch::channel(None);
    let keeper = Keeper {
        watched: Watched {
            unenrollable: why,
            health: Health::default(),
            metrics: metrics(),
            events: Events::start(client.clone(), "operator-0".to_owned()),
        },
        secrets: Secrets {
            client: client.clone(),
            namespace: "system".into(),
            authority: "llamero-ca".into(),
            record: "llamero-ca-state".into(),
            served: Scope::Cluster,
        },
        life: DAY,
        leadership,
        identity: own_identity(&options("127.0.0.1:0")),
        authorities,
        publisher,
    };
    let held = None;
    Replica {
        keeper,
        authority,
        credentials,
        held,
        unenrollable,
    }
}

impl Replica {
    async fn look(&mut self) -> Result<(), String> {
        let looked = self.keeper.look(&mut self.held).await;
        self.keeper.tell(looked.as_ref().err());
        looked.map_err(|error| error.to_string())
    }

    /// `ca.crt` of the authority that signs.
    fn roots(&self) -> Option<String> {
        let authority = self.authority.borrow();
        authority.as_ref().map(|one| one.roots_pem().to_owned())
    }
}

async fn api(answers: Vec<Answer>) -> (Client, ApiServer) {
    let (client, server) = ApiServer::start(answers).await;
    server.keep(SECRETS);
    (client, server)
}

fn leader(client: &Client) -> Replica {
    replica(client, Leadership::held_for_tests())
}

fn standby(client: &Client) -> Replica {
    replica(client, Leadership::not_held_for_tests())
}

fn two() -> [Pems; 2] {
    [(); 2].map(|()| authority::generate(SystemTime::now()).unwrap())
}

#[tokio::test]
async fn a_clock_that_was_days_ahead_leaves_no_certificate_behind() {
    let pems = authority::generate(SystemTime::now()).unwrap();
    let (client, server) = api(vec![]).await;
    server.put(SECRET, secret(&pems));
    let mut replica = leader(&client);
    replica.look().await.unwrap();
    let now = SystemTime::now();
    let own = |replica: &Replica| replica.credentials.current().unwrap();
    replica.keeper.renew(&mut replica.held, now + 3 * DAY).unwrap();
    assert!(!own(&replica).counts(now) && own(&replica).counts(now + 3 * DAY));
    replica.keeper.tell(None);
    assert_eq!(replica.keeper.watched.metrics.enrollable.get(), 0);
    replica.keeper.renew(&mut replica.held, now).unwrap();
    assert!(own(&replica).counts(now));
    replica.keeper.tell(None);
    assert_eq!(replica.keeper.watched.metrics.enrollable.get(), 1);
}

#[tokio::test]
async fn a_replica_that_does_not_lead_makes_none_and_takes_what_is_there() {
    let (client, server) = api(Vec::new()).await;
    let mut standby = standby(&client);
    let error = standby.look().await.unwrap_err();
    assert!(error.contains("the lease holder makes it"), "{error}");
    assert_eq!((server.get(SECRET), server.get(RECORD)), (None, None));

    leader(&client).look().await.unwrap();
    standby.look().await.unwrap();
    assert!(standby.credentials.current().is_some());
}

#[tokio::test]
async fn an_authority_that_is_overwritten_is_not_taken_up_by_a_restart_or_another_replica() {
    let [old, new] = two();
    let (client, server) = api(Vec::new()).await;
    server.put(SECRET, secret(&old));
    leader(&client).look().await.unwrap();
    server.put(SECRET, secret(&new));
    let mut restarted = leader(&client);
    let error = restarted.look().await.unwrap_err();
    assert!(
        error.contains("holds another authority") && error.contains("delete the Secret"),
        "{error}"
    );
    assert_eq!(restarted.roots(), Some(old.roots.clone()));
    let mut other = standby(&client);
    other.look().await.unwrap();
    assert_eq!(other.roots(), Some(old.roots.clone()));

    // As the message says: the one from before comes back, and both roots spread.
    server.delete(SECRET);
    restarted.look().await.unwrap();
    assert_eq!(server.get(SECRET).unwrap()["data"], secret(&old)["data"]);
    let both = Pems {
        roots: format!("{}{}", old.roots, new.roots),
        ..old.clone()
    };
    server.put(SECRET, secret(&both));
    restarted.look().await.unwrap();
    other.look().await.unwrap();
    assert_eq!(
        other.roots(),
        Some(both.roots.clone()),
        "replicas follow the record"
    );
    let early = Pems {
        roots: both.roots.clone(),
        ..new.clone()
    };
    server.put(SECRET, secret(&early));
    let error = leader(&client).look().await.unwrap_err();
    assert!(error.contains("is known to all pods in"), "{error}");
}

#[tokio::test]
async fn an_authority_that_is_deleted_comes_back_and_is_never_replaced_by_itself() {
    let (client, server) = api(Vec::new()).await;
    leader(&client).look().await.unwrap();
    let made = server.get(SECRET).unwrap();
    server.delete(SECRET);
    let mut restarted = leader(&client);
    restarted.look().await.unwrap();
    assert_eq!(server.get(SECRET).unwrap()["data"], made["data"]);
    // The record alone: it is written again by whoever holds it in memory.
    server.delete(RECORD);
    restarted.look().await.unwrap();
    assert!(server.get(RECORD).is_some());
}

#[tokio::test]
async fn where_both_secrets_are_gone_and_pods_have_certificates_none_is_made() {
    let mut group = group();
    group["spec"]["template"]["transport"] = json!("Mutual");
    let list = json!({"apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaGroupList", "metadata": {}, "items": [group]});
    let (client, server) = api(vec![("GET", GROUPS, 200, list)]).await;
    let error = leader(&client).look().await.unwrap_err();
    assert!(
        error.contains("team/d-0") && error.contains("from a backup"),
        "{error}"
    );
    assert_eq!(server.get(SECRET), None);
}

#[tokio::test]
async fn another_trust_domain_is_refused() {
    let (client, _server) = api(Vec::new()).await;
    leader(&client).look().await.unwrap();
    let mut renamed = leader(&client);
    renamed.keeper.identity.trust_domain = "elsewhere".into();
    let error = renamed.look().await.unwrap_err();
    assert!(
        error.contains("set security.trustDomain back to cluster.local"),
        "{error}"
    );
    assert!(renamed.credentials.current().is_none());
}

#[tokio::test]
async fn a_longer_life_is_recorded_before_certificates_have_it() {
    let (client, _server) = api(Vec::new()).await;
    leader(&client).look().await.unwrap();
    let (mut longer, mut leading) = (standby(&client), leader(&client));
    (longer.keeper.life, leading.keeper.life) = (DAY * 7, DAY * 7);
    longer.look().await.unwrap();
    let life = |replica: &Replica| replica.authority.borrow().as_ref().unwrap().life();
    assert_eq!(life(&longer), DAY);
    leading.look().await.unwrap();
    longer.look().await.unwrap();
    assert_eq!((life(&leading), life(&longer)), (DAY * 7, DAY * 7));
}

#[tokio::test]
async fn one_that_cannot_be_used_is_not_taken_up() {
    let [old, new] = two();
    let (client, server) = api(Vec::new()).await;
    server.put(SECRET, secret(&old));
    let mut leader = leader(&client);
    leader.look().await.unwrap();
    let astray = Pems {
        roots: new.roots,
        ..old.clone()
    };
    server.put(SECRET, secret(&astray));
    let error = leader.look().await.unwrap_err();
    assert!(error.contains("lead to none of the roots of ca.crt"), "{error}");
    assert_eq!(leader.roots(), Some(old.roots));
}

const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/system/events";

#[tokio::test]
async fn an_authority_that_cannot_be_used_is_told_everywhere_and_ends_nothing_that_is_in_use() {
    let [old, new] = two();
    let event = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"}, "eventTime": null});
    let (client, server) = api(vec![("POST", EVENTS, 201, event)]).await;
    let broken = Pems {
        key: "-----BEGIN".into(),
        ..old.clone()
    };
    server.put(SECRET, secret(&broken));
    let mut replica = leader(&client);
    replica.look().await.unwrap_err();
    let why = replica.unenrollable.borrow().clone().unwrap();
    assert!(why.contains("system/llamero-ca cannot be used"), "{why}");
    let Watched { metrics, .. } = &replica.keeper.watched;
    assert_eq!((metrics.enrollable.get(), metrics.certificate_end.get()), (0, 0));
    tokio::time::timeout(Duration::from_secs(60), async {
        while !server.asked().iter().any(|asked| asked.path == EVENTS) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("an Event");

    server.put(SECRET, secret(&old));
    replica.look().await.unwrap();
    assert_eq!(*replica.unenrollable.borrow(), None);
    assert_eq!(replica.keeper.watched.metrics.enrollable.get(), 1);
    // One that may not take its place leaves the one in use.
    server.put(SECRET, secret(&new));
    replica.look().await.unwrap_err();
    assert_eq!(*replica.unenrollable.borrow(), None);
    assert!(replica.keeper.watched.metrics.authority_end.get() > 0);
}

#[tokio::test]
async fn gateways_of_another_namespace_are_refused_at_the_start() {
    let (client, _server) = api(Vec::new()).await;
    let options = Options {
        gateway_namespace: Some("elsewhere".to_owned()),
        ..options("127.0.0.1:0")
    };
    let leadership = Leadership::held_for_tests();
    let served = (&options, Scope::Cluster);
    let started = start(&client, served, &leadership, (&Health::default(), &metrics()));
    let error = started.err().unwrap().to_string();
    assert!(
        error.contains("elsewhere") && error.contains("leave --gateway-namespace out"),
        "{error}"
    );
}
