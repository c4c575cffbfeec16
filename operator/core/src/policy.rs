//! What tenants may ask for: an installation bounds images, directories of nodes, service accounts and priority classes.
//!
//! The chart's ValidatingAdmissionPolicy says the same to whoever writes an object. It is decided here again, because that policy is absent
//! where somebody else administrates the cluster, and because objects may be older than it. It is asked before any pod is made, so that not
//! even the checkpoint's headers are read from a directory that is not allowed.

use llamero_api::deployment::{Source, Worker};

use crate::observed::Settings;

/// What is allowed. A pattern is a name, or the beginning of names followed by `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Patterns of images, those that are mounted as volumes included. The installation's own worker image is always allowed.
    pub images: Vec<String>,
    /// Directories of nodes; what lies in them is allowed too.
    pub host_paths: Vec<String>,
    /// Patterns of service accounts. The namespace's default one is always allowed.
    pub service_accounts: Vec<String>,
    /// Patterns of priority classes. Those of the system (`system-…`) are not meant by `*` alone.
    pub priority_classes: Vec<String>,
    /// Links are authenticated, so clients can be admitted by certificates.
    pub authenticated: bool,
}

impl Default for Policy {
    /// Everything is allowed: for who decides nothing, such as a forecast.
    fn default() -> Self {
        let any = || vec!["*".to_owned()];
        Self {
            images: any(),
            host_paths: vec!["/".to_owned()],
            service_accounts: any(),
            priority_classes: any(),
            authenticated: true,
        }
    }
}

/// Whether pods may be made with this source and these settings.
///
/// # Errors
/// What is not allowed, what is, and what to do about it.
pub fn check(source: &Source, worker: &Worker, settings: &Settings) -> Result<(), String> {
    let policy = &settings.policy;
    if let Some(host) = &source.host_path {
        allow(
            host_path(&policy.host_paths, &host.path),
            ("model.source.hostPath.path", &host.path),
            &policy.host_paths,
            "tenants.hostPaths",
        )?;
    }
    let worker_image = worker.image.as_deref().map(|image| ("worker.image", image));
    let source_image = source.image.as_ref();
    let source_image = source_image.map(|image| ("model.source.image.reference", image.reference.as_str()));
    for (field, image) in worker_image.into_iter().chain(source_image) {
        let allowed = matches(&policy.images, image) || installed(image, &settings.worker_image);
        allow(allowed, (field, image), &policy.images, "tenants.images")?;
    }
    if let Some(account) = worker.service_account_name.as_deref() {
        let allowed = account == "default" || matches(&policy.service_accounts, account);
        let field = ("worker.serviceAccountName", account);
        allow(
            allowed,
            field,
            &policy.service_accounts,
            "tenants.serviceAccounts",
        )?;
    }
    if let Some(class) = worker.priority_class_name.as_deref() {
        let allowed = priority_class(&policy.priority_classes, class);
        let field = ("worker.priorityClassName", class);
        allow(
            allowed,
            field,
            &policy.priority_classes,
            "tenants.priorityClasses",
        )?;
    }
    if worker.client_ca_bundle().is_some() && !policy.authenticated {
        return Err(
            "worker.inference.clientCaBundle admits clients by certificates, and the links of this installation are plain text: leave it out, or have \
             security.mtls of the chart switched on"
                .to_owned(),
        );
    }
    Ok(())
}

fn allow(allowed: bool, field: (&str, &str), list: &[String], value: &str) -> Result<(), String> {
    if allowed {
        return Ok(());
    }
    let (name, asked) = field;
    let list = match list {
        [] => "none".to_owned(),
        list => list.join(", "),
    };
    Err(format!(
        "{name} {asked} is not allowed by this installation, which allows {list}: use an allowed one, or have it added to {value} of the chart"
    ))
}

fn matches(patterns: &[String], name: &str) -> bool {
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    })
}

fn priority_class(patterns: &[String], class: &str) -> bool {
    let system = class.starts_with("system-");
    let meant = patterns.iter().filter(|pattern| !system || *pattern != "*");
    let meant: Vec<String> = meant.cloned().collect();
    matches(&meant, class)
}

