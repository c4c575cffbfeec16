//! The two Secrets of the authority: one in cert-manager's layout, which an administrator may replace, and the record of what is in use, which only
//! operators read and the lease holder writes.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    ByteString,
    api::core::v1::{ObjectReference, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};
use llamero_api::{LlamaGroup, group::Transport, labels};
use llamero_identity::{
    authority::{AuthorityError, Pems},
    credentials::MaterialError,
    rotation::{NotYet, Record},
};

use crate::watch::Scope;

/// Key of the record's data.
const ENTRY: &str = "record.json";
/// No request may take longer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no authority, or not the one that was put there.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The API server said no, or could not be reached.
    #[error("the Secret {0} of the certificate authority cannot be read or written: {1}")]
    Api(String, #[source] kube::Error),
    /// No answer in time.
    #[error("the API server did not answer in time about the Secret {0}")]
    TimedOut(String),
    /// An entry is missing or no text.
    #[error(
        "the Secret {0} has no {1}: put an authority there in cert-manager's layout, or delete it, and the operator writes the authority in use there"
    )]
    Entry(String, &'static str),
    /// The record is damaged.
    #[error(
        "the Secret {0} cannot be read: {1}. Put it back from a backup, or delete it, and the authority that its neighbour without -state holds is taken for the one in use"
    )]
    Record(String, String),
    /// What is there cannot be used.
    #[error("the Secret {0} cannot be used: {1}")]
    Unusable(String, #[source] AuthorityError),
    /// This operator's own certificate cannot be used.
    #[error(transparent)]
    Own(#[from] MaterialError),
    /// It may not take the place of the one in use.
    #[error("the Secret {0} holds another authority: {1}")]
    NotYet(String, #[source] NotYet),
    /// Only the lease holder makes one.
    #[error("the Secret {0} is not there yet; the lease holder makes it")]
    NotMade(String),
    /// Both are gone, and pods have certificates.
    #[error(
        "the Secret {0} is gone and so is what was kept of it, and the group {1} believes that authority: put the Secret back from a backup. Where there is none, put another \
         authority there in cert-manager's layout, restart the gateway and set spec.rollout.restartedAt of every LlamaDeployment"
    )]
    Lost(String, String),
    /// All identities would be others.
    #[error(
        "the trust domain is {1}, as the Secret {0} says, and cannot become {2}, since pods that serve would believe nobody: set security.trustDomain back to {1}"
    )]
    TrustDomain(String, String, String),
}

impl KeepError {
    /// Whether somebody must do something about the Secrets or the settings: trying again changes nothing.
    #[must_use]
    pub const fn is_for_the_user(&self) -> bool {
        !matches!(self, Self::Api(..) | Self::TimedOut(_) | Self::NotMade(_))
    }

    /// Whether it is a stage of a replacement, which ends by itself.
    #[must_use]
    pub const fn is_a_stage(&self) -> bool {
        matches!(self, Self::NotYet(_, NotYet::Spreading(_)))
    }
}

/// Where the Secrets are.
#[derive(Clone)]
pub struct Secrets {
    /// To the API server.
    pub client: Client,
    /// Of both.
    pub namespace: String,
    /// Of the authority's.
    pub authority: String,
    /// Of the record's.
    pub record: String,
    /// Where groups are.
    pub served: Scope,
}

/// A record as it was read.
pub(super) struct Kept {
    pub(super) record: Record,
    /// Its `resourceVersion`; None where it is not written.
    pub(super) version: Option<String>,
}

impl Secrets {
    /// The authority as it lies there.
    pub(super) async fn pems(&self) -> Result<Option<Pems>, KeepError> {
        let name = &self.authority;
        let found = self.within(name, self.api().get_opt(name)).await?;
        found.map(|secret| self.read(&secret)).transpose()
    }

    /// Writes an authority there where none is. The one that is there then.
    pub(super) async fn make(&self, pems: Pems) -> Result<Pems, KeepError> {
        let entry = |name: &str, text: &String| (name.to_owned(), ByteString(text.clone().into_bytes()));
        let data = [
            entry("tls.crt", &pems.certificate),
            entry("tls.key", &pems.key),
            entry("ca.crt", &pems.roots),
        ];
        let secret = secret(&self.authority, "kubernetes.io/tls", data.into());
        match self.create(&self.authority, &secret).await {
            // Somebody else was faster: theirs counts.
            Err(KeepError::Api(_, kube::Error::Api(status))) if status.is_already_exists() => {
                let name = &self.authority;
                self.read(&self.within(name, self.api().get(name)).await?)
            }
            made => made.map(|_| pems),
        }
    }

