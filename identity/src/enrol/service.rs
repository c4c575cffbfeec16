//! `llamero.v1.Enrolment`.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use llamero_proto::v1::enrolment_server::{Enrolment, EnrolmentServer};
use llamero_proto::v1::{EnrolRequest, EnrolResponse};
use tokio::sync::watch;
use tonic::{Code, Request, Response, Status};

use super::MAX_TOKEN_BYTES;
use super::limit::Limiter;
use crate::accept::Peer;
use crate::authority::{Authority, AuthorityError, MAX_REQUEST_BYTES};
use crate::quiet::Quiet;
use crate::room::Room;
use crate::spiffe::Identity;

/// Tokens that are reviewed at the same time, of one address and in all.
const MOST_AT_ONCE: (usize, usize) = (2, 16);

/// Why nobody is found behind a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotKnown {
    /// It is no token of a pod for this audience.
    #[error("the token is not accepted: {0}")]
    Token(String),
    /// The pod is no part of Llamero.
    #[error("{0}")]
    Stranger(String),
    /// Nobody can tell now.
    #[error("{0}")]
    NotNow(String),
}

impl From<NotKnown> for Status {
    fn from(error: NotKnown) -> Self {
        let text = error.to_string();
        match error {
            NotKnown::Token(_) => Self::unauthenticated(text),
            NotKnown::Stranger(_) => Self::permission_denied(text),
            NotKnown::NotNow(_) => Self::unavailable(text),
        }
    }
}

/// Knows who is behind a token.
pub trait Registrar: Send + Sync + 'static {
    /// The pod that the token is bound to, if it is a part of Llamero.
    fn identify(&self, token: &str) -> impl Future<Output = Result<Identity, NotKnown>> + Send;
}

/// The service.
pub struct Service<R> {
    registrar: R,
    authority: watch::Receiver<Option<Arc<Authority>>>,
    limiter: Mutex<Limiter>,
    room: Room,
    quiet: Quiet,
    count: Box<dyn Fn(Code) + Send + Sync>,
}

impl<R: Registrar> Service<R> {
    /// Signs with the authority that is there, for whom the registrar knows.
    #[must_use]
    pub fn new(registrar: R, authority: watch::Receiver<Option<Arc<Authority>>>) -> Self {
        Self {
            registrar,
            authority,
            limiter: Mutex::default(),
            room: Room::new(MOST_AT_ONCE.0, MOST_AT_ONCE.1),
            quiet: Quiet::default(),
            count: Box::new(|_| ()),
        }
    }

    /// The same, which tells what is answered.
    #[must_use]
    pub fn counting(self, count: impl Fn(Code) + Send + Sync + 'static) -> Self {
        let count = Box::new(count);
        Self { count, ..self }
    }

    /// As a server for tonic, with bounds on what it reads.
    #[must_use]
    pub fn server(self) -> EnrolmentServer<Self> {
        EnrolmentServer::new(self).max_decoding_message_size(MAX_REQUEST_BYTES + MAX_TOKEN_BYTES + 64)
    }

    fn admit(&self, address: Option<IpAddr>) -> Result<(), Status> {
        let Some(address) = address else { return Ok(()) };
        let mut limiter = self.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        if limiter.admit(address, Instant::now()) {
            return Ok(());
        }
        Err(Status::resource_exhausted(format!(
            "{address} asks too often; ask again later"
        )))
    }

    async fn answer(&self, address: Option<IpAddr>, request: EnrolRequest) -> Result<EnrolResponse, Status> {
        self.admit(address)?;
        let EnrolRequest {
            signing_request,
            token,
        } = request;
        if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
            return Err(Status::unauthenticated(
                "send the token of the pod's service account",
            ));
        }
        let authority = self.authority.borrow().clone();
        let authority =
            authority.ok_or_else(|| Status::unavailable("there is no authority yet; ask again"))?;
        let identity = {
            let address = address.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
            let place = self.room.enter(address);
            let _place =
                place.ok_or_else(|| Status::resource_exhausted("too many pods enrol at once; ask again"))?;
            self.registrar.identify(&token).await?
        };
        let chain = authority.sign(&signing_request, &identity, SystemTime::now());
        let chain = chain.map_err(|error| match error {
            AuthorityError::Request(_) => Status::invalid_argument(error.to_string()),
            other => Status::unavailable(other.to_string()),
        })?;
        tracing::info!(%identity, "enrolled");
        Ok(EnrolResponse {
            certificates: chain.iter().map(|one| one.to_vec()).collect(),
            roots: authority.roots().iter().map(|one| one.to_vec()).collect(),
        })
    }
}

#[tonic::async_trait]
impl<R: Registrar> Enrolment for Service<R> {
    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<EnrolResponse>, Status> {
        let peer = request.extensions().get::<Peer>();
        let address = peer.and_then(|peer| peer.address).map(|address| address.ip());
        let answer = self.answer(address, request.into_inner()).await;
        (self.count)(answer.as_ref().err().map_or(Code::Ok, Status::code));
        if let Err(status) = &answer
            && self.quiet.may_tell(address, Instant::now())
        {
            let why = status.message();
            tracing::warn!(
                ?address,
                "a pod may not enrol, which is told at most once a minute for each address: {why}"
            );
        }
        answer.map(Response::new)
    }
}
