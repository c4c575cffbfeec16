//! The store of an address. Without keys `object_store` finds the identity that the cloud gives the pod: the token of its
//! service account, or the metadata service of its node.

use std::str::FromStr;
use std::sync::Arc;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::{HttpClient, HttpConnector};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{ClientOptions, ObjectStore, RetryConfig};
use reqwest::redirect::Policy;

use super::address::{Address, Cloud};
use crate::client::{self, transport};
use crate::{Access, FetchError};

/// Redirects that are followed for one request.
const REDIRECTS: usize = 10;

/// Gives out one client, so that certificates, proxies and silences are those of the other sources.
#[derive(Debug)]
struct OneClient(reqwest::Client);

impl HttpConnector for OneClient {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.0.clone()))
    }
}

/// Host of the service, for errors.
pub(super) fn host(address: &Address, endpoint: Option<&str>) -> Result<String, FetchError> {
    let Some(endpoint) = endpoint else {
        return Ok(match address.cloud {
            Cloud::Amazon => "Amazon S3",
            Cloud::Google => "Google Cloud Storage",
            Cloud::Azure => "Azure Blob Storage",
        }
        .to_owned());
    };
    let url = client::base_url(endpoint).ok_or_else(|| FetchError::Address {
        given: endpoint.to_owned(),
        wanted: "the address of a service; write one such as https://minio.example.com:9000 in model.source.s3.endpoint",
    })?;
    Ok(client::host(&url))
}

/// The store, which has asked nobody anything yet.
pub(super) fn store(
    address: &Address,
    host: &str,
    endpoint: Option<&str>,
    region: Option<&str>,
    access: &Access,
) -> Result<Arc<dyn ObjectStore>, FetchError> {
    let no_keys = |reason: String| FetchError::NoKeys {
        host: host.to_owned(),
        reason,
        audience: access.audience,
    };
    if access.needs_keys
        && let Some(missing) = missing(address.cloud, |name| access.has(name))
    {
        return Err(no_keys(format!("the Secret has no {missing}")));
    }
    let shared = OneClient(transport(access, Policy::limited(REDIRECTS))?);
    let endpoint = endpoint.map(|endpoint| endpoint.trim_end_matches('/'));
    let (bucket, once) = (address.bucket.as_str(), once());
    let made: object_store::Result<Arc<dyn ObjectStore>> = match address.cloud {
        Cloud::Amazon => {
            let mut builder = AmazonS3Builder::new();
            for (key, value) in settings("AWS_", access) {
                builder = builder.with_config(key, value);
            }
            if let Some(endpoint) = endpoint {
                builder = builder.with_endpoint(endpoint);
            }
            if let Some(region) = region {
                builder = builder.with_region(region);
            }
            let builder = builder.with_bucket_name(bucket).with_http_connector(shared);
            builder.with_retry(once).build().map(|store| Arc::new(store) as _)
        }
        Cloud::Google => {
            let mut builder = GoogleCloudStorageBuilder::new();
            for (key, value) in settings("GOOGLE_", access) {
                builder = builder.with_config(key, value);
            }
            if let Some(endpoint) = endpoint {
                builder = builder.with_base_url(endpoint);
            }
            let builder = builder.with_bucket_name(bucket).with_http_connector(shared);
            builder.with_retry(once).build().map(|store| Arc::new(store) as _)
        }
        Cloud::Azure => {
            let mut builder = MicrosoftAzureBuilder::new();
            if let Some(account) = account(host) {
                builder = builder.with_account(account);
            }
            for (key, value) in settings("AZURE_", access) {
                builder = builder.with_config(key, value);
            }
            if let Some(endpoint) = endpoint {
                builder = builder.with_endpoint(endpoint.to_owned());
            }
            let builder = builder.with_container_name(bucket).with_http_connector(shared);
            builder.with_retry(once).build().map(|store| Arc::new(store) as _)
        }
    };
    made.map_err(|error| no_keys(super::error::reason(&error)))
}

/// The variables with that prefix which a builder knows. Those of a Secret often end with a line break.
fn settings<'a, K: FromStr + 'a>(
    prefix: &'static str,
    access: &'a Access,
) -> impl Iterator<Item = (K, &'a str)> {
    access
        .variables
        .iter()
        .filter(move |(name, _)| name.starts_with(prefix))
        .filter_map(|(name, value)| Some((name.to_ascii_lowercase().parse().ok()?, value.trim())))
}

/// Attempts are counted by whoever asks, also those that get an identity.
fn once() -> RetryConfig {
    RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    }
}

/// What of the keys of a cloud is not in the environment, though they are to be there.
fn missing(cloud: Cloud, has: impl Fn(&str) -> bool) -> Option<&'static str> {
    let (all, any): (&[&'static str], &[&str]) = match cloud {
        Cloud::Amazon => (&["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"], &[]),
        Cloud::Google => (&["GOOGLE_SERVICE_ACCOUNT_KEY"], &[]),
        Cloud::Azure => (&[], &["AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN"]),
    };
    let first = all.iter().find(|name| !has(name)).copied();
    let none_of = !any.is_empty() && !any.iter().any(|name| has(name));
    first.or_else(|| none_of.then_some("AZURE_STORAGE_ACCOUNT_KEY and no AZURE_STORAGE_SAS_TOKEN"))
}

/// The account in the host of an Azure service.
fn account(host: &str) -> Option<&str> {
    let (account, rest) = host.split_once('.')?;
    rest.starts_with("blob.").then_some(account)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_are_promised_must_be_there() {
        let of = |cloud, there: &[&str]| missing(cloud, |name| there.contains(&name));
        assert_eq!(of(Cloud::Amazon, &[]), Some("AWS_ACCESS_KEY_ID"));
        assert_eq!(
            of(Cloud::Amazon, &["AWS_ACCESS_KEY_ID"]),
            Some("AWS_SECRET_ACCESS_KEY")
        );
        assert_eq!(
            of(Cloud::Amazon, &["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]),
            None
        );
        assert_eq!(of(Cloud::Azure, &["AZURE_STORAGE_SAS_TOKEN"]), None);
        assert!(of(Cloud::Azure, &[]).is_some_and(|names| names.contains("SAS")));
        assert!(of(Cloud::Google, &[]).is_some());
    }

    #[test]
    fn each_cloud_s_store_is_made_and_what_it_lacks_is_told() {
        let made = |uri: &str, endpoint: Option<&str>| {
            let access = Access {
                audience: crate::Audience::Bucket,
                ..Access::default()
            };
            crate::Bucket::with(uri, endpoint, None, &access).map(|bucket| bucket.host().to_owned())
        };
        assert_eq!(made("s3://b/x", None).unwrap(), "Amazon S3");
        assert_eq!(made("s3://b/x", Some("http://h:9000/")).unwrap(), "h:9000");
        assert_eq!(made("gs://b/x", None).unwrap(), "Google Cloud Storage");
        let azure = "https://account.blob.core.windows.net";
        assert_eq!(
            made("az://c/x", Some(azure)).unwrap(),
            "account.blob.core.windows.net"
        );
        let error = made("az://c/x", None).unwrap_err().to_string();
        assert!(
            error.contains("Account must be specified") && error.contains("credentialsSecretRef"),
            "{error}"
        );
        let error = made("s3://b/x", Some("minio")).unwrap_err().to_string();
        assert!(error.contains("model.source.s3.endpoint"), "{error}");
    }
}
