//! Talking to the API server: kubeconfig files and `kubectl`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::addresses::{API_PORT, HOST};
use crate::command::{output, output_with_input};
use crate::paths;

/// Address of the API server as the machine and the nodes reach it.
#[must_use]
pub fn server() -> String {
    format!("https://{HOST}:{API_PORT}")
}

/// Writes a kubeconfig for the client whose certificate is `name.crt` in `certificates`.
pub(super) fn write_kubeconfig(file: &Path, certificates: &Path, name: &str) -> Result<()> {
    let place = |file: String| certificates.join(file).display().to_string();
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "llamero", "cluster": {
            "server": server(),
            "certificate-authority": place("ca.crt".to_owned()),
        }}],
        "users": [{"name": name, "user": {
            "client-certificate": place(format!("{name}.crt")),
            "client-key": place(format!("{name}.key")),
        }}],
        "contexts": [{"name": "llamero", "context": {"cluster": "llamero", "user": name}}],
        "current-context": "llamero",
    });
    std::fs::write(file, serde_json::to_vec_pretty(&config)?)
        .with_context(|| format!("cannot write {}", file.display()))
}

/// `kubectl` as the cluster's administrator.
#[derive(Clone, Debug)]
pub struct Kubectl {
    kubeconfig: PathBuf,
}

impl Kubectl {
    pub(super) fn new(kubeconfig: PathBuf) -> Self {
        Self { kubeconfig }
    }

    /// The command, for callers that want to run it in their own way.
    #[must_use]
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(paths::program("kubectl"));
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(words);
        command
    }

    /// Runs it and returns its output.
    ///
    /// # Errors
    /// `kubectl` fails; the message holds its words.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        output(&mut self.command(words))
    }

    /// One object, or a list of objects, as JSON.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn get(&self, words: &[&str]) -> Result<Value> {
        let text = output(self.command(&["get", "-o", "json"]).args(words))?;
        serde_json::from_str(&text).context("kubectl has not answered in JSON")
    }

    /// Applies manifests: an object, a `List`, or YAML text in a JSON string.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn apply(&self, manifest: &Value) -> Result<()> {
        let text = manifest
            .as_str()
            .map_or_else(|| manifest.to_string(), str::to_owned);
        output_with_input(&mut self.command(&["apply", "-f", "-"]), text.as_bytes())?;
        Ok(())
    }
}
