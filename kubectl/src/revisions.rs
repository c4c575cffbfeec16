//! `rollback`: the kept revisions of a deployment, and the way back to one.

use std::io::Write as _;

use anyhow::{Result, bail};
use k8s_openapi::{api::apps::v1::ControllerRevision, apimachinery::pkg::apis::meta::v1::Time};
use kube::{ResourceExt as _, api::Patch};
use llamero_api::{LlamaDeployment, LlamaGroup, group::GroupTemplate};
use llamero_core::time::Millis;
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, list, say},
    exit::Code,
    observe::{owned, revision},
    options::{Output, RollbackArgs},
    paint::{Mood, Paint, harmless},
    restart::params,
    words::{age, table},
};

/// A kept revision.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// Its number: larger is newer.
    pub number: i64,
    /// Its digest.
    pub digest: String,
    /// Groups that run it.
    pub groups: usize,
    /// New groups get it.
    pub current: bool,
    created: Option<Time>,
    template: Option<GroupTemplate>,
}

/// Runs `rollback`.
///
/// # Errors
/// There is no such revision, or what the API server refuses.
pub async fn run(cluster: &Cluster, args: &RollbackArgs, paint: Paint) -> Result<Code> {
    let api = cluster.api::<LlamaDeployment>(false);
    let object = api.get(&args.name).await;
    let object = object.map_err(|error| say::refused(error, "get", "llamadeployment"))?;
    let dry = if args.dry_run { " (dry run)" } else { "" };
    if args.forward {
        write(cluster, args, Value::Null).await?;
        println!(
            "llamadeployment.llamero.dev/{} follows its specification{dry}",
            args.name
        );
        return Ok(Code::Done);
    }
    let revisions = list::all(
        &cluster.api::<ControllerRevision>(false),
        "controllerrevisions.apps",
    )
    .await?;
    let groups = list::all(&cluster.api::<LlamaGroup>(false), "llamagroups.llamero.dev").await?;
    let kept = kept(&object, &revisions, &groups);
    match &args.to {
        Some(wish) => {
            let chosen = choose(&kept, wish)?;
            write(cluster, args, json!(chosen.digest)).await?;
            println!(
                "llamadeployment.llamero.dev/{} goes to revision {} ({}){dry}; --forward follows the specification again",
                args.name, chosen.number, chosen.digest
            );
        }
        None => {
            let now = jiff::Timestamp::now().as_millisecond();
            let text = match args.output {
                Output::Text => text(&object, &kept, now, paint),
                Output::Json => format!("{:#}\n", json_of(&kept)),
            };
            std::io::stdout().lock().write_all(text.as_bytes())?;
        }
    }
    Ok(Code::Done)
}

async fn write(cluster: &Cluster, args: &RollbackArgs, digest: Value) -> Result<()> {
    let patch = json!({"spec": {"rollout": {"revision": digest}}});
    let api = cluster.api::<LlamaDeployment>(false);
    let changed = api
        .patch(&args.name, &params(args.dry_run), &Patch::Merge(patch))
        .await;
    changed.map_err(|error| say::refused(error, "patch", "llamadeployment"))?;
    Ok(())
}

/// The kept revisions, newest first.
#[must_use]
pub fn kept(object: &LlamaDeployment, revisions: &[ControllerRevision], groups: &[LlamaGroup]) -> Vec<Kept> {
    let status = object.status.as_ref();
    let current = object.spec.rollout.revision.as_deref();
    let current = current
        .or(status.map(|status| status.revision.as_str()))
        .unwrap_or_default();
    let mut kept: Vec<Kept> = revisions
        .iter()
        .filter(|one| owned(*one, object))
        .map(|one| {
            let read = revision(one);
            let running = groups
                .iter()
                .filter(|group| owned(*group, object) && group.spec.revision == read.digest);
            Kept {
                number: read.number,
                groups: running.count(),
                current: read.digest == current,
                created: one.creation_timestamp(),
                template: read.template,
                digest: read.digest,
            }
        })
        .collect();
    kept.sort_by_key(|one| std::cmp::Reverse(one.number));
    kept
}

/// The revision that the user means.
///
/// # Errors
/// None, or several.
pub fn choose<'a>(kept: &'a [Kept], wish: &str) -> Result<&'a Kept> {
    let usable: Vec<&Kept> = kept.iter().filter(|one| one.template.is_some()).collect();
    let found: Vec<&Kept> = if wish == "previous" {
        usable
            .iter()
            .copied()
            .skip_while(|one| !one.current)
            .skip(1)
            .take(1)
            .collect()
    } else if let Some(one) = usable.iter().find(|one| one.number.to_string() == wish) {
        vec![one]
    } else {
        usable
            .iter()
            .copied()
            .filter(|one| one.digest.starts_with(wish))
            .collect()
    };
    match found.as_slice() {
        [one] => Ok(one),
        [] => bail!("no revision {wish} is kept: choose one of those that `kubectl llamero rollback` lists"),
        [..] => bail!("several digests begin with {wish}: write more of it"),
    }
}