fn host_path(allowed: &[String], path: &str) -> bool {
    let inside = |folder: &String| {
        let folder = folder.trim_end_matches('/');
        path.strip_prefix(folder)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    !path.split('/').any(|part| part == "..") && allowed.iter().any(inside)
}

/// The installation's own worker image, by its tag, or by a digest of the same repository: a snapshot names it so.
fn installed(image: &str, own: &str) -> bool {
    let repository = |image: &str| {
        let image = image.split_once('@').map_or(image, |(repository, _)| repository);
        // A colon before the last slash is that of a port.
        match image.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => repository.to_owned(),
            _ => image.to_owned(),
        }
    };
    image == own || (image.contains('@') && repository(image) == repository(own))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn settings(policy: Policy) -> Settings {
        Settings {
            worker_image: "registry:5000/llamero-worker:0.1.0".into(),
            policy,
            ..Settings::default()
        }
    }

    fn strict() -> Settings {
        settings(Policy {
            images: vec!["registry:5000/models/*".into()],
            host_paths: vec!["/models/".into()],
            service_accounts: vec!["llama-*".into()],
            priority_classes: vec!["*".into()],
            authenticated: false,
        })
    }

    fn checked(source: Value, worker: Value, settings: &Settings) -> Result<(), String> {
        let source = serde_json::from_value(source).unwrap();
        check(&source, &serde_json::from_value(worker).unwrap(), settings)
    }

    fn path(path: &str) -> Result<(), String> {
        checked(json!({"hostPath": {"path": path}}), json!({}), &strict())
    }

    #[test]
    fn clients_are_admitted_only_where_they_can_show_who_they_are() {
        let worker = || json!({"inference": {"clientCaBundle": {"configMap": "clients"}}});
        let source = || json!({"persistentVolumeClaim": {"claimName": "c"}});
        let refused = checked(source(), worker(), &strict()).unwrap_err();
        assert!(refused.contains("security.mtls"), "{refused}");
        assert_eq!(checked(source(), worker(), &settings(Policy::default())), Ok(()));
    }

    #[test]
    fn directories_are_allowed_with_what_lies_in_them_and_nothing_else() {
        assert_eq!(path("/models"), Ok(()));
        assert_eq!(path("/models/llama-8b"), Ok(()));
        for other in [
            "/",
            "/etc",
            "/models-of-others",
            "/models/../etc",
            "//models",
            "/Models",
        ] {
            assert!(path(other).is_err(), "{other}");
        }
        assert_eq!(
            path("/etc").unwrap_err(),
            "model.source.hostPath.path /etc is not allowed by this installation, which allows /models/: use an allowed one, or have it \
             added to tenants.hostPaths of the chart"
        );
        let mut none = strict();
        none.policy.host_paths.clear();
        let refused = checked(json!({"hostPath": {"path": "/models"}}), json!({}), &none).unwrap_err();
        assert!(refused.contains("allows none"), "{refused}");
    }

    #[test]
    fn images_are_allowed_by_pattern_and_the_installations_own_always() {
        let image = |image: &str| checked(json!({}), json!({"image": image}), &strict());
        for allowed in [
            "registry:5000/models/a:1",
            "registry:5000/llamero-worker:0.1.0",
            "registry:5000/llamero-worker@sha256:00",
        ] {
            assert_eq!(image(allowed), Ok(()), "{allowed}");
        }
        for other in [
            "registry:5000/llamero-worker:evil",
            "evil/llamero-worker@sha256:00",
            "registry:5000/modelsx/a",
        ] {
            assert!(image(other).is_err(), "{other}");
        }
        let volume = json!({"image": {"reference": "elsewhere/weights:1"}});
        assert!(
            checked(volume, json!({}), &strict())
                .unwrap_err()
                .contains("model.source.image.reference")
        );
    }

    #[test]
    fn accounts_and_priorities_are_allowed_by_pattern() {
        let worker = |worker: Value| checked(json!({}), worker, &strict());
        assert_eq!(
            worker(json!({"serviceAccountName": "llama-reader", "priorityClassName": "high"})),
            Ok(())
        );
        assert_eq!(worker(json!({"serviceAccountName": "default"})), Ok(()));
        assert!(worker(json!({"serviceAccountName": "admin"})).is_err());
        assert!(worker(json!({"priorityClassName": "system-node-critical"})).is_err());
        let mut named = strict();
        named.policy.priority_classes = vec!["system-*".into()];
        let critical = json!({"priorityClassName": "system-node-critical"});
        assert_eq!(checked(json!({}), critical, &named), Ok(()));
    }

    #[test]
    fn who_decides_nothing_allows_everything() {
        let open = settings(Policy::default());
        let source = json!({"hostPath": {"path": "/anything"}});
        assert_eq!(
            checked(
                source,
                json!({"image": "any", "serviceAccountName": "any"}),
                &open
            ),
            Ok(())
        );
    }
}
