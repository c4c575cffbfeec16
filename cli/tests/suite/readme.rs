//! The README's own commands, as far as they can be run without a cluster, Docker and a registry.

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Parser as _;
use llamero::options::Cli;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The commands of all blocks of shell, continued lines joined, without comments.
fn commands() -> Vec<String> {
    let readme = read("README.md");
    let blocks = readme.split("```sh\n").skip(1);
    let text: String = blocks.map(|block| block.split("```").next().unwrap()).collect();
    let joined = text.replace("\\\n", " ");
    let lines = joined.lines().map(|line| line.split(" # ").next().unwrap());
    lines
        .map(|line| line.trim().trim_end_matches('&').trim().to_owned())
        .filter(|line| !line.is_empty())
        .flat_map(|line| line.split(" && ").map(str::to_owned).collect::<Vec<String>>())
        .collect()
}

/// Words as a shell splits them; single quotes are all that the README uses.
fn words(command: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (number, part) in command.split('\'').enumerate() {
        match number % 2 {
            0 => words.extend(part.split_whitespace().map(str::to_owned)),
            _ => words.push(part.to_owned()),
        }
    }
    words
}

/// What follows the word `flag`.
fn after<'a>(words: &'a [String], flag: &str) -> &'a str {
    let place = words.iter().position(|word| word == flag);
    let place = place.unwrap_or_else(|| panic!("{words:?} has no {flag}"));
    &words[place + 1]
}

fn tool(name: &str) -> PathBuf {
    let path = root().join(".local/bin").join(name);
    assert!(
        path.exists(),
        "{} is not there: run `make cluster-build`",
        path.display()
    );
    path
}

fn succeeds(mut command: Command) -> String {
    let output = command.current_dir(root()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn version() -> String {
    let manifest = read("Cargo.toml");
    let package = manifest.split("[workspace.package]").nth(1).unwrap();
    let line = package
        .lines()
        .find(|line| line.starts_with("version = "))
        .unwrap();
    line.split('"').nth(1).unwrap().to_owned()
}

/// What `helm install` with these flags would send: the chart takes the flags, and the images are those that were built.
fn check_helm(words: &[String]) {
    let given = words
        .iter()
        .skip(1)
        .filter(|word| !["install", "upgrade", "--install"].contains(&word.as_str()));
    let mut helm = Command::new(tool("helm"));
    helm.arg("template").args(given);
    let rendered = succeeds(helm);
    let prefix = if rendered.contains("REGISTRY/llamero") {
        "REGISTRY/"
    } else {
        ""
    };
    for image in ["llamero", "llamero-worker"] {
        let image = format!("{prefix}{image}:{}", version());
        assert!(rendered.contains(&image), "the chart does not use {image}");
    }
}

fn check_kubectl(words: &[String]) {
    match words[1].as_str() {
        "apply" if words.iter().any(|word| word == "-k") => {
            assert!(
                root()
                    .join(after(words, "-k"))
                    .join("kustomization.yaml")
                    .is_file()
            );
        }
        "apply" => assert!(root().join(after(words, "-f")).is_file(), "{words:?}"),
        "create" => {
            let mut kubectl = Command::new(tool("kubectl"));
            kubectl
                .args(&words[1..])
                .args(["--dry-run=client", "--output", "yaml"]);
            // The name and key that the samples read.
            let made = succeeds(kubectl);
            assert!(
                made.contains("name: hugging-face") && made.contains("token: "),
                "{made}"
            );
            assert!(
                read("manifests/samples/llama-3.2-1b.yaml").contains("tokenSecretRef: {name: hugging-face}")
            );
        }
        "get" => {}
        "-n" => assert!(read("charts/llamero/templates/gateway.yaml").contains("name: llamero-gateway")),
        other => panic!("kubectl {other} is not checked"),
    }
}

fn check(command: &str) {
    let words = words(command);
    match words[0].as_str() {
        "llamero" => {
            Cli::try_parse_from(&words).unwrap_or_else(|error| panic!("{command}: {error}"));
        }
        "alias" => {}
        "cargo" => assert!(root().join("cli/Cargo.toml").is_file() && command.ends_with("-p llamero")),
        "make" => {
            let files = ["Makefile", "tests/cluster/cluster.mk"].map(read).concat();
            assert!(
                files.contains(&format!("\n{}:", words[1])),
                "there is no {command}"
            );
        }
        "docker" => {
            assert!(root().join(after(&words, "-f")).is_file(), "{command}");
            assert!(
                after(&words, "-t")
                    .split_once(':')
                    .is_some_and(|(_, tag)| tag.starts_with(&version())),
                "{command}"
            );
        }
        "kind" => {
            for image in ["llamero", "llamero-worker"] {
                assert!(words.contains(&format!("{image}:{}", version())), "{command}");
            }
        }
        "helm" => check_helm(&words),
        "kubectl" => check_kubectl(&words),
        "curl" => {
            let body: serde_json::Value = serde_json::from_str(after(&words, "-d")).unwrap();
            let sample = read("manifests/samples/smollm2.yaml");
            let name = format!("    name: {}\n", body["model"].as_str().unwrap());
            assert!(sample.contains(&name), "the sample serves no {name}");
        }
        other => panic!("the README runs {other}, which is not checked"),
    }
}

#[test]
fn the_readme_s_commands_are_right() {
    let commands = commands();
    assert!(commands.len() > 15, "{commands:?}");
    commands.iter().for_each(|command| check(command));
}

#[test]
fn what_the_readme_links_to_is_there() {
    let readme = read("README.md");
    let links = readme
        .split("](")
        .skip(1)
        .map(|rest| rest.split(')').next().unwrap());
    let mut count = 0;
    for link in links.filter(|link| !link.starts_with("http")) {
        assert!(root().join(link).exists(), "{link} is not there");
        count += 1;
    }
    for word in readme
        .split('`')
        .filter(|word| word.starts_with("manifests/samples/"))
    {
        assert!(root().join(word).is_file(), "{word} is not there");
    }
    assert!(count > 3);
}