    /// What is in use.
    pub(super) async fn record(&self) -> Result<Option<Kept>, KeepError> {
        let name = &self.record;
        let Some(found) = self.within(name, self.api().get_opt(name)).await? else {
            return Ok(None);
        };
        let damaged = |why: String| KeepError::Record(self.shown(name), why);
        let bytes = found.data.as_ref().and_then(|data| data.get(ENTRY));
        let bytes = bytes.ok_or_else(|| damaged(format!("it has no {ENTRY}")))?;
        let record = serde_json::from_slice(&bytes.0)
            // What stands there may be a key, so it is not quoted.
            .map_err(|error| damaged(format!("{ENTRY} is malformed in line {}", error.line())))?;
        let version = found.metadata.resource_version;
        Ok(Some(Kept { record, version }))
    }

    /// Writes what is in use, over exactly the version that was read.
    pub(super) async fn write(&self, kept: Kept) -> Result<Kept, KeepError> {
        let name = &self.record;
        let text = serde_json::to_vec(&kept.record)
            .map_err(|error| KeepError::Record(self.shown(name), error.to_string()))?;
        let mut wanted = secret(name, "Opaque", [(ENTRY.to_owned(), ByteString(text))].into());
        let written = match kept.version {
            None => self.create(name, &wanted).await?,
            Some(version) => {
                wanted.metadata.resource_version = Some(version);
                let (api, how) = (self.api(), PostParams::default());
                self.within(name, api.replace(name, &how, &wanted)).await?
            }
        };
        Ok(Kept {
            version: written.metadata.resource_version,
            ..kept
        })
    }

    /// A group whose pods have certificates.
    pub(super) async fn authenticated_group(&self) -> Result<Option<String>, KeepError> {
        for (_, api) in self.served.apis::<LlamaGroup>(&self.client) {
            let listed = self
                .within(&self.authority, api.list(&ListParams::default()))
                .await;
            let groups = match listed {
                Ok(groups) => groups.items,
                // Their kind is not there yet.
                Err(KeepError::Api(_, kube::Error::Api(status))) if status.code == 404 => Vec::new(),
                Err(error) => return Err(error),
            };
            let mut meant = groups.into_iter();
            if let Some(group) = meant.find(|group| group.spec.template.transport == Transport::Mutual) {
                let of = |part: Option<String>| part.unwrap_or_default();
                let name = format!("{}/{}", of(group.metadata.namespace), of(group.metadata.name));
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// The authority's Secret, for Events.
    pub(super) fn reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Secret".to_owned()),
            namespace: Some(self.namespace.clone()),
            name: Some(self.authority.clone()),
            ..ObjectReference::default()
        }
    }

    /// How people find the authority.
    pub(super) fn shown_authority(&self) -> String {
        self.shown(&self.authority)
    }

    /// How people find the record.
    pub(super) fn shown_record(&self) -> String {
        self.shown(&self.record)
    }

    fn shown(&self, name: &str) -> String {
        format!("{}/{name}", self.namespace)
    }

    fn api(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn create(&self, name: &str, secret: &Secret) -> Result<Secret, KeepError> {
        self.within(name, self.api().create(&PostParams::default(), secret))
            .await
    }

    fn read(&self, secret: &Secret) -> Result<Pems, KeepError> {
        let entry = |name: &'static str| {
            let bytes = secret.data.as_ref().and_then(|data| data.get(name));
            bytes
                .and_then(|bytes| String::from_utf8(bytes.0.clone()).ok())
                .ok_or_else(|| KeepError::Entry(self.shown_authority(), name))
        };
        Ok(Pems {
            certificate: entry("tls.crt")?,
            key: entry("tls.key")?,
            roots: entry("ca.crt")?,
        })
    }

    async fn within<T>(
        &self,
        name: &str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, KeepError> {
        match tokio::time::timeout(TIMEOUT, request).await {
            Ok(answer) => answer.map_err(|error| KeepError::Api(self.shown(name), error)),
            Err(_) => Err(KeepError::TimedOut(self.shown(name))),
        }
    }
}

fn secret(name: &str, kind: &str, data: BTreeMap<String, ByteString>) -> Secret {
    let labels = [
        (labels::APP_MANAGED_BY, labels::FIELD_MANAGER),
        (labels::APP_PART_OF, labels::PART_OF),
    ];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(labels.into()),
            ..ObjectMeta::default()
        },
        type_: Some(kind.to_owned()),
        data: Some(data),
        ..Secret::default()
    }
}
