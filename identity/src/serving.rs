//! How a gRPC server takes connections: in plain text from everybody, or over TLS from whom the table names.

use tokio::net::TcpListener;
use tonic::service::Routes;

use crate::accept::{self, Incoming};
use crate::admitted::Admitted;
use crate::credentials::{Clients, Credentials};
use crate::guard::guarded;

/// How connections are taken.
#[derive(Debug, Clone, Default)]
pub struct Serving(Option<Mutual>);

#[derive(Debug, Clone)]
struct Mutual {
    credentials: Credentials,
    installation: String,
    admitted: Option<Admitted>,
}

impl Serving {
    /// In plain text, from everybody.
    #[must_use]
    pub const fn plain() -> Self {
        Self(None)
    }

    /// With certificates on both sides; operator and gateways are those of the namespace `installation`.
    #[must_use]
    pub const fn mutual(credentials: Credentials, installation: String) -> Self {
        Self(Some(Mutual {
            credentials,
            installation,
            admitted: None,
        }))
    }

    /// The same, for clients too that the user admits. Nothing of it holds in plain text.
    #[must_use]
    pub fn admitting(mut self, admitted: Option<Admitted>) -> Self {
        if let Some(mutual) = &mut self.0 {
            mutual.admitted = admitted;
        }
        self
    }

    /// Whether callers show certificates.
    #[must_use]
    pub const fn is_mutual(&self) -> bool {
        self.0.is_some()
    }

    /// Connections of a listening socket.
    #[must_use]
    pub fn incoming(&self, listener: TcpListener) -> Incoming {
        match &self.0 {
            None => accept::plain(listener),
            Some(mutual) => {
                let clients = mutual.admitted.clone();
                let clients = clients.map_or(Clients::WithCertificate, Clients::Admitted);
                accept::tls(listener, mutual.credentials.clone(), clients)
            }
        }
    }

    /// The services, for those who may call them.
    #[must_use]
    pub fn guard(&self, routes: Routes) -> Routes {
        match &self.0 {
            None => routes,
            Some(mutual) => guarded(routes, &mutual.installation),
        }
    }
}
