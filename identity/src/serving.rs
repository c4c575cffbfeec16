//! How a gRPC server takes connections: in plain text from everybody, or over TLS from whom the table names.

use tokio::net::TcpListener;
use tonic::service::Routes;

use crate::accept::{self, Incoming};
use crate::access::Known;
use crate::admitted::Admitted;
use crate::credentials::{Clients, Credentials};
use crate::guard::{for_clients, guarded};

/// How connections are taken.
#[derive(Debug, Clone, Default)]
pub struct Serving(How);

#[derive(Debug, Clone, Default)]
enum How {
    #[default]
    Plain,
    PlainForClients,
    Mutual(Mutual),
}

#[derive(Debug, Clone)]
struct Mutual {
    credentials: Credentials,
    known: Known,
    admitted: Option<Admitted>,
}

impl Serving {
    /// In plain text, from everybody, who may do everything.
    #[must_use]
    pub const fn plain() -> Self {
        Self(How::Plain)
    }

    /// In plain text, from everybody, who may do what clients may.
    #[must_use]
    pub const fn plain_for_clients() -> Self {
        Self(How::PlainForClients)
    }

    /// With certificates on both sides; operator and gateways are those of the namespace `installation`.
    #[must_use]
    pub const fn mutual(credentials: Credentials, installation: String) -> Self {
        let known = Known {
            installation,
            adapter_clients: Vec::new(),
        };
        Self(How::Mutual(Mutual {
            credentials,
            known,
            admitted: None,
        }))
    }

    /// The same, for clients too that the user admits, of whom those with these common names may load adapters. Nothing of it holds in plain text.
    #[must_use]
    pub fn admitting(mut self, admitted: Option<Admitted>, adapter_clients: Vec<String>) -> Self {
        if let How::Mutual(mutual) = &mut self.0 {
            mutual.admitted = admitted;
            mutual.known.adapter_clients = adapter_clients;
        }
        self
    }

    /// Whether callers show certificates.
    #[must_use]
    pub const fn is_mutual(&self) -> bool {
        matches!(self.0, How::Mutual(_))
    }

    /// Connections of a listening socket.
    #[must_use]
    pub fn incoming(&self, listener: TcpListener) -> Incoming {
        match &self.0 {
            How::Plain | How::PlainForClients => accept::plain(listener),
            How::Mutual(mutual) => {
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
            How::Plain => routes,
            How::PlainForClients => for_clients(routes),
            How::Mutual(mutual) => guarded(routes, mutual.known.clone()),
        }
    }
}
