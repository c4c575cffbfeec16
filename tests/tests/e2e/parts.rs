//! Calls to the parts of Llamero, by whom one likes: an administrator may read the authority's key and so make any certificate.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use llamero_identity::authority::{self, Authority, Pems};
use llamero_identity::certificate::Certificate;
use llamero_identity::connect::{self, Link};
use llamero_identity::credentials::{self, Current, Material, pair};
use llamero_identity::verify::Expected;
use llamero_identity::{Identity, Role, explain};
use llamero_tests::cluster::Kubectl;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// Namespace of the installation.
pub(crate) const SYSTEM: &str = "llamero-system";
/// Of all identities.
pub(crate) const TRUST_DOMAIN: &str = "cluster.local";
/// Of the certificates that tests make.
pub(crate) const DAY: Duration = Duration::from_secs(86_400);
/// A call that was let in may have no end of its own.
const PATIENCE: Duration = Duration::from_secs(20);

/// The installation's authority, and what is needed to call.
pub(crate) struct Parts {
    pub(crate) authority: Authority,
    runtime: Runtime,
}

/// Who calls.
#[derive(Clone)]
pub(crate) enum Caller {
    /// In plain text.
    Plain,
    /// Over TLS, without a certificate.
    Anonymous,
    /// Over TLS, with this certificate.
    With(Material),
}

/// A port of a pod, and whose certificate it shows.
#[derive(Clone)]
pub(crate) struct Port {
    pub(crate) address: String,
    pub(crate) expected: Expected,
}

/// What came of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The connection did not come about, and why.
    NoConnection(String),
    /// The other end answered with this status.
    Status(Code, String),
    /// It began to do what was asked.
    Done,
}

pub(crate) fn identity(namespace: &str, role: Role, pod: &str) -> Identity {
    Identity {
        trust_domain: TRUST_DOMAIN.to_owned(),
        namespace: namespace.to_owned(),
        role,
        pod: pod.to_owned(),
    }
}

pub(crate) fn operator() -> Identity {
    identity(SYSTEM, Role::Operator, "operator-e2e")
}

pub(crate) fn gateway() -> Identity {
    identity(SYSTEM, Role::Gateway, "gateway-e2e")
}

pub(crate) fn worker(namespace: &str, group: &str, pod: &str) -> Identity {
    let group = group.to_owned();
    identity(namespace, Role::Worker { group }, pod)
}

/// Who a worker pod is.
pub(crate) fn identity_of(pod: &Value) -> Result<Identity> {
    let text = |path: &str| {
        let found = pod.pointer(path).and_then(Value::as_str);
        found.with_context(|| format!("a pod has no {path}"))
    };
    let group = text("/metadata/labels/llamero.dev~1group")?;
    Ok(worker(
        text("/metadata/namespace")?,
        group,
        text("/metadata/name")?,
    ))
}

/// A port of a worker pod.
pub(crate) fn port_of(pod: &Value, port: u16) -> Result<Port> {
    let ip = pod["status"]["podIP"].as_str().context("a pod has no address")?;
    Ok(Port {
        address: format!("{ip}:{port}"),
        expected: Expected::Pod(identity_of(pod)?),
    })
}

/// The port of a gateway at which the operator and other gateways ask.
pub(crate) fn port_of_gateway(pod: &Value) -> Result<Port> {
    let (trust_domain, namespace) = (TRUST_DOMAIN.to_owned(), SYSTEM.to_owned());
    port_of_chart(
        pod,
        18053,
        Expected::Gateway {
            trust_domain,
            namespace,
        },
    )
}

/// The port of an operator at which pods enrol.
pub(crate) fn port_of_operator(pod: &Value) -> Result<Port> {
    let (trust_domain, namespace) = (TRUST_DOMAIN.to_owned(), SYSTEM.to_owned());
    port_of_chart(
        pod,
        18054,
        Expected::Operator {
            trust_domain,
            namespace,
        },
    )
}

fn port_of_chart(pod: &Value, port: u16, expected: Expected) -> Result<Port> {
    let ip = pod["status"]["podIP"].as_str().context("a pod has no address")?;
    Ok(Port {
        address: format!("{ip}:{port}"),
        expected,
    })
}

impl Parts {
    /// Of the chart's installation.
    pub(crate) fn of(kubectl: &Kubectl) -> Result<Self> {
        let entry = |name: &str| {
            let template = format!("go-template={{{{index .data {name:?} | base64decode}}}}");
            kubectl.run(&["-n", SYSTEM, "get", "secret", "llamero-ca", "-o", &template])
        };
        let pems = Pems {
            certificate: entry("tls.crt")?,
            key: entry("tls.key")?,
            roots: entry("ca.crt")?,
        };
        Ok(Self {
            authority: Authority::open(&pems, DAY, SystemTime::now())?,
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()?,
        })
    }

