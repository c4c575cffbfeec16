//! `kubectl llamero` on a real cluster: what it foretells is what happens, and what it writes takes effect.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use llamero_tests::{cluster::Cluster, paths, poll};
use serde_json::{Value, json};

use crate::fixture::{Deployment, NAMESPACE, SOON, name_of};

/// The plugin with these words, its exit code and what it wrote.
fn plugin(cluster: &Cluster, words: &[&str]) -> Result<(i32, String)> {
    let mut command = Command::new(
        paths::built("kubectl-llamero")
            .context("build it: cargo build --release --workspace --bin kubectl-llamero")?,
    );
    command
        .args(["--kubeconfig"])
        .arg(cluster.kubeconfig())
        .args(["-n", NAMESPACE])
        .args(words);
    let output = command.output().context("cannot run kubectl-llamero")?;
    let mut text = String::from_utf8(output.stdout)?;
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    Ok((output.status.code().unwrap_or(-1), text))
}

#[test]
fn a_plan_names_the_nodes_that_the_operator_then_takes() -> Result<()> {
    // Reads the headers once, so that the plan of the next one is sized.
    let first = Deployment::create("foretold", json!({}))?;
    first.wait_ready(1)?;
    let object = json!({"apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaDeployment",
        "metadata": {"name": "foretold-2", "namespace": NAMESPACE}, "spec": first.get()?["spec"]});
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("deployment.json");
    std::fs::write(&file, object.to_string())?;
    let file = file
        .to_str()
        .context("the temporary folder's path is not UTF-8")?;
    let (code, text) = plugin(&first.cluster, &["explain", "foretold"])?;
    ensure!(code == 0 && text.contains("is ready"), "{code}: {text}");
    let words = ["chat", "foretold", "-p", "Hello", "--max-tokens", "4"];
    let (code, text) = plugin(&first.cluster, &words)?;
    ensure!(code == 0 && !text.trim().is_empty(), "{code}: {text}");
    let (code, text) = plugin(&first.cluster, &["plan", "-f", file, "-o", "json"])?;
    ensure!(code == 0, "{text}");
    let planned: Value = serde_json::from_str(&text)?;
    ensure!(planned[0]["sizing"]["fits"] == true, "{text}");
    let foretold = planned[0]["groups"][0]["nodes"].clone();
    let second = Deployment::create("foretold-2", json!({}))?;
    second.wait_ready(1)?;
    let group = second.groups()?.into_iter().next().context("no group")?;
    let members = group["spec"]["members"].as_array().context("no members")?;
    let taken: Vec<&Value> = members.iter().map(|member| &member["node"]).collect();
    ensure!(json!(taken) == foretold, "foretold {foretold}, taken {taken:?}");

    let mut large = object;
    large["spec"]["replicas"] = json!(900);
    std::fs::write(file, large.to_string())?;
    let (code, text) = plugin(&first.cluster, &["plan", "-f", file])?;
    ensure!(code == 3 && text.contains("what would fit now"), "{code}: {text}");
    Ok(())
}

#[test]
fn what_is_not_ready_is_explained_and_shown() -> Result<()> {
    let deployment = Deployment::create("heads-told", json!({"parallelism": {"tensor": 10}}))?;
    deployment.wait_condition("Accepted", "False")?;
    let (code, text) = plugin(&deployment.cluster, &["explain", "heads-told"])?;
    ensure!(
        code == 3 && text.contains("Accepted=False") && text.contains("q heads") && text.contains("way out"),
        "{code}: {text}"
    );
    let (code, text) = plugin(&deployment.cluster, &["status", "heads-told"])?;
    ensure!(code == 0 && text.contains("demo/heads-told"), "{code}: {text}");
    let (code, text) = plugin(&deployment.cluster, &["status", "nobody"])?;
    ensure!(
        code == 1 && text.contains("there is no LlamaDeployment nobody"),
        "{code}: {text}"
    );
    Ok(())
}

/// Two rollouts: only in the long run.
#[test]
fn a_deployment_is_restarted_and_rolled_back() -> Result<()> {
    if std::env::var_os("LLAMERO_LONG").is_none() {
        return Ok(());
    }
    let deployment = Deployment::create("steered", json!({"parallelism": {"tensor": 1}}))?;
    deployment.wait_ready(1)?;
    let run = |words: &[&str]| -> Result<String> {
        let (code, text) = plugin(&deployment.cluster, words)?;
        ensure!(code == 0, "{words:?} ended with {code}: {text}");
        Ok(text)
    };
    let before = deployment
        .groups()?
        .iter()
        .map(|group| name_of(group).to_owned())
        .collect::<Vec<_>>();
    run(&["restart", "steered"])?;
    poll::until("another group", SOON, || {
        let groups = deployment.groups()?;
        Ok(groups
            .iter()
            .all(|group| !before.contains(&name_of(group).to_owned()))
            .then_some(()))
    })?;
    deployment.wait_ready(1)?;
    let kept: Value = serde_json::from_str(&run(&["rollback", "steered", "-o", "json"])?)?;
    ensure!(kept.as_array().is_some_and(|kept| kept.len() == 2), "{kept}");
    run(&["rollback", "steered", "--to", "previous"])?;
    let wanted = kept[1]["revision"].clone();
    poll::until("the revision before", SOON, || {
        let groups = deployment.groups()?;
        Ok(groups
            .iter()
            .all(|group| group["spec"]["revision"] == wanted)
            .then_some(()))
    })?;
    run(&["rollback", "steered", "--forward"])?;
    ensure!(
        deployment.get()?["spec"]["rollout"].get("revision").is_none(),
        "still held"
    );
    Ok(())
}
