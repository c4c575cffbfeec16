//! The certificate authority of an installation, and who is given certificates.
//!
//! | module | what |
//! |---|---|
//! | [`keeper`] | which authority signs, and this operator's own certificate |
//! | [`secret`] | the Secrets of both |
//! | [`registrar`] | which pod is behind a token, and whether it is a part of Llamero |

pub mod keeper;
pub mod registrar;
pub mod secret;
#[cfg(test)]
mod tests;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use kube::Client;
use llamero_identity::{
    Identity, Role, accept,
    access::Known,
    authority::Authority,
    credentials::{Clients, pair},
    enrol::service::Service,
    guard::guarded,
    spiffe::is_name,
};
use llamero_settings::listen::listen;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tonic::{Code, service::Routes, transport::Server};
use tracing::info;

use self::{
    keeper::{Keeper, Watched},
    registrar::Kubernetes,
    secret::Secrets,
};
use crate::{
    events::Events, health::Health, lease::Leadership, links::Dialler, metrics::Metrics, options::Options,
    watch::Scope,
};

/// Why pods cannot enrol.
#[derive(Debug, thiserror::Error)]
pub enum IdentitiesError {
    /// The address cannot be used.
    #[error(
        "cannot listen on {address} for the enrolment of pods: {error}. Choose another --enrolment-listen"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// Nobody would believe them.
    #[error(
        "gateways of the namespace {gateways} would be refused everywhere, since certificates are believed of gateways beside the operator only, in {own}: leave --gateway-namespace \
         out, or start with neither --mtls nor --certificates"
    )]
    GatewaysElsewhere {
        /// Where the gateways are.
        gateways: String,
        /// Where the operator is.
        own: String,
    },
    /// The server ended.
    #[error("pods can no longer enrol: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// What the loop needs of it.
#[derive(Clone)]
pub struct Identities {
    /// The authority, once there is one.
    pub authority: watch::Receiver<Option<Arc<Authority>>>,
    /// Why no certificates can be given out, where somebody must do something about it.
    pub unenrollable: watch::Receiver<Option<String>>,
    /// How links are authenticated.
    pub dialler: Dialler,
}

impl Identities {
    /// The authority, while it can sign.
    #[must_use]
    pub fn usable(&self) -> Option<Arc<Authority>> {
        let authority = self.authority.borrow().clone();
        authority.filter(|authority| SystemTime::now() < authority.not_after())
    }
}

/// What goes on beside the loop.
pub type Enrolling = JoinHandle<Result<(), IdentitiesError>>;

/// Starts to keep the authority and to let pods enrol, at every replica; only the lease holder makes an authority. Nothing of it happens where
/// no certificates are given out.
///
/// # Errors
/// [`IdentitiesError::Listen`], [`IdentitiesError::GatewaysElsewhere`].
pub fn start(
    client: &Client,
    (options, served): (&Options, Scope),
    leadership: &Leadership,
    (health, metrics): (&Health, &Metrics),
) -> Result<(Option<Identities>, Enrolling), IdentitiesError> {
    if !options.gives_out_certificates() {
        return Ok((None, tokio::spawn(std::future::pending())));
    }
    if options.gateway_namespace() != options.lease_namespace {
        return Err(IdentitiesError::GatewaysElsewhere {
            gateways: options.gateway_namespace().to_owned(),
            own: options.lease_namespace.clone(),
        });
    }
    let (authorities, authority) = watch::channel(None);
    let (publisher, credentials) = pair();
    let (why, unenrollable) = watch::channel(None);
    let watched = Watched {
        unenrollable: why,
        health: health.clone(),
        metrics: metrics.clone(),
        events: Events::start(client.clone(), options.identity()),
    };
    let keeper = Keeper {
        secrets: Secrets {
            client: client.clone(),
            namespace: options.lease_namespace.clone(),
            authority: options.ca_secret.clone(),
            record: format!("{}-state", options.ca_secret),
            served: served.clone(),
        },
        life: options.certificate_life,
        leadership: leadership.clone(),
        identity: own_identity(options),
        authorities,
        publisher,
        watched,
    };
    let address = options.enrolment_listen;
    let failed = |error| IdentitiesError::Listen { address, error };
    let listener = listen(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let listener = TcpListener::from_std(listener).map_err(failed)?;

    let counted = metrics.clone();
    let registrar = Kubernetes::new(client.clone(), options).serving(served);
    let service =
        Service::new(registrar, authority.clone()).counting(move |code| counted.enrolment(result(code)));
    let routes = guarded(
        Routes::new(service.server()),
        Known {
            installation: options.lease_namespace.clone(),
            ..Known::default()
        },
    );
    let incoming = accept::tls(listener, credentials.clone(), Clients::Anybody);
    info!(%address, "pods enrol here");
    let enrolling = tokio::spawn(async move {
        tokio::select! {
            served = bounded().add_routes(routes).serve_with_incoming(incoming) => Ok(served?),
            () = keeper.keep() => Ok(()),
        }
    });
    let dialler = Dialler {
        credentials,
        trust_domain: options.trust_domain.clone(),
        gateway_namespace: options.gateway_namespace().to_owned(),
    };
    let identities = Identities {
        authority,
        unenrollable,
        dialler,
    };
    Ok((Some(identities), enrolling))
}

/// How a metric calls an answer.
fn result(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Unavailable | Code::ResourceExhausted => "unavailable",
        _ => "refused",
    }
}

/// A server for questions that are short, from whoever reaches the port.
fn bounded() -> Server {
    const STREAMS: u32 = 4;
    const FRAME: u32 = 64 << 10;
    Server::builder()
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(FRAME)
        .initial_connection_window_size(FRAME)
        .timeout(Duration::from_secs(20))
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
}

fn own_identity(options: &Options) -> Identity {
    let pod = options.identity();
    Identity {
        trust_domain: options.trust_domain.clone(),
        namespace: options.lease_namespace.clone(),
        role: Role::Operator,
        // Outside of a cluster it is the name of a host.
        pod: if is_name(&pod) { pod } else { "operator".to_owned() },
    }
}
