//! How a gRPC server takes connections: in plain text from everybody, or over TLS from whom the table names.

use tokio::net::TcpListener;
use tonic::service::Routes;

use crate::accept::{self, Incoming};
use crate::credentials::{Clients, Credentials};
use crate::guard::guarded;

/// How connections are taken.
#[derive(Debug, Clone, Default)]
pub struct Serving(Option<Mutual>);

#[derive(Debug, Clone)]
struct Mutual {
    credentials: Credentials,
    installation: String,
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
        }))
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
            Some(mutual) => accept::tls(listener, mutual.credentials.clone(), Clients::WithCertificate),
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
