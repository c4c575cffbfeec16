//! The gRPC service for other gateways.

use std::sync::Arc;

use llamero_proto::v1::quota_server::Quota;
use llamero_proto::v1::{AdmitReply, AdmitRequest, SettleReply, SettleRequest};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use crate::Gateway;
use crate::keys::Limits;

/// Answers for the keys whose books are here, and for any other while gateways do not agree yet.
#[derive(Debug)]
pub struct QuotaService {
    gateway: Arc<Gateway>,
}

impl QuotaService {
    /// For the books of this gateway.
    #[must_use]
    pub fn new(gateway: Arc<Gateway>) -> Self {
        Self { gateway }
    }

    /// The limits as this gateway knows them. A key that it has not heard of yet is decided where the request came.
    fn limits(&self, key: &str) -> Result<Limits, Status> {
        let keys = self.gateway.settings.keys.as_ref();
        let key = keys.and_then(|keys| keys.named(key));
        let unknown = || Status::not_found("this gateway has no API key of that name yet");
        Ok(key.ok_or_else(unknown)?.limits)
    }
}

#[tonic::async_trait]
impl Quota for QuotaService {
    async fn admit(&self, request: Request<AdmitRequest>) -> Result<Response<AdmitReply>, Status> {
        let ask = request.into_inner();
        let limits = self.limits(&ask.key)?;
        let reply = self.gateway.quotas.ledger.admit(&ask, &limits, Instant::now());
        Ok(Response::new(reply))
    }

    async fn settle(&self, request: Request<SettleRequest>) -> Result<Response<SettleReply>, Status> {
        let SettleRequest { key, tokens, running } = request.into_inner();
        let limits = self.limits(&key)?;
        let running = running.unwrap_or_default();
        let ledger = &self.gateway.quotas.ledger;
        ledger.settle(&key, &limits, tokens, running, Instant::now());
        Ok(Response::new(SettleReply {}))
    }
}
