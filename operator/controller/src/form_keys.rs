//! The keys by which ranks of a group know each other.
//!
//! Every generation of every group has its own: HMAC-SHA256 of the group's UID and the generation, under a master key. So nothing has to be
//! kept for a group, an operator that was restarted pushes the same key again, and no key stands in a user's namespace. The master key is
//! 32 random bytes in a Secret of the operator's own namespace; who removes it must restart the operator, and groups take the new keys as
//! they form again.

use std::{collections::BTreeMap, time::Duration};

use hmac::{Hmac, Mac as _};
use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Api, Client, api::PostParams};
use llamero_api::labels;
use sha2::Sha256;
use tracing::{info, warn};

/// Key of the Secret's data.
const ENTRY: &str = "master-key";
/// Pause before the Secret is asked for again.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(10);
/// No request may take longer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Derives the key of every generation.
#[derive(Clone)]
pub struct FormKeys([u8; 32]);

impl std::fmt::Debug for FormKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FormKeys(..)")
    }
}

/// Why there is no master key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The API server said no, or could not be reached.
    #[error("the Secret {0} with the master key cannot be read or made: {1}")]
    Api(String, #[source] kube::Error),
    /// No answer in time.
    #[error("the API server did not answer in time about the Secret {0}")]
    TimedOut(String),
    /// The Secret has no 32 bytes under its entry.
    #[error("the Secret {0} must hold 32 bytes under {ENTRY}: delete it, and the operator makes a new one")]
    Malformed(String),
    /// The system gives no random bytes.
    #[error("the system gives no random bytes: {0}")]
    Random(getrandom::Error),
}

impl FormKeys {
    /// From a master key.
    #[must_use]
    pub const fn new(master: [u8; 32]) -> Self {
        Self(master)
    }

    /// From the Secret, which is made when it is not there. Tries until it succeeds; a Secret that cannot be used is told in the log.
    pub async fn load(client: &Client, namespace: &str, name: &str) -> Self {
        let mut pause = FIRST_RETRY;
        loop {
            match Self::try_load(client, namespace, name).await {
                Ok(keys) => return keys,
                Err(error) => warn!(%error, "trying again"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_RETRY);
        }
    }

    async fn try_load(client: &Client, namespace: &str, name: &str) -> Result<Self, KeyError> {
        let shown = format!("{namespace}/{name}");
        let api = Api::<Secret>::namespaced(client.clone(), namespace);
        if let Some(found) = within(&shown, api.get_opt(name)).await? {
            return Self::read(&found, &shown);
        }
        let mut master = [0; 32];
        getrandom::fill(&mut master).map_err(KeyError::Random)?;
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                labels: Some(own_labels()),
                ..ObjectMeta::default()
            },
            data: Some([(ENTRY.to_owned(), ByteString(master.to_vec()))].into()),
            ..Secret::default()
        };
        match within(&shown, api.create(&PostParams::default(), &secret)).await {
            Ok(_) => {
                info!(secret = shown, "made the master key of the groups' keys");
                Ok(Self(master))
            }
            // Another operator was faster: its key counts.
            Err(KeyError::Api(_, kube::Error::Api(status))) if status.is_already_exists() => {
                Self::read(&within(&shown, api.get(name)).await?, &shown)
            }
            Err(error) => Err(error),
        }
    }

    fn read(secret: &Secret, shown: &str) -> Result<Self, KeyError> {
        let entry = secret.data.as_ref().and_then(|data| data.get(ENTRY));
        entry
            .and_then(|bytes| bytes.0.as_slice().try_into().ok())
            .map(Self)
            .ok_or_else(|| KeyError::Malformed(shown.to_owned()))
    }

    /// The key of a group's generation.
    #[must_use]
    pub fn of_generation(&self, group_uid: &str, generation: i64) -> [u8; 32] {
        let mut mac = keyed(&self.0);
        mac.update(b"llamero.v1 form\0");
        mac.update(group_uid.as_bytes());
        // A UID contains no zero byte, so no two pairs of UID and generation give the same input.
        mac.update(b"\0");
        mac.update(&generation.to_be_bytes());
        mac.finalize().into_bytes().into()
    }
}

fn keyed(key: &[u8; 32]) -> Hmac<Sha256> {
    // A key as long as the digest's block or shorter is only padded, as RFC 2104 says, and 32 bytes are.
    let mut block = [0u8; 64];
    block[..32].copy_from_slice(key);
    Hmac::<Sha256>::new(&block.into())
}

fn own_labels() -> BTreeMap<String, String> {
    [
        (labels::APP_MANAGED_BY, labels::FIELD_MANAGER),
        (labels::APP_PART_OF, labels::PART_OF),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

async fn within<T>(shown: &str, request: impl Future<Output = kube::Result<T>>) -> Result<T, KeyError> {
    match tokio::time::timeout(TIMEOUT, request).await {
        Ok(answer) => answer.map_err(|error| KeyError::Api(shown.to_owned(), error)),
        Err(_) => Err(KeyError::TimedOut(shown.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// RFC 4231, test case 1, whose key of 20 bytes is padded like ours.
    #[test]
    fn the_mac_is_hmac_sha256() {
        let mut key = [0; 32];
        key[..20].fill(0x0b);
        let mut mac = keyed(&key);
        mac.update(b"Hi There");
        assert_eq!(
            hex(&mac.finalize().into_bytes()),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
        );
    }

    #[test]
    fn every_generation_of_every_group_has_its_own_key_and_keeps_it() {
        let keys = FormKeys::new([7; 32]);
        let key = keys.of_generation("uid-a", 3);
        assert_eq!(FormKeys::new([7; 32]).of_generation("uid-a", 3), key);
        for other in [
            keys.of_generation("uid-a", 4),
            keys.of_generation("uid-b", 3),
            FormKeys::new([8; 32]).of_generation("uid-a", 3),
        ] {
            assert_ne!(other, key);
        }
    }

    #[test]
    fn a_secret_without_the_key_is_refused_with_a_way_out() {
        let error = FormKeys::read(&Secret::default(), "system/keys")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("system/keys must hold 32 bytes") && error.contains("delete it"),
            "{error}"
        );
    }
}
