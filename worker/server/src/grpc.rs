//! What the gRPC servers of supervisor and rank have in common.

use llamero_proto::{LLAMERO_DESCRIPTORS, VLLM_DESCRIPTORS};
use tonic::Status;
use tonic::service::Routes;
use tonic_reflection::server::{Builder, Error};

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

/// Answers calls to services that are not here with a sentence.
#[must_use]
pub fn with_fallback(routes: Routes) -> Routes {
    let router = routes
        .into_axum_router()
        .fallback(|request: axum::extract::Request| async move {
            let method = request.uri().path().trim_start_matches('/').to_owned();
            let sentence = format!("{method} is not served here; gRPC reflection lists what is");
            Status::unimplemented(sentence).into_http::<axum::body::Body>()
        });
    Routes::from(router)
}
