//! What the gRPC servers of supervisor and rank have in common.

use std::time::Duration;

use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use llamero_proto::{LLAMERO_DESCRIPTORS, VLLM_DESCRIPTORS};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::service::Routes;
use tonic::{Code, Status};
use tonic_reflection::server::{Builder, Error};

/// RESOURCE_EXHAUSTED; `retry-after-ms` says when the client may come again.
#[must_use]
pub fn exhausted(message: impl Into<String>, retry_after: Duration) -> Status {
    let millis = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
    let mut metadata = MetadataMap::new();
    metadata.insert("retry-after-ms", MetadataValue::from(millis));
    Status::with_metadata(Code::ResourceExhausted, message, metadata)
}

/// Reflection v1 and v1alpha of the named services.
///
/// # Errors
/// Only if the descriptors in this program are broken.
pub fn reflection(services: &[&str]) -> Result<Routes, Error> {
    let build = || {
        let mut builder = Builder::configure()
            .register_encoded_file_descriptor_set(LLAMERO_DESCRIPTORS)
            .register_encoded_file_descriptor_set(VLLM_DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
        for service in services {
            builder = builder.with_service_name(*service);
        }
        builder
    };
    Ok(Routes::new(build().build_v1()?).add_service(build().build_v1alpha()?))
}

/// Gives calls of services and methods that are not here a sentence; without it they get a bare code.
#[must_use]
pub fn with_fallback(routes: Routes) -> Routes {
    Routes::from(routes.into_axum_router().layer(from_fn(explain_unimplemented)))
}

async fn explain_unimplemented(request: Request, next: Next) -> Response {
    let method = request.uri().path().trim_start_matches('/').to_owned();
    let response = next.run(request).await;
    let unimplemented = i32::from(Code::Unimplemented).to_string();
    let headers = response.headers();
    let bare = headers
        .get(Status::GRPC_STATUS)
        .is_some_and(|code| code.as_bytes() == unimplemented.as_bytes())
        && !headers.contains_key(Status::GRPC_MESSAGE);
    if bare {
        let sentence = format!("{method} is not served here; gRPC reflection lists what is");
        return Status::unimplemented(sentence).into_http();
    }
    response
}
