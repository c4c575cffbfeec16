//! Changes that go wrong, canaries, and names that two deployments want.

use anyhow::{Context, Result, ensure};
use llamero_tests::poll;
use serde_json::{Value, json};

use crate::client::{ask, chat};
use crate::fixture::{Deployment, NAMESPACE, SOON};

fn patch(deployment: &Deployment, change: &Value) -> Result<()> {
    let text = change.to_string();
    let words = [
        "-n",
        NAMESPACE,
        "patch",
        "llamadeployment",
        &deployment.name,
        "--type=merge",
        "-p",
        &text,
    ];
    deployment.kubectl().run(&words)?;
    Ok(())
}

/// Revisions of the groups that are ready, sorted.
fn ready_revisions(deployment: &Deployment) -> Result<Vec<String>> {
    let groups = deployment.groups()?;
    let ready = groups.iter().filter(|group| group["status"]["ready"] == true);
    let mut revisions: Vec<String> = ready
        .map(|group| group["spec"]["revision"].as_str().unwrap_or_default().to_owned())
        .collect();
    revisions.sort();
    Ok(revisions)
}

#[test]
fn where_nothing_may_be_beside_it_a_mistyped_image_takes_no_group_down() -> Result<()> {
    let deployment = Deployment::create(
        "tried",
        json!({"parallelism": {"tensor": 1}, "rollout": {"maxSurge": 0}}),
    )?;
    deployment.wait_ready(1)?;
    let before = deployment.groups()?[0]["metadata"]["uid"].clone();
    // Never pulled: no registry and no name server has a say in how soon it is told.
    patch(
        &deployment,
        &json!({"spec": {"worker": {"image": "llamero-worker:mistyped", "imagePullPolicy": "Never"}}}),
    )?;
    poll::until("the trial to be told", SOON, || {
        let object = deployment.get()?;
        let conditions = object["status"]["conditions"]
            .as_array()
            .context("no conditions")?;
        let progressing = conditions.iter().find(|one| one["type"] == "Progressing");
        let message = progressing
            .and_then(|one| one["message"].as_str())
            .unwrap_or_default();
        ensure!(
            message.contains("ErrImageNeverPull"),
            "Progressing says {message:?}"
        );
        Ok(Some(()))
    })?;
    let groups = deployment.groups()?;
    ensure!(
        groups.len() == 1 && groups[0]["metadata"]["uid"] == before && groups[0]["status"]["ready"] == true,
        "{groups:?}"
    );
    let text = ask(&deployment.cluster, &chat("tried", "Good morning!", 8))?;
    ensure!(!text.trim().is_empty(), "the model wrote nothing");
    // Corrected, with another change: the trial passes at once, and the group is replaced.
    patch(
        &deployment,
        &json!({"spec": {"worker": {"image": null, "imagePullPolicy": null}, "model": {"maxContextLength": 1024}}}),
    )?;
    poll::until("another group", SOON, || {
        let groups = deployment.groups()?;
        let other = groups.len() == 1 && groups[0]["metadata"]["uid"] != before;
        Ok((other && groups[0]["status"]["ready"] == true).then_some(()))
    })?;
    poll::until("no trial to be left", SOON, || {
        let selector = "llamero.dev/deployment=tried,llamero.dev/inspect";
        let left = deployment
            .kubectl()
            .get(&["-n", NAMESPACE, "pods", "-l", selector])?;
        Ok(left["items"].as_array().is_some_and(Vec::is_empty).then_some(()))
    })
}

#[test]
fn a_canary_stays_beside_the_older_group_until_it_is_let_on() -> Result<()> {
    let deployment = Deployment::create(
        "canary",
        json!({"parallelism": {"tensor": 1}, "replicas": 2, "rollout": {"partition": 1, "canaryPercent": 50}}),
    )?;
    deployment.wait_ready(2)?;
    let first = ready_revisions(&deployment)?;
    ensure!(first[0] == first[1], "{first:?}");
    patch(
        &deployment,
        &json!({"spec": {"model": {"maxContextLength": 1024}}}),
    )?;
    poll::until("one group of each revision", SOON, || {
        let now = ready_revisions(&deployment)?;
        let canary = now.len() == 2 && now[0] != now[1] && now.contains(&first[0]);
        Ok((canary && deployment.groups()?.len() == 2).then_some(()))
    })?;
    let message = deployment.wait_condition("Progressing", "False")?;
    ensure!(message.contains("rollout.partition 1"), "{message}");
    for _ in 0..4 {
        let text = ask(&deployment.cluster, &chat("canary", "Good morning!", 8))?;
        ensure!(!text.trim().is_empty(), "the model wrote nothing");
    }
    patch(&deployment, &json!({"spec": {"rollout": {"partition": 0}}}))?;
    poll::until("two groups of the new revision", SOON, || {
        let now = ready_revisions(&deployment)?;
        Ok((now.len() == 2 && now[0] == now[1] && now[0] != first[0]).then_some(()))
    })
}

#[test]
fn a_model_name_belongs_to_the_older_deployment() -> Result<()> {
    let change = json!({"parallelism": {"tensor": 1}, "model": {"name": "shared"}});
    let older = Deployment::create("older", change.clone())?;
    older.wait_ready(1)?;
    let younger = Deployment::create("younger", change)?;
    younger.wait_ready(1)?;
    let message = younger.wait_condition("Routable", "False")?;
    ensure!(message.contains("demo/older is older"), "{message}");
    older.wait_condition("Routable", "True")?;
    for model in ["shared", "demo/shared"] {
        let text = ask(&older.cluster, &chat(model, "Good morning!", 8))?;
        ensure!(!text.trim().is_empty(), "{model} wrote nothing");
    }
    drop(older);
    younger.wait_condition("Routable", "True")?;
    let text = ask(&younger.cluster, &chat("shared", "Good morning!", 8))?;
    ensure!(!text.trim().is_empty(), "the model wrote nothing");
    Ok(())
}

#[test]
fn at_zero_by_hand_a_request_waits_where_that_was_asked_for() -> Result<()> {
    let deployment = Deployment::create(
        "held",
        json!({"parallelism": {"tensor": 1}, "replicas": 0, "holdAtZero": true}),
    )?;
    deployment.wait_condition("Accepted", "True")?;
    deployment.wait_ready(0)?;
    std::thread::scope(|scope| {
        let cluster = &deployment.cluster;
        let asking = scope.spawn(move || ask(cluster, &chat("held", "Good morning!", 8)));
        deployment.kubectl().run(&[
            "-n",
            NAMESPACE,
            "scale",
            "llamadeployment",
            "held",
            "--replicas=1",
        ])?;
        let text = asking
            .join()
            .map_err(|_| anyhow::anyhow!("the request panicked"))??;
        ensure!(!text.trim().is_empty(), "the model wrote nothing");
        Ok(())
    })
}
