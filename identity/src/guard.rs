//! Refuses calls that the table does not allow: see [`crate::access`].

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use tonic::Status;
use tonic::service::Routes;

use crate::accept::{Peer, Who};
use crate::access::{Known, may_call};
use crate::quiet::Quiet;

/// What refuses.
#[derive(Debug, Clone)]
struct Guard {
    known: Arc<Known>,
    /// Whoever shows no certificate counts as a client without a name.
    is_plain: bool,
    quiet: Arc<Quiet>,
}

/// These services for whom the table allows them.
#[must_use]
pub fn guarded(routes: Routes, known: Known) -> Routes {
    guard(routes, known, false)
}

/// These services for whoever reaches them, as for clients that nobody has named.
#[must_use]
pub fn for_clients(routes: Routes) -> Routes {
    guard(routes, Known::default(), true)
}

fn guard(routes: Routes, known: Known, is_plain: bool) -> Routes {
    let guard = Guard {
        known: Arc::new(known),
        is_plain,
        quiet: Arc::default(),
    };
    Routes::from(routes.into_axum_router().layer(from_fn_with_state(guard, check)))
}

async fn check(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let path = request.uri().path().trim_start_matches('/');
    let peer = request.extensions().get::<Peer>();
    let who = peer.map_or(Who::Unknown, |peer| peer.who.clone());
    let counts_as = match &who {
        Who::Unknown if guard.is_plain => Who::Client("".into()),
        who => who.clone(),
    };
    if may_call(&counts_as, &guard.known, path) {
        return next.run(request).await;
    }
    let address = peer.and_then(|peer| peer.address);
    if guard
        .quiet
        .may_tell(address.map(|address| address.ip()), Instant::now())
    {
        tracing::warn!(peer = %who, ?address, call = path, "refused; told at most once a minute for each address");
    }
    Status::permission_denied(format!("{who} may not call {path}")).into_http()
}
