//! The operator dies at a write of a placement, and its successor converges.
//!
//! A short run cuts after a few writes; with `LLAMERO_LONG` set, after every one until a placement needs no further write.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use llamero_tests::cluster::Cluster;
use llamero_tests::write_cutter::WriteCutter;
use llamero_tests::{paths, poll};
use serde_json::{Value, json};

use crate::fixture::{Deployment, NAMESPACE, SOON, name_of};
use crate::installation::OperatorAway;

#[test]
fn an_operator_killed_at_any_write_is_succeeded_without_loss() -> Result<()> {
    let cluster = Cluster::connect()?;
    let _away = OperatorAway::now(cluster.kubectl())?;
    let cutter = WriteCutter::start(cluster.layout())?;
    let long = std::env::var_os("LLAMERO_LONG").is_some();
    let cuts: Vec<usize> = if long {
        (0..200).collect()
    } else {
        vec![1, 4, 6, 9]
    };
    for cut in cuts {
        println!("cut after write {cut}");
        if !placement_survives(&cutter, cut).with_context(|| format!("cut after write {cut}"))? {
            println!("a placement takes {cut} writes or fewer");
            break;
        }
    }
    Ok(())
}

/// Places one group under an operator that is cut off after `cut` writes, then under its successor. False when the first needed no more.
fn placement_survives(cutter: &WriteCutter, cut: usize) -> Result<bool> {
    cutter.open();
    let deployment = Deployment::create("cut", json!({"replicas": 1}))?;
    cutter.cut_after(cut);
    let first = Operator::start(cutter, "first")?;
    let was_cut = poll::until("the cut or a ready group", SOON, || {
        let ready = deployment.get()?["status"]["readyReplicas"].as_i64() == Some(1);
        Ok((cutter.is_cut() || ready).then(|| cutter.is_cut()))
    })?;
    let writes = cutter.writes();
    drop(first);
    cutter.open();
    let second = Operator::start(cutter, "second")?;
    deployment
        .wait_ready(1)
        .with_context(|| format!("writes before the cut: {writes:?}"))?;
    poll::until("members that are the pods", SOON, || {
        converged(&deployment).map(Some)
    })
    .with_context(|| format!("writes before the cut: {writes:?}"))?;
    // The operator that saw the deployment go is the one that takes its pods back.
    drop(deployment);
    drop(second);
    Ok(was_cut)
}

/// One group whose recorded members are exactly the pods.
fn converged(deployment: &Deployment) -> Result<()> {
    let groups = deployment.groups()?;
    ensure!(groups.len() == 1, "{} groups", groups.len());
    let members = groups[0]["spec"]["members"].as_array().context("no members")?;
    let pods = deployment.pods()?;
    let mut recorded: Vec<&Value> = members.iter().map(|member| &member["podUID"]).collect();
    let mut there: Vec<&Value> = pods.iter().map(|pod| &pod["metadata"]["uid"]).collect();
    recorded.sort_by_key(|uid| uid.to_string());
    there.sort_by_key(|uid| uid.to_string());
    let names: Vec<&str> = pods.iter().map(name_of).collect();
    ensure!(
        recorded == there,
        "members are {recorded:?}, pods are {there:?} ({names:?}) in {NAMESPACE}"
    );
    Ok(())
}

/// The operator as a process of this machine that talks through the cutter. Killed when dropped.
struct Operator(Child);

impl Operator {
    /// Writes to a log of this name. All have one identity: who is killed gives no lease back, and a successor of the same name need not
    /// wait for it to expire. So the lease can be as long as any, and an operator that gets no processor for seconds keeps it.
    fn start(cutter: &WriteCutter, log: &str) -> Result<Self> {
        let folder = paths::local().join("e2e");
        std::fs::create_dir_all(&folder)?;
        let kubeconfig = cutter.write_kubeconfig(&folder.join("cutter.kubeconfig"))?;
        let log = File::create(folder.join(format!("operator-{log}.log")))?;
        let child = Command::new(program("llamero-operator")?)
            .env("KUBECONFIG", kubeconfig)
            .args([
                "--http-address",
                "127.0.0.1:0",
                // Only writes of the placement are cut.
                "--manage-crds=false",
                "--identity",
                "e2e",
            ])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(Self(child))
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program of the release build.
fn program(name: &str) -> Result<PathBuf> {
    // This test lies in <target>/<triple>/release/deps.
    let test = std::env::current_exe()?;
    let release = test
        .ancestors()
        .nth(2)
        .context("the test lies at an unexpected place")?;
    let program = release.join(name);
    ensure!(
        program.is_file(),
        "{} is missing: run `make images`",
        program.display()
    );
    Ok(program)
}