fn text(object: &LlamaDeployment, kept: &[Kept], now: Millis, paint: Paint) -> String {
    if kept.is_empty() {
        return format!("no revision of {} is kept yet\n", object.name_any());
    }
    let head = [
        "", "NUMBER", "REVISION", "GROUPS", "AGE", "SPLIT", "CONTEXT", "IMAGE",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(kept.iter().map(|one| row(one, now)));
    let mut text = table(&rows);
    if let Some(digest) = &object.spec.rollout.revision {
        let words = format!(
            "held at revision {digest} by spec.rollout.revision; --forward follows the specification again"
        );
        text.push_str(&format!("{}\n", paint.paint(Mood::Busy, &words)));
    }
    text
}

fn row(one: &Kept, now: Millis) -> Vec<String> {
    let template = one.template.as_ref();
    let or_unreadable = |words: Option<String>| words.unwrap_or_else(|| "unreadable".to_owned());
    vec![
        if one.current { "*" } else { " " }.to_owned(),
        one.number.to_string(),
        one.digest.clone(),
        one.groups.to_string(),
        age(one.created.as_ref(), now),
        or_unreadable(template.map(|template| format!("{}x{}", template.tensor, template.pipeline))),
        or_unreadable(template.map(|template| template.max_context_length.to_string())),
        or_unreadable(template.map(|template| harmless(template.worker.image.as_deref().unwrap_or("-")))),
    ]
}

fn json_of(kept: &[Kept]) -> Value {
    let one = |one: &Kept| {
        json!({"number": one.number, "revision": one.digest, "groups": one.groups, "current": one.current,
            "createdAt": one.created, "template": one.template})
    };
    Value::Array(kept.iter().map(one).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(number: i64, digest: &str, current: bool) -> Kept {
        let template = json!({"modelName": "m", "source": {"hostPath": {"path": "/m"}}, "maxContextLength": 2048, "tensor": 2,
            "pipeline": 1, "ranksPerPod": 1, "kvBytesPerRank": 1, "weightBytesPerRank": 1, "stallTimeout": "30s",
            "worker": {"image": "worker:1"}});
        Kept {
            number,
            digest: digest.into(),
            groups: usize::from(current),
            current,
            created: None,
            template: serde_json::from_value(template).unwrap(),
        }
    }

    #[test]
    fn revisions_are_chosen_by_number_digest_or_as_the_one_before() {
        let all = [
            kept(3, "abc1", false),
            kept(2, "abd2", true),
            kept(1, "ffff", false),
        ];
        let chosen = |wish: &str| {
            choose(&all, wish)
                .map(|one| one.number)
                .map_err(|error| error.to_string())
        };
        assert_eq!(chosen("previous"), Ok(1));
        assert_eq!(chosen("3"), Ok(3));
        assert_eq!(chosen("abd"), Ok(2));
        assert!(chosen("ab").unwrap_err().contains("several"));
        assert!(chosen("9").unwrap_err().contains("no revision 9"));
        let mut broken = kept(1, "ffff", false);
        broken.template = None;
        assert!(choose(&[broken], "1").is_err());
    }

    #[test]
    fn the_list_shows_what_new_groups_get_and_who_holds_it() {
        let mut object: LlamaDeployment = serde_json::from_value(json!({
            "apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaDeployment", "metadata": {"name": "d"},
            "spec": {"model": {"source": {"hostPath": {"path": "/m"}}}, "parallelism": {"tensor": 1}},
        }))
        .unwrap();
        let all = [kept(2, "abc", true), kept(1, "def", false)];
        insta::assert_snapshot!(text(&object, &all, 0, Paint::plain()), @r"
           NUMBER  REVISION  GROUPS  AGE  SPLIT  CONTEXT  IMAGE
        *  2       abc       1       ?    2x1    2048     worker:1
           1       def       0       ?    2x1    2048     worker:1
        ");
        object.spec.rollout.revision = Some("def".into());
        assert!(text(&object, &all, 0, Paint::plain()).contains("held at revision def"));
        assert_eq!(
            text(&object, &[], 0, Paint::plain()),
            "no revision of d is kept yet\n"
        );
    }
}
