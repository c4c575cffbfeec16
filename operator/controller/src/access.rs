//! What the operator may read, where that is somebody's decision: it serves some namespaces only. The API server is asked.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::{Api, Client, api::PostParams};
use tracing::{info, warn};

use crate::watch::Scope;

/// No request may take longer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before it is asked again when there was no answer.
const AGAIN: Duration = Duration::from_secs(1);
/// Pause before it is asked again for a namespace that may not be read.
const RETURNED: Duration = Duration::from_secs(15);
/// API group and resource; pods in all namespaces.
const NEEDED: [(&str, &str); 3] = [
    ("", "nodes"),
    ("", "pods"),
    ("scheduling.k8s.io", "priorityclasses"),
];

/// What tells on which nodes claims can be mounted.
const VOLUMES: [(&str, &str); 2] = [("", "persistentvolumes"), ("storage.k8s.io", "csidrivers")];
/// The claims, in the namespaces served.
const CLAIMS: [(&str, &str); 1] = [("", "persistentvolumeclaims")];

/// What is asked for a namespace; its Role gives the rest with it.
const DEPLOYMENTS: (&str, &str) = ("llamero.dev", "llamadeployments");

/// Those of the namespaces that may be read. One that is gone took its Role along, and must not keep the others from being served.
pub async fn readable(client: &Client, namespaces: &BTreeSet<String>) -> BTreeSet<String> {
    let mut readable = BTreeSet::new();
    for namespace in namespaces {
        if may_read(client, namespace).await {
            readable.insert(namespace.clone());
        } else {
            warn!(
                namespace,
                "may not be read, so it is not served: it is gone, or its Role and RoleBinding are missing (`helm upgrade` makes them anew)"
            );
        }
    }
    readable
}

/// Returns a namespace as soon as it may be read; never, where there is none to wait for.
pub async fn returned(client: &Client, missing: &BTreeSet<String>) -> String {
    loop {
        tokio::time::sleep(RETURNED).await;
        for namespace in missing {
            if may_read(client, namespace).await {
                return namespace.clone();
            }
        }
    }
}

async fn may_read(client: &Client, namespace: &str) -> bool {
    let (group, resource) = DEPLOYMENTS;
    answered(|| is_allowed(client, Some(namespace), group, resource, "list")).await
}

/// Whether placement may read what it needs of the whole cluster.
pub async fn reads_cluster(client: &Client) -> bool {
    let missing = answered(|| first_missing(client, None, &NEEDED)).await;
    if let Some(missing) = &missing {
        info!(
            "may not {missing} in the whole cluster, so the scheduler alone chooses nodes (rbac.clusterReader of the chart)"
        );
    }
    missing.is_none()
}

/// Whether claims of the namespaces served, volumes and their drivers may be read.
pub async fn reads_volumes(client: &Client, served: &Scope) -> bool {
    let mut missing = answered(|| first_missing(client, None, &VOLUMES)).await;
    let namespaces: Vec<Option<&str>> = match served {
        Scope::Cluster => vec![None],
        Scope::Namespaces(names) => names.iter().map(|name| Some(name.as_str())).collect(),
    };
    for namespace in namespaces {
        if missing.is_none() {
            missing = answered(|| first_missing(client, namespace, &CLAIMS)).await;
        }
    }
    if let Some(missing) = &missing {
        info!(
            "may not {missing}, so groups are placed without regard to where their volumes can be mounted: install the Roles of this version's chart"
        );
    }
    missing.is_none()
}

