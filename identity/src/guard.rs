//! Refuses calls that the table does not allow: see [`crate::access`].

use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use tonic::Status;
use tonic::service::Routes;

use crate::accept::{Peer, Who};
use crate::access::may_call;

/// These services for whom the table allows them; operator and gateways are those of the namespace `installation`.
#[must_use]
pub fn guarded(routes: Routes, installation: &str) -> Routes {
    let state: State<String> = State(installation.to_owned());
    Routes::from(
        routes
            .into_axum_router()
            .layer(from_fn_with_state(state.0, check)),
    )
}

async fn check(State(installation): State<String>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let service = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    let peer = request.extensions().get::<Peer>();
    let who = peer.map_or(Who::Unknown, |peer| peer.who.clone());
    if may_call(&who, &installation, service) {
        return next.run(request).await;
    }
    tracing::warn!(peer = %who, call = path, "refused");
    Status::permission_denied(format!("{who} may not call {service}")).into_http()
}
