//! Refuses calls that the table does not allow: see [`crate::access`].

use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use tonic::Status;
use tonic::service::Routes;

use crate::accept::Peer;
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
    let identity = peer.and_then(|peer| peer.identity.as_deref());
    if may_call(identity, &installation, service) {
        return next.run(request).await;
    }
    let who = identity.map_or_else(|| "who shows no certificate".to_owned(), ToString::to_string);
    tracing::warn!(peer = who, call = path, "refused");
    Status::permission_denied(format!("{who} may not call {service}")).into_http()
}