/// Asks until there is an answer.
async fn answered<T, F: Future<Output = kube::Result<T>>>(ask: impl Fn() -> F) -> T {
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => warn!(%error, "cannot ask the API server what may be read; trying again"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// The first of these that may not be listed or watched.
async fn first_missing(
    client: &Client,
    namespace: Option<&str>,
    needed: &[(&str, &str)],
) -> kube::Result<Option<String>> {
    for (group, resource) in needed {
        for verb in ["list", "watch"] {
            if !is_allowed(client, namespace, group, resource, verb).await? {
                return Ok(Some(format!("{verb} {resource}")));
            }
        }
    }
    Ok(None)
}

/// `namespace`: None for all.
async fn is_allowed(
    client: &Client,
    namespace: Option<&str>,
    group: &str,
    resource: &str,
    verb: &str,
) -> kube::Result<bool> {
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                namespace: namespace.map(str::to_owned),
                group: Some(group.to_owned()),
                resource: Some(resource.to_owned()),
                verb: Some(verb.to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let api = Api::<SelfSubjectAccessReview>::all(client.clone());
    let how = PostParams::default();
    let answer = tokio::time::timeout(TIMEOUT, api.create(&how, &review)).await;
    let late = |_| kube::Error::Service("no answer in time".into());
    let status = match answer.map_err(late)? {
        Ok(review) => review.status,
        // Who may not even ask is not told; what needs no permission is done without it.
        Err(kube::Error::Api(status)) if status.code == 403 => return Ok(false),
        Err(error) => return Err(error),
    };
    let status = status.unwrap_or_default();
    match status.evaluation_error.filter(|_| !status.allowed) {
        // Nobody has decided.
        Some(error) => Err(kube::Error::Service(error.into())),
        None => Ok(status.allowed),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::mock::{Answer, ApiServer, failure};

    const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

    fn answer(allowed: bool) -> Answer {
        let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {}, "status": {"allowed": allowed}});
        ("POST", REVIEWS, 201, review)
    }

    #[tokio::test]
    async fn nodes_pods_and_priority_classes_must_all_be_readable() {
        let (client, server) = ApiServer::start(vec![answer(true); 6]).await;
        assert!(reads_cluster(&client).await);
        let asked = server.asked();
        let words = |at: usize| asked[at].body["spec"]["resourceAttributes"].clone();
        assert_eq!(
            words(0),
            json!({"group": "", "resource": "nodes", "verb": "list"})
        );
        assert_eq!(
            words(5),
            json!({"group": "scheduling.k8s.io", "resource": "priorityclasses", "verb": "watch"})
        );

        // A namespace's pods are read by its Role: that of the whole cluster is another question.
        let (client, server) = ApiServer::start(vec![answer(true), answer(true), answer(false)]).await;
        assert!(!reads_cluster(&client).await);
        assert_eq!(server.asked().len(), 3);
    }

    #[tokio::test]
    async fn volumes_are_read_of_the_cluster_and_claims_where_groups_are() {
        let (client, server) = ApiServer::start(vec![answer(true); 6]).await;
        let served = Scope::Namespaces(["a".to_owned()].into());
        assert!(reads_volumes(&client, &served).await);
        let last = server.asked()[5].body["spec"]["resourceAttributes"].clone();
        assert_eq!(
            last,
            json!({"namespace": "a", "group": "", "resource": "persistentvolumeclaims", "verb": "watch"})
        );

        // The Role of an older chart.
        let (client, server) = ApiServer::start(vec![answer(false)]).await;
        assert!(!reads_volumes(&client, &Scope::Cluster).await);
        assert_eq!(server.asked().len(), 1);
    }

    #[tokio::test]
    async fn namespaces_that_are_gone_are_left_out_until_they_return() {
        let names =
            |names: &[&str]| -> BTreeSet<String> { names.iter().map(|name| (*name).to_owned()).collect() };
        let (client, server) = ApiServer::start(vec![answer(true), answer(false)]).await;
        assert_eq!(readable(&client, &names(&["a", "gone"])).await, names(&["a"]));
        let asked = server.asked()[1].body["spec"]["resourceAttributes"].clone();
        let wanted = json!({"namespace": "gone", "group": "llamero.dev", "resource": "llamadeployments", "verb": "list"});
        assert_eq!(asked, wanted);

        let (client, server) = ApiServer::start(vec![answer(false), answer(true)]).await;
        tokio::time::pause();
        assert_eq!(returned(&client, &names(&["gone"])).await, "gone");
        assert_eq!(server.asked().len(), 2);
    }

    #[tokio::test]
    async fn an_api_server_that_is_away_is_asked_again() {
        let away = ("POST", REVIEWS, 503, failure(503, "ServiceUnavailable", "away"));
        let (client, server) = ApiServer::start(vec![away, answer(false)]).await;
        assert!(!reads_cluster(&client).await);
        assert_eq!(server.asked().len(), 2);
    }
}
