//! Which pod is behind a token, and whether it is a part of Llamero. The API server says whose token it is; groups and pods are read anew, so
//! that no cache that lags refuses a pod that was recorded a moment ago.

use std::time::Duration;

use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, UserInfo},
    core::v1::Pod,
};
use kube::{Api, Client, ResourceExt as _, api::PostParams};
use llamero_api::{LlamaGroup, labels};
use llamero_identity::{
    Identity, Role,
    enrol::{
        AUDIENCE,
        service::{NotKnown, Registrar},
    },
};

use crate::{
    options::{LabelSelector, Options},
    watch::Scope,
};

/// No request may take longer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// What the API server says of bound tokens: <https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/>.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Asks the API server.
pub struct Kubernetes {
    client: Client,
    trust_domain: String,
    gateway_namespace: String,
    gateway_account: String,
    gateways: LabelSelector,
    served: Scope,
}

/// The pod that a token is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bound {
    namespace: String,
    account: String,
    pod: String,
    uid: String,
}

impl Registrar for Kubernetes {
    async fn identify(&self, token: &str) -> Result<Identity, NotKnown> {
        let bound = bound(&self.review(token).await?)?;
        let is_gateway = bound.namespace == self.gateway_namespace && bound.account == self.gateway_account;
        if is_gateway {
            self.gateway(bound).await
        } else {
            self.worker(bound).await
        }
    }
}

impl Kubernetes {
    /// For the pods of an installation.
    #[must_use]
    pub fn new(client: Client, options: &Options) -> Self {
        Self {
            client,
            trust_domain: options.trust_domain.clone(),
            gateway_namespace: options.gateway_namespace().to_owned(),
            gateway_account: options.gateway_service_account.clone(),
            gateways: options.gateway_selector.clone(),
            served: Scope::Cluster,
        }
    }

    /// Workers of these namespaces only.
    #[must_use]
    pub fn serving(self, served: Scope) -> Self {
        Self { served, ..self }
    }

    /// Whose token it is.
    async fn review(&self, token: &str) -> Result<UserInfo, NotKnown> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: Some(vec![AUDIENCE.to_owned()]),
            },
            ..TokenReview::default()
        };
        let api = Api::<TokenReview>::all(self.client.clone());
        let answer = within(api.create(&PostParams::default(), &review)).await?;
        let status = answer.status.unwrap_or_default();
        let meant = status
            .audiences
            .unwrap_or_default()
            .iter()
            .any(|audience| audience == AUDIENCE);
        if status.authenticated != Some(true) || !meant {
            let why = status
                .error
                .unwrap_or_else(|| format!("it is not valid for the audience {AUDIENCE}"));
            return Err(NotKnown::Token(why));
        }
        status
            .user
            .ok_or_else(|| NotKnown::Token("it is nobody's".to_owned()))
    }

    async fn worker(&self, bound: Bound) -> Result<Identity, NotKnown> {
        let stranger = || {
            NotKnown::Stranger(format!(
                "the pod {}/{} is no member of a LlamaGroup",
                bound.namespace, bound.pod
            ))
        };
        if !self.served.contains(&bound.namespace) {
            return Err(NotKnown::Stranger(format!(
                "the namespace {} is not one that this installation serves (watchNamespaces)",
                bound.namespace
            )));
        }
        let group_name = group_of(&bound.pod).ok_or_else(stranger)?;
        let api = Api::<LlamaGroup>::namespaced(self.client.clone(), &bound.namespace);
        let group = within(api.get_opt(group_name)).await?.ok_or_else(stranger)?;
        if !is_member(&group, &bound) {
            return Err(stranger());
        }
        let group = group.name_any();
        Ok(self.identity(bound, Role::Worker { group }))
    }

    async fn gateway(&self, bound: Bound) -> Result<Identity, NotKnown> {
        let api = Api::<Pod>::namespaced(self.client.clone(), &bound.namespace);
        let pod = within(api.get_opt(&bound.pod)).await?;
        let pod = pod.filter(|pod| pod.metadata.uid.as_ref() == Some(&bound.uid));
        if !pod.is_some_and(|pod| self.gateways.matches(pod.metadata.labels.as_ref())) {
            let Bound { namespace, pod, .. } = bound;
            return Err(NotKnown::Stranger(format!(
                "the pod {namespace}/{pod} is no gateway"
            )));
        }
        Ok(self.identity(bound, Role::Gateway))
    }

    fn identity(&self, bound: Bound, role: Role) -> Identity {
        Identity {
            trust_domain: self.trust_domain.clone(),
            namespace: bound.namespace,
            role,
            pod: bound.pod,
        }
    }
}

/// The pod that a user is.
fn bound(user: &UserInfo) -> Result<Bound, NotKnown> {
    let name = user.username.as_deref().unwrap_or_default();
    let account = name
        .strip_prefix("system:serviceaccount:")
        .and_then(|rest| rest.split_once(':'));
    let extra = |key: &str| match user.extra.as_ref()?.get(key)?.as_slice() {
        [one] if !one.is_empty() => Some(one.clone()),
        _ => None,
    };
    let (Some((namespace, account)), Some(pod), Some(uid)) = (account, extra(POD_NAME), extra(POD_UID))
    else {
        return Err(NotKnown::Token("it is not bound to a pod".to_owned()));
    };
    Ok(Bound {
        namespace: namespace.to_owned(),
        account: account.to_owned(),
        pod,
        uid,
    })
}

/// The group of a member's pod by its name: see [`labels::pod_name`].
fn group_of(pod: &str) -> Option<&str> {
    let (rest, _attempt) = pod.rsplit_once('-')?;
    let (group, _index) = rest.rsplit_once('-')?;
    Some(group).filter(|group| !group.is_empty())
}

/// Whether the pod is recorded, by name and UID.
fn is_member(group: &LlamaGroup, bound: &Bound) -> bool {
    let name = group.name_any();
    let is = |index: i32, attempt: i32, uid: Option<&String>| {
        uid == Some(&bound.uid) && labels::pod_name(&name, index, attempt) == bound.pod
    };
    group.spec.members.iter().any(|member| {
        let successor = member.successor.as_ref();
        is(member.index, member.attempt, member.pod_uid.as_ref())
            || successor.is_some_and(|next| is(member.index, next.attempt, next.pod_uid.as_ref()))
    })
}

async fn within<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, NotKnown> {
    match tokio::time::timeout(TIMEOUT, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => {
            tracing::warn!(%error, "the API server cannot be asked about a pod that enrols");
            Err(NotKnown::NotNow(
                "the API server cannot be asked; ask again".to_owned(),
            ))
        }
        Err(_) => Err(NotKnown::NotNow(
            "the API server did not answer in time; ask again".to_owned(),
        )),
    }
}
