//! Client packages of others, unchanged: `tests/clients` holds a suite for each. A short run has OpenAI's and Anthropic's own and Vercel's AI SDK; with
//! `LLAMERO_LONG` set, all.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use llamero_tests::recorder::{Call, Recorder};
use llamero_tests::{command, paths};
use serde_json::json;

use crate::client::gateway;
use crate::fixture::Deployment;

/// Routes whose answers are streamed too.
const STREAMED: [&str; 4] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
];

#[test]
fn clients_of_others_make_every_call_streamed_and_not() -> Result<()> {
    let deployment = Deployment::create("clients", json!({}))?;
    deployment.wait_ready(1)?;
    let long = std::env::var_os("LLAMERO_LONG").is_some();
    let extent = if long { "all" } else { "short" };
    let recorder = Recorder::start(gateway(&deployment.cluster)?.parse()?)?;
    let url = format!("http://{}", recorder.address);
    let script = paths::root().join("tests/clients/run.sh");
    let report = command::output(Command::new(script).args([extent, &url, "clients"]))?;
    ensure!(report.trim_end().ends_with("all suites passed"), "{report}");
    let (made, missing) = (recorder.calls(), missing(&recorder.calls())?);
    ensure!(missing.is_empty(), "no client made {missing:?}: {made:?}");
    Ok(())
}

/// Calls of the table in docs/gateway.md that nobody made, streamed and not.
fn missing(made: &BTreeSet<Call>) -> Result<Vec<String>> {
    let page = std::fs::read_to_string(paths::root().join("docs/gateway.md"))?;
    let rows = page
        .lines()
        .skip_while(|line| !line.starts_with("| route |"))
        .skip(2);
    let rows = rows.take_while(|line| line.starts_with('|'));
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    let routes = cells.flat_map(|cell| cell.split('`').filter_map(|word| word.split_once(' ')));
    let routes: Vec<_> = routes.filter(|(_, path)| path.starts_with('/')).collect();
    ensure!(routes.len() >= 12, "the table has only {routes:?}");
    let mut missing = Vec::new();
    for (method, path) in routes {
        // Ids stand at the end, and have slashes themselves.
        let (begin, has_id) = path
            .split_once('{')
            .map_or((path, false), |(begin, _)| (begin, true));
        let fits = |call: &&Call| {
            let rest = call.path.strip_prefix(begin);
            call.method == method && rest.is_some_and(|rest| rest.is_empty() != has_id)
        };
        for streamed in [false, true] {
            let is_due = !streamed || STREAMED.contains(&path);
            if is_due && !made.iter().filter(fits).any(|call| call.streamed == streamed) {
                missing.push(format!("{method} {path}, streamed: {streamed}"));
            }
        }
    }
    Ok(missing)
}

/// What the table asks for is asked for.
#[test]
fn a_call_that_nobody_makes_is_missing() -> Result<()> {
    let all = missing(&BTreeSet::new())?;
    let has = |call: &str| all.iter().any(|missing| missing == call);
    ensure!(
        has("POST /v1/messages, streamed: true") && has("GET /v1/models/{id}, streamed: false"),
        "{all:?}"
    );
    let made = |path: &str, streamed| Call {
        method: "POST".to_owned(),
        path: path.to_owned(),
        streamed,
    };
    let calls = [
        made("/v1/messages", true),
        made("/v1/messages/count_tokens", false),
    ];
    let rest = missing(&calls.into())?;
    ensure!(rest.len() + 2 == all.len(), "{rest:?}");
    rest.iter()
        .find(|call| *call == "POST /v1/messages, streamed: false")
        .context("one way of a call is taken for both")?;
    Ok(())
}
