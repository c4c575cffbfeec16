//! Changes of the installation that end with the test.

use std::process::Command;

use anyhow::{Result, ensure};
use llamero_tests::cluster::Kubectl;
use llamero_tests::{command, paths, poll};
use serde_json::Value;

use crate::fixture::SOON;
use crate::parts::SYSTEM;

/// Other values of the chart while this lives.
pub(crate) struct Installed;

impl Installed {
    /// Installs with these values, as `name=value`, and otherwise as `tests/install.sh` does.
    pub(crate) fn with(values: &[&str]) -> Result<Self> {
        let this = Self;
        install(values)?;
        Ok(this)
    }

    /// Installs with others.
    pub(crate) fn change(&self, values: &[&str]) -> Result<()> {
        install(values)
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        let back = install(&[]);
        // Later tests would run with the values of this one.
        assert!(
            back.is_ok() || std::thread::panicking(),
            "the installation keeps the values of a test: {back:?}"
        );
    }
}

fn install(values: &[&str]) -> Result<()> {
    let mut script = Command::new(paths::root().join("tests/install.sh"));
    for value in values {
        script.args(["--set", value]);
    }
    command::output(&mut script)?;
    Ok(())
}

/// The pods of a part of the chart.
pub(crate) fn pods_of(kubectl: &Kubectl, part: &str) -> Result<Vec<Value>> {
    let selector = format!("app.kubernetes.io/name={part}");
    let pods = kubectl.get(&["-n", SYSTEM, "pods", "-l", &selector])?;
    Ok(pods["items"].as_array().cloned().unwrap_or_default())
}

/// Keeps the chart's operator away.
pub(crate) struct OperatorAway(Kubectl);

impl OperatorAway {
    pub(crate) fn now(kubectl: Kubectl) -> Result<Self> {
        scale(&kubectl, 0)?;
        let this = Self(kubectl);
        poll::until("the operator to go", SOON, || {
            let pods = pods_of(&this.0, "llamero-operator")?;
            ensure!(pods.is_empty(), "{} are there", pods.len());
            Ok(Some(()))
        })?;
        Ok(this)
    }
}

impl Drop for OperatorAway {
    fn drop(&mut self) {
        if let Err(error) = scale(&self.0, 1) {
            eprintln!("the operator is still away: {error:#}");
        }
    }
}

fn scale(kubectl: &Kubectl, replicas: u8) -> Result<()> {
    let replicas = format!("--replicas={replicas}");
    kubectl.run(&["-n", SYSTEM, "scale", "deployment", "llamero-operator", &replicas])?;
    Ok(())
}
