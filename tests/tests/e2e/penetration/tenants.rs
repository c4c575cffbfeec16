//! API keys that see one tenant's models and ask for another's, and adapters that are loaded by whom they must not be.

use std::process::Command;

use anyhow::{Result, ensure};
use llamero_tests::cluster::Kubectl;
use llamero_tests::command::output_with_input;
use llamero_tests::{paths, poll};
use serde_json::{Value, json};

use super::attempts::Section;
use super::hostile::deployment;
use super::{LOADER, OTHERS, Target};
use crate::client::gateway;
use crate::fixture::{NAMESPACE, SOON};
use crate::installation::Installed;
use crate::parts::{self, Answer, SYSTEM, identity, identity_of};

const SECRET: &str = "penetration-keys";
/// Sees the models of [`NAMESPACE`].
const OWN: &str = "sk-own-0123456789abcdef";
/// Sees the models of [`OTHERS`].
const OTHER: &str = "sk-other-0123456789abcdef";
/// Sees the model `target` of [`NAMESPACE`] and no adapter.
const NARROW: &str = "sk-narrow-0123456789abcdef";
/// A deployment of [`NAMESPACE`] that declares an adapter.
const DECLARING: &str = "declaring";
const ADAPTER: &str = "poet";
/// Where the page says that it was tried.
const HTTP: &str = "gateway, 8000";
const GRPC: &str = "gateway, 8000, gRPC";

/// Loads and unloads by all who may ask for answers or are close to who may.
pub(super) fn adapters(target: &Target) -> Result<Section> {
    let mut section = Section::new(
        "Adapters",
        "Who may ask a leader for answers is not to have it read files: `LoadLora` and `UnloadLora` are for the operator and for clients that `worker.inference.adapterClients` names.",
    );
    let (parts, clients) = (&target.parts, &target.clients);
    let (at, port) = &target.ports()?[0];
    let client = |name: &str| parts.by(clients, &identity(SYSTEM, llamero_identity::Role::Operator, name));
    for method in ["LoadLora", "UnloadLora"] {
        let path = format!("/vllm.Control/{method}");
        // There is no room for adapters, and none to unload: only who is let in hears that.
        for caller in [client(LOADER)?, parts.as_who(&parts::operator())?] {
            let answer = parts.call(port, &caller, &path)?;
            let wanted = match method {
                "LoadLora" => tonic::Code::FailedPrecondition,
                _ => tonic::Code::NotFound,
            };
            let heard = matches!(&answer, Answer::Status(code, _) if *code == wanted);
            ensure!(heard, "who may load hears {answer:?}");
        }
        for (who, caller) in [
            ("as a gateway", parts.as_who(&parts::gateway())?),
            ("as a client that is admitted and not named", client("other")?),
            (
                "as a client whose name begins like one that is named",
                client(&format!("{LOADER}2"))?,
            ),
            (
                "as a member of the same group",
                parts.as_who(&identity_of(&target.member)?)?,
            ),
        ] {
            let answer = parts.call(port, &caller, &path)?;
            let (refused, shown) = super::methods::judge(&answer);
            ensure!(refused, "{who}: {path} is answered with {answer:?}");
            section.add(format!("{who}: `{method}`"), *at, shown);
        }
        let (code, said) = grpc(target, None, &[], &json!({}), &format!("vllm.Control/{method}"))?;
        ensure!(code == "Unimplemented", "{code}: {said}");
        section.add(
            format!("through the gateway: `{method}`"),
            GRPC,
            format!("`{code}`"),
        );
    }
    Ok(section)
}

/// The gateway's keys while this lives.
struct Keys(Kubectl);

