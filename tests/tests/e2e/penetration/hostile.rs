//! Sources that lead elsewhere, names of others, and checkpoints that mean harm.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use llamero_tests::cluster::Cluster;
use llamero_tests::{paths, poll};
use serde_json::{Value, json};

use super::attempts::Section;
use super::{OTHERS, Target};
use crate::client::post;
use crate::fixture::{NAMESPACE, SOON};

/// A deployment as a tenant writes it.
pub(super) fn deployment(namespace: &str, name: &str, model: Value) -> Value {
    json!({"apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaDeployment", "metadata": {"name": name, "namespace": namespace},
        "spec": {"model": model, "parallelism": {"tensor": 1}}})
}

/// Ways out of what a source may name.
pub(super) fn sources(cluster: &Cluster) -> Result<Section> {
    let mut section = Section::new(
        "Sources",
        "LlamaDeployments that lead out of what their tenant may read, as a tenant writes them.",
    );
    let allowed = paths::local().join("models");
    // What a tenant may name is taken, so the others are refused for what they are.
    let honest = deployment(
        NAMESPACE,
        "honest",
        json!({"source": {"hostPath": {"path": allowed}}}),
    );
    create_dry(cluster, &honest)?;
    for (what, source) in [
        ("a directory of the node", json!({"hostPath": {"path": "/etc"}})),
        (
            "a way out of an allowed directory",
            json!({"hostPath": {"path": format!("{}/../..", allowed.display())}}),
        ),
        (
            "a neighbour of an allowed directory",
            json!({"hostPath": {"path": format!("{}-of-others", allowed.display())}}),
        ),
        (
            "a way out of a claim",
            json!({"persistentVolumeClaim": {"claimName": "weights", "path": "../other"}}),
        ),
        (
            "an absolute path in a claim",
            json!({"persistentVolumeClaim": {"claimName": "weights", "path": "/etc"}}),
        ),
        (
            "a way out of an image",
            json!({"image": {"reference": "weights:1", "path": "a/../../etc"}}),
        ),
        (
            "a repository that is a path",
            json!({"huggingFace": {"repo": "../../../etc/passwd"}}),
        ),
        (
            "a file's address as a Hub",
            json!({"huggingFace": {"repo": "a/b", "endpoint": "file:///etc"}}),
        ),
        (
            "a file's address as a web server",
            json!({"https": {"url": "file:///etc/passwd"}}),
        ),
        ("a bucket of no known kind", json!({"s3": {"uri": "file:///etc"}})),
        (
            "two sources at once",
            json!({"https": {"url": "https://example.com/m"}, "hostPath": {"path": "/etc"}}),
        ),
    ] {
        let object = deployment(NAMESPACE, "sly", json!({"source": source}));
        let said = dry_run(cluster, &object)?;
        section.add(
            what,
            format!("`{source}`").replace(&allowed.display().to_string(), "/allowed"),
            said,
        );
    }
    Ok(section)
}

/// Writes it so that nothing is kept.
fn create_dry(cluster: &Cluster, object: &Value) -> Result<String> {
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), object.to_string())?;
    let path = file.path().display().to_string();
    cluster
        .kubectl()
        .run(&["create", "--dry-run=server", "-f", &path])
}

/// What the API server says to whoever writes it.
fn dry_run(cluster: &Cluster, object: &Value) -> Result<String> {
    match create_dry(cluster, object) {
        Ok(_) => anyhow::bail!("the API server takes {object}"),
        Err(error) => {
            let text = format!("{error:#}");
            if text.contains("is not allowed by this installation") {
                return Ok("refused by the installation's bounds (`tenants`)".to_owned());
            }
            ensure!(text.contains("is invalid"), "{text}");
            Ok("refused by the rules of the resource".to_owned())
        }
    }
}

