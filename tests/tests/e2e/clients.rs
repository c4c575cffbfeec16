//! Client packages of others, unchanged: `tests/clients` holds a suite for each. A short run has OpenAI's and Anthropic's own and Vercel's AI SDK; with
//! `LLAMERO_LONG` set, all.

use std::process::Command;

use anyhow::{Result, ensure};
use llamero_tests::{command, paths};
use serde_json::json;

use crate::client::gateway;
use crate::fixture::Deployment;

#[test]
fn clients_of_others_make_every_call_streamed_and_not() -> Result<()> {
    let deployment = Deployment::create("clients", json!({}))?;
    deployment.wait_ready(1)?;
    let long = std::env::var_os("LLAMERO_LONG").is_some();
    let extent = if long { "all" } else { "short" };
    let url = format!("http://{}", gateway(&deployment.cluster)?);
    let script = paths::root().join("tests/clients/run.sh");
    let report = command::output(Command::new(script).args([extent, &url, "clients"]))?;
    ensure!(report.trim_end().ends_with("all suites passed"), "{report}");
    Ok(())
}