impl Keys {
    fn write(kubectl: Kubectl) -> Result<Self> {
        let keys = format!(
            "keys: [{{name: own, key: {OWN}, namespaces: [{NAMESPACE}]}}, {{name: other, key: {OTHER}, namespaces: [{OTHERS}]}}, \
             {{name: narrow, key: {NARROW}, namespaces: [{NAMESPACE}], models: [target]}}]"
        );
        kubectl.apply(&json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": {"name": SECRET, "namespace": SYSTEM}, "stringData": {"keys.yaml": keys}}))?;
        Ok(Self(kubectl))
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        let _ = self
            .0
            .run(&["-n", SYSTEM, "delete", "secret", SECRET, "--ignore-not-found"]);
        let _ = self.0.run(&[
            "-n",
            NAMESPACE,
            "delete",
            "llamadeployment",
            DECLARING,
            "--ignore-not-found",
        ]);
    }
}

/// Names of another tenant's models and adapters.
pub(super) fn keys(target: &Target) -> Result<Section> {
    let mut section = Section::new(
        "Keys",
        "Keys of the API that see another namespace's models, or fewer, ask for what they do not see: the answer is the one to a name that nobody has.",
    );
    let keys = Keys::write(target.group.kubectl())?;
    let mut declaring = deployment(
        NAMESPACE,
        DECLARING,
        json!({"source": {"persistentVolumeClaim": {"claimName": "none"}}}),
    );
    declaring["spec"]["engine"] = json!({"lora": {"maxAdapters": 1}});
    declaring["spec"]["adapters"] = json!([{"name": ADAPTER, "path": ADAPTER}]);
    keys.0.apply(&declaring)?;
    let _installed = Installed::with(&[&format!("gateway.apiKeys.secretName={SECRET}")])?;
    // Who sees them does: else refusals would show nothing.
    poll::until("the keys to count", SOON, || {
        ensure!(
            http(target, None, "/v1/models", None)?.0 == 401,
            "no key is asked for"
        );
        let (code, seen) = http(target, Some(OWN), "/v1/models", None)?;
        ensure!(
            code == 200 && lists(&seen, "target") && lists(&seen, ADAPTER),
            "{code}: {seen}"
        );
        Ok(Some(()))
    })?;
    for (what, key) in [
        ("without a key", None),
        ("with what is no key", Some("sk-guessed-0123456789")),
    ] {
        let (code, answer) = http(target, key, "/v1/chat/completions", Some(&chat("target")))?;
        ensure!(
            code == 401 && answer["error"]["code"] == "invalid_api_key",
            "{code}: {answer}"
        );
        section.add(
            format!("{what}: the model `target`"),
            HTTP,
            "401 `invalid_api_key`",
        );
        let (code, said) = grpc(target, key, &[], &prompt("target", ""), "vllm.Inference/Generate")?;
        ensure!(code == "Unauthenticated", "{code}: {said}");
        section.add(format!("{what}: the model `target`"), GRPC, format!("`{code}`"));
    }
    let (code, seen) = http(target, Some(OTHER), "/v1/models", None)?;
    ensure!(
        code == 200 && !lists(&seen, "target") && !lists(&seen, ADAPTER),
        "{code}: {seen}"
    );
    section.add("the list of models", HTTP, "without those of others");
    for (key, names) in [
        (OTHER, &["target", "demo/target", ADAPTER, "demo/poet"][..]),
        (NARROW, &[ADAPTER, "demo/poet", DECLARING][..]),
    ] {
        for name in names {
            let what = match key {
                OTHER => format!("with another namespace's key: `{name}`"),
                _ => format!("with a key for `target` alone: `{name}`"),
            };
            let (code, answer) = http(target, Some(key), "/v1/chat/completions", Some(&chat(name)))?;
            ensure!(
                code == 404 && answer["error"]["code"] == "model_not_found",
                "{code}: {answer}"
            );
            section.add(&what, HTTP, "404 `model_not_found`");
            let (code, said) = grpc(
                target,
                Some(key),
                &[],
                &prompt(name, ""),
                "vllm.Inference/Generate",
            )?;
            ensure!(code == "NotFound", "{name}: {code}: {said}");
            section.add(&what, GRPC, format!("`{code}`"));
            let named = ["-H".to_owned(), format!("model: {name}")];
            let (code, said) = grpc(
                target,
                Some(key),
                &named,
                &json!({}),
                "vllm.Control/GetServerInfo",
            )?;
            ensure!(code == "NotFound", "{name}: {code}: {said}");
            section.add(format!("{what}, of `GetServerInfo`"), GRPC, format!("`{code}`"));
        }
    }
    let (code, said) = grpc(
        target,
        Some(NARROW),
        &[],
        &prompt("target", ADAPTER),
        "vllm.Inference/Generate",
    )?;
    ensure!(code == "NotFound", "{code}: {said}");
    section.add(
        format!("with a key for `target` alone: `target` with the adapter `{ADAPTER}`"),
        GRPC,
        format!("`{code}`"),
    );
    Ok(section)
}

fn chat(model: &str) -> Value {
    json!({"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]})
}

fn prompt(model: &str, adapter: &str) -> Value {
    json!({"model": model, "lora_name": adapter, "text": "x", "stopping": {"max_new_tokens": 1}})
}

fn lists(models: &Value, name: &str) -> bool {
    let data = models["data"].as_array();
    data.is_some_and(|data| data.iter().any(|model| model["id"] == name))
}

/// Status code and answer.
fn http(target: &Target, key: Option<&str>, route: &str, body: Option<&Value>) -> Result<(u16, Value)> {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--max-time", "60", "-w", "\n%{http_code}"]);
    if let Some(key) = key {
        curl.args(["-H", &format!("authorization: Bearer {key}")]);
    }
    if body.is_some() {
        curl.args(["-H", "content-type: application/json", "--data-binary", "@-"]);
    }
    curl.arg(format!("http://{}{route}", gateway(target.cluster())?));
    let said = output_with_input(
        &mut curl,
        body.map(Value::to_string).unwrap_or_default().as_bytes(),
    )?;
    let (answer, code) = said.trim_end().rsplit_once('\n').unwrap_or(("", said.trim_end()));
    Ok((code.parse()?, serde_json::from_str(answer).unwrap_or_default()))
}

/// The code with which a call ends, and what grpcurl says.
fn grpc(
    target: &Target,
    key: Option<&str>,
    words: &[String],
    request: &Value,
    method: &str,
) -> Result<(String, String)> {
    let mut grpcurl = Command::new(paths::binaries().join("grpcurl"));
    grpcurl.args(["-plaintext", "-max-time", "60"]);
    // With the call and not with reflection, which is not what is tried.
    grpcurl.args(["-reflect-header", &format!("authorization: Bearer {OWN}")]);
    if let Some(key) = key {
        grpcurl.args(["-rpc-header", &format!("authorization: Bearer {key}")]);
    }
    grpcurl.args(words).args(["-d", &request.to_string()]);
    grpcurl.args([&gateway(target.cluster())?, method]);
    let output = grpcurl.output()?;
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let code = said.lines().find_map(|line| line.trim().strip_prefix("Code: "));
    Ok((code.unwrap_or("none").to_owned(), said))
}