/// Models of others.
pub(super) fn names(target: &Target) -> Result<Section> {
    let mut section = Section::new("Names", "Names of models that are somebody else's, or nobody's.");
    let kubectl = target.group.kubectl();
    let claim = json!({"persistentVolumeClaim": {"claimName": "none"}});
    kubectl.apply(&deployment(
        OTHERS,
        "thief",
        json!({"name": "target", "source": claim}),
    ))?;
    let taken = poll::until("the second deployment of that name to be told", SOON, || {
        let object = kubectl.get(&["-n", OTHERS, "llamadeployment", "thief"])?;
        let conditions = object["status"]["conditions"]
            .as_array()
            .context("no conditions")?;
        let routable = conditions.iter().find(|one| one["type"] == "Routable");
        let routable = routable.context("no condition Routable")?;
        ensure!(routable["status"] == "False", "{routable}");
        Ok(routable["reason"].as_str().map(str::to_owned))
    });
    kubectl.run(&["-n", OTHERS, "delete", "llamadeployment", "thief"])?;
    section.add(
        "another tenant's deployment takes the name of a model that serves",
        "operator",
        format!("`Routable=False`, `{}`: the older one keeps it", taken?),
    );
    for model in [
        "team/target",
        "demo/../demo/target",
        "target\u{0}",
        "../target",
        "TARGET",
    ] {
        let request =
            json!({"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]});
        let (code, answer) = post(
            target.cluster(),
            "/v1/chat/completions",
            request.to_string().as_bytes(),
        )?;
        ensure!(
            code == 404 && answer["error"]["code"] == "model_not_found",
            "{model:?}: {code} {answer}"
        );
        section.add(
            format!("the model `{}`", model.escape_debug()),
            "gateway, 8000",
            "404 `model_not_found`",
        );
    }
    Ok(section)
}

/// Makes a folder what it is called.
type Make = fn(&Path) -> Result<()>;

/// Files that are made to harm who reads them.
pub(super) fn checkpoints() -> Result<Section> {
    let mut section = Section::new(
        "Checkpoints",
        "Read by the program that reads headers before any accelerator is taken (`llamero-worker inspect`), with 512 MiB of address space and ten seconds.",
    );
    let hostile: [(&str, Make); 9] = [
        ("a header that is said to have 2^64 − 1 bytes", |folder| {
            header(folder, u64::MAX, b"{}")
        }),
        ("a header of 2 GiB in a sparse file", |folder| {
            header(folder, 2 << 30, b"{")?;
            Ok(File::options()
                .write(true)
                .open(folder.join(WEIGHTS))?
                .set_len(3 << 30)?)
        }),
        ("a header that is nested 100,000 times", |folder| {
            let nested = "{\"a\":".repeat(100_000);
            header(folder, nested.len() as u64, nested.as_bytes())
        }),
        ("a tensor that lies behind the end of the file", |folder| {
            tensor(folder, "[1,1]", "[0,4611686018427387904]")
        }),
        ("a tensor whose end lies before its beginning", |folder| {
            tensor(folder, "[1,1]", "[8,0]")
        }),
        ("a shape whose product overflows", |folder| {
            tensor(folder, "[4294967296,4294967296,4294967296]", "[0,2]")
        }),
        ("an index that names a file outside", |folder| {
            fs::remove_file(folder.join(WEIGHTS))?;
            let index = json!({"metadata": {}, "weight_map": {"model.embed_tokens.weight": "../../../../etc/passwd"}});
            Ok(fs::write(
                folder.join("model.safetensors.index.json"),
                index.to_string(),
            )?)
        }),
        ("weights that are a link to a file of the system", |folder| {
            fs::remove_file(folder.join(WEIGHTS))?;
            Ok(symlink("/etc/passwd", folder.join(WEIGHTS))?)
        }),
        ("a config with sizes of 2^62", |folder| {
            let path = folder.join("config.json");
            let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
            config["hidden_size"] = json!(1u64 << 62);
            config["num_attention_heads"] = json!(1u64 << 31);
            Ok(fs::write(path, config.to_string())?)
        }),
    ];
    for (what, make) in hostile {
        let folder = tempfile::tempdir()?;
        let from = paths::local().join("models/SmolLM2-135M-Instruct-FP8");
        for name in [
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "generation_config.json",
        ] {
            fs::copy(from.join(name), folder.path().join(name))?;
        }
        tensor(folder.path(), "[1,1]", "[0,2]")?;
        make(folder.path())?;
        let said = inspected(folder.path()).with_context(|| what.to_owned())?;
        section.add(what, "`llamero-worker inspect`", said);
    }
    Ok(section)
}

const WEIGHTS: &str = "model.safetensors";

/// A weights file whose header is said to have so many bytes.
fn header(folder: &Path, said: u64, bytes: &[u8]) -> Result<()> {
    let mut file = File::create(folder.join(WEIGHTS))?;
    file.write_all(&said.to_le_bytes())?;
    Ok(file.write_all(bytes)?)
}

/// A weights file with one tensor and two bytes.
fn tensor(folder: &Path, shape: &str, offsets: &str) -> Result<()> {
    let text = format!(
        r#"{{"model.embed_tokens.weight":{{"dtype":"BF16","shape":{shape},"data_offsets":{offsets}}}}}"#
    );
    header(folder, text.len() as u64, text.as_bytes())?;
    let mut file = File::options().append(true).open(folder.join(WEIGHTS))?;
    Ok(file.write_all(&[0, 0])?)
}

/// The sentence with which the folder is refused.
fn inspected(folder: &Path) -> Result<String> {
    const UNUSABLE: i32 = 2;
    let program = paths::built("llamero-worker").context("llamero-worker is missing: run `make images`")?;
    let limited = "ulimit -v 524288; exec timeout 10 \"$0\" \"$@\"";
    let output = Command::new("bash")
        .args(["-c", limited])
        .arg(program)
        .arg("inspect")
        .arg(folder)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).replace(&folder.display().to_string(), "DIR");
    ensure!(
        output.status.code() == Some(UNUSABLE) && !said.contains("panicked"),
        "{}: {said}",
        output.status
    );
    let last = said
        .lines()
        .rfind(|line| !line.trim().is_empty())
        .unwrap_or_default();
    Ok(last.trim().to_owned())
}
