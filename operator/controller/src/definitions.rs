//! The CustomResourceDefinitions of the cluster: brought to this release by the lease holder, and never back from a newer one.
//!
//! Helm installs definitions once and never again, so an operator that was upgraded would meet those of an older release, which drop the
//! fields that it writes. Where others keep them (`--manage-crds=false`, for GitOps), it only says so.

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams},
};
use llamero_api::{
    crds,
    labels::{FIELD_MANAGER, SCHEMA_VERSION},
};
use serde_json::Value;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::lease::Leadership;

/// No request may take longer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before they are looked at again while something is wrong.
const AGAIN: Duration = Duration::from_secs(60);
/// This release.
const OURS: &str = env!("CARGO_PKG_VERSION");

/// Why the cluster's definitions are not those of this release.
#[derive(Debug, thiserror::Error)]
pub enum DefinitionError {
    /// Somebody else keeps them, and they are old.
    #[error(
        "the CustomResourceDefinition {name} is of release {theirs}, older than this operator ({OURS}), so fields that it writes are dropped: bring it up to date (kubectl apply --server-side -k crds), or let the operator do it (crds.manage in the chart)"
    )]
    Older {
        /// The definition.
        name: String,
        /// What it says, or what is known without its word.
        theirs: String,
    },
    /// The API server said no, or could not be reached.
    #[error("the CustomResourceDefinition {0} cannot be read or brought to release {OURS}: {1}")]
    Api(String, #[source] kube::Error),
    /// No answer in time.
    #[error("the API server did not answer in time about the CustomResourceDefinition {0}")]
    TimedOut(String),
    /// A definition cannot be written as JSON, which would be a mistake in this program.
    #[error("a definition cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// Looks after the definitions.
pub struct Definitions {
    client: Client,
    manage: bool,
    leadership: Leadership,
    problem: watch::Sender<Option<String>>,
}

impl Definitions {
    /// `manage`: whether they are brought to this release, or only looked at. What is wrong with them is to be seen at the receiver.
    #[must_use]
    pub fn new(
        client: Client,
        manage: bool,
        leadership: Leadership,
    ) -> (Self, watch::Receiver<Option<String>>) {
        let (problem, receiver) = watch::channel(None);
        let this = Self {
            client,
            manage,
            leadership,
            problem,
        };
        (this, receiver)
    }

    /// Once, before anything is written that older definitions would drop; then, while something is wrong, every minute.
    pub async fn first(self) -> Option<impl Future<Output = ()> + Send> {
        if self.look().await {
            return None;
        }
        Some(async move {
            loop {
                tokio::time::sleep(AGAIN).await;
                if !self.leadership.is_held() || self.look().await {
                    return;
                }
            }
        })
    }

    /// Whether all is well now.
    async fn look(&self) -> bool {
        let result = self.bring_all().await;
        let problem = result.err().map(|error| error.to_string());
        if let Some(problem) = &problem {
            warn!("{problem}");
        }
        let well = problem.is_none();
        self.problem.send_replace(problem);
        well
    }

    async fn bring_all(&self) -> Result<(), DefinitionError> {
        for definition in crds::definitions()? {
            self.bring(&definition).await?;
        }
        Ok(())
    }

    async fn bring(&self, definition: &Value) -> Result<(), DefinitionError> {
        let name = definition
            .pointer("/metadata/name")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let api = Api::<CustomResourceDefinition>::all(self.client.clone());
        let found = match within(name, api.get(name)).await {
            // Where somebody else keeps them, whoever installs the operator may leave it without a word on the cluster's objects.
            Err(DefinitionError::Api(_, kube::Error::Api(status))) if status.code == 403 && !self.manage => {
                info!(
                    name,
                    "the definition may not be read, so its release is not looked at"
                );
                return Ok(());
            }
            found => found?,
        };
        let theirs = found.annotations().get(SCHEMA_VERSION);
        match order(theirs.map(String::as_str), OURS) {
            std::cmp::Ordering::Greater => {
                info!(
                    name,
                    theirs, "the definition is of a newer release and is left alone"
                );
                return Ok(());
            }
            std::cmp::Ordering::Equal if !self.manage => return Ok(()),
            std::cmp::Ordering::Less if !self.manage => {
                return Err(DefinitionError::Older {
                    name: name.to_owned(),
                    theirs: theirs.cloned().unwrap_or_else(|| "an unknown release".to_owned()),
                });
            }
            _ => {}
        }
        let applied = PatchParams::apply(FIELD_MANAGER).force();
        let written = within(name, api.patch(name, &applied, &Patch::Apply(definition))).await?;
        if written.resource_version() != found.resource_version() {
            info!(name, release = OURS, "brought the definition to this release");
        }
        Ok(())
    }
}

/// Releases in their order; one without a number is older than all.
fn order(theirs: Option<&str>, ours: &str) -> std::cmp::Ordering {
    let numbers = |text: &str| -> Option<Vec<u64>> {
        let release = text.split(['-', '+']).next()?;
        release.split('.').map(|part| part.parse().ok()).collect()
    };
    theirs.and_then(numbers).cmp(&numbers(ours))
}

async fn within<T>(name: &str, request: impl Future<Output = kube::Result<T>>) -> Result<T, DefinitionError> {
    match tokio::time::timeout(TIMEOUT, request).await {
        Ok(answer) => answer.map_err(|error| DefinitionError::Api(name.to_owned(), error)),
        Err(_) => Err(DefinitionError::TimedOut(name.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::mock::{Answer, ApiServer, failure};

    const NAMES: [&str; 2] = [
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/llamadeployments.llamero.dev",
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/llamagroups.llamero.dev",
    ];

    fn found(release: Option<&str>, version: &str) -> Value {
        let mut definition = crds::definitions().unwrap()[0].clone();
        definition["metadata"]["annotations"] = json!({});
        definition["metadata"]["resourceVersion"] = json!(version);
        if let Some(release) = release {
            definition["metadata"]["annotations"][SCHEMA_VERSION] = json!(release);
        }
        definition
    }

    async fn run(manage: bool, answers: Vec<Answer>) -> (Option<String>, Vec<String>) {
        let (client, server) = ApiServer::start(answers).await;
        let (definitions, problem) = Definitions::new(client, manage, Leadership::held_for_tests());
        drop(definitions.first().await);
        let problem = problem.borrow().clone();
        let asked = server.asked();
        (problem, asked.into_iter().map(|asked| asked.method).collect())
    }

    #[tokio::test]
    async fn older_ones_are_brought_up_and_newer_ones_left_alone() {
        let both = |release| NAMES.map(|name| ("GET", name, 200, found(release, "1")));
        let patched = NAMES.map(|name| ("PATCH", name, 200, found(Some(OURS), "2")));
        for release in [None, Some("0.0.1"), Some(OURS)] {
            let answers = both(release).into_iter().chain(patched.clone()).collect();
            let (problem, asked) = run(true, answers).await;
            assert_eq!(problem, None, "{release:?}");
            assert_eq!(asked, ["GET", "PATCH", "GET", "PATCH"], "{release:?}");
        }
        let (problem, asked) = run(true, both(Some("99.0.0")).into()).await;
        assert_eq!((problem, asked), (None, vec!["GET".to_owned(), "GET".to_owned()]));
    }

    #[tokio::test]
    async fn where_others_keep_them_an_older_one_is_told_and_not_touched() {
        let (problem, asked) = run(false, vec![("GET", NAMES[0], 200, found(Some("0.0.1"), "1"))]).await;
        let problem = problem.unwrap();
        assert!(
            problem.contains("is of release 0.0.1") && problem.contains("crds.manage"),
            "{problem}"
        );
        assert_eq!(asked, ["GET"]);
        let both = NAMES.map(|name| ("GET", name, 200, found(Some(OURS), "1")));
        assert_eq!(run(false, both.into()).await.0, None);
        // An operator without any ClusterRole.
        let refused = || failure(403, "Forbidden", "cannot get customresourcedefinitions");
        let both = NAMES.map(|name| ("GET", name, 403, refused()));
        assert_eq!(run(false, both.into()).await.0, None);
    }

    #[tokio::test]
    async fn what_keeps_them_from_being_brought_up_is_told() {
        let refused = failure(403, "Forbidden", "cannot patch customresourcedefinitions");
        let answers = vec![
            ("GET", NAMES[0], 200, found(None, "1")),
            ("PATCH", NAMES[0], 403, refused),
        ];
        let problem = run(true, answers).await.0.unwrap();
        assert!(problem.contains("cannot patch"), "{problem}");
    }

    #[test]
    fn releases_have_an_order() {
        use std::cmp::Ordering::{Equal, Greater, Less};
        for (theirs, expected) in [
            (None, Less),
            (Some("nonsense"), Less),
            (Some("0.9.9"), Less),
            (Some("1.2.3"), Equal),
            (Some("1.2.3-rc1"), Equal),
            (Some("1.10.0"), Greater),
        ] {
            assert_eq!(order(theirs, "1.2.3"), expected, "{theirs:?}");
        }
    }
}
