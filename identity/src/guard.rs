//! Refuses calls that the table does not allow: see [`crate::access`].

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use tonic::Status;
use tonic::service::Routes;

use crate::accept::{Peer, Who};
use crate::access::may_call;
use crate::quiet::Quiet;

/// What refuses.
#[derive(Debug, Clone)]
struct Guard {
    installation: Arc<str>,
    quiet: Arc<Quiet>,
}

/// These services for whom the table allows them; operator and gateways are those of the namespace `installation`.
#[must_use]
pub fn guarded(routes: Routes, installation: &str) -> Routes {
    let guard = Guard {
        installation: installation.into(),
        quiet: Arc::default(),
    };
    Routes::from(routes.into_axum_router().layer(from_fn_with_state(guard, check)))
}

async fn check(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let service = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    let peer = request.extensions().get::<Peer>();
    let who = peer.map_or(Who::Unknown, |peer| peer.who.clone());
    if may_call(&who, &guard.installation, service) {
        return next.run(request).await;
    }
    let address = peer.and_then(|peer| peer.address);
    if guard
        .quiet
        .may_tell(address.map(|address| address.ip()), Instant::now())
    {
        tracing::warn!(peer = %who, ?address, call = path, "refused; told at most once a minute for each address");
    }
    Status::permission_denied(format!("{who} may not call {service}")).into_http()
}