    /// Whoever it is, with a certificate made at `at` that lives for a day.
    pub(crate) fn made_at(&self, identity: &Identity, at: SystemTime) -> Result<Caller> {
        Ok(Caller::With(Material::signed(
            &self.authority,
            identity,
            SYSTEM,
            at,
        )?))
    }

    /// Whoever it is, with a certificate that counts.
    pub(crate) fn as_who(&self, identity: &Identity) -> Result<Caller> {
        self.made_at(identity, SystemTime::now())
    }

    /// Whoever it is, as an authority says that is not the installation's.
    pub(crate) fn by_a_foreigner(&self, identity: &Identity) -> Result<Caller> {
        let now = SystemTime::now();
        let foreign = Authority::open(&authority::generate(now)?, DAY, now)?;
        self.by(&foreign, identity)
    }

    /// Whoever it is, as that authority says.
    pub(crate) fn by(&self, foreign: &Authority, identity: &Identity) -> Result<Caller> {
        let mut material = Material::signed(foreign, identity, SYSTEM, SystemTime::now())?;
        // It believes the installation, so that only the installation decides.
        material.roots = self.authority.roots().iter().map(|root| root.to_vec()).collect();
        Ok(Caller::With(material))
    }

    /// Calls `/service/Method` with an empty message.
    pub(crate) fn call(&self, port: &Port, caller: &Caller, method: &str) -> Result<Answer> {
        // Connections are made by tasks.
        let _inside = self.runtime.enter();
        let channel = self.channel(port, caller)?;
        Ok(self.runtime.block_on(async {
            match tokio::time::timeout(PATIENCE, ask(channel, method)).await {
                Ok(Err(status)) => match explain::unreached(&status) {
                    Some(why) => Answer::NoConnection(why),
                    None => Answer::Status(status.code(), status.message().to_owned()),
                },
                Ok(Ok(())) | Err(_) => Answer::Done,
            }
        }))
    }

    fn channel(&self, port: &Port, caller: &Caller) -> Result<Channel> {
        let endpoint = Endpoint::from_shared(format!("http://{}", port.address))?.connect_timeout(PATIENCE);
        Ok(match caller {
            Caller::Plain => endpoint.connect_lazy(),
            Caller::Anonymous => {
                let roots = authority::store(self.authority.roots())?;
                connect::anonymous(&endpoint, credentials::anonymous(roots, port.expected.clone())?)
            }
            Caller::With(material) => {
                let (publisher, credentials) = pair();
                publisher.put(Current::new(material)?);
                Link::Mutual(credentials, port.expected.clone()).channel(&endpoint)
            }
        })
    }

    /// The certificate that is shown at a port to whom it answers.
    pub(crate) fn shown(&self, port: &Port) -> Result<Certificate> {
        let material = Material::signed(&self.authority, &operator(), SYSTEM, SystemTime::now())?;
        let config = Current::new(&material)?.client(port.expected.clone())?;
        self.runtime.block_on(async {
            let stream = TcpStream::connect(&port.address).await?;
            let stream = TlsConnector::from(config)
                .connect("llamero".try_into()?, stream)
                .await?;
            let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
            Ok(Certificate::read(shown.context("no certificate is shown")?)?)
        })
    }
}

/// The first answer of any method, by its path. What is not asked for does not matter.
async fn ask(channel: Channel, method: &str) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client
        .ready()
        .await
        .map_err(|error| Status::from_error(Box::new(error)))?;
    let path = method.parse().map_err(|_| Status::internal("no path"))?;
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let answer = client.server_streaming(Request::new(()), path, codec).await?;
    answer.into_inner().message().await.map(drop)
}

/// Files of certificate and key in PEM, for programs that want them so.
pub(crate) fn write_pems(caller: &Caller, folder: &std::path::Path) -> Result<[String; 2]> {
    let Caller::With(material) = caller else {
        anyhow::bail!("only who has a certificate can write it");
    };
    let pem = |label: &str, der: &[u8]| {
        format!(
            "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
            STANDARD.encode(der)
        )
    };
    let chain: String = material
        .certificates
        .iter()
        .map(|der| pem("CERTIFICATE", der))
        .collect();
    let [certificate, key] = ["tls.crt", "tls.key"].map(|name| folder.join(name));
    std::fs::write(&certificate, chain)?;
    std::fs::write(&key, pem("PRIVATE KEY", &material.key))?;
    Ok([certificate, key].map(|path| path.display().to_string()))
}
