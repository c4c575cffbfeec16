//! Bad input: each ends with a sentence and a code, and leaves nothing behind.

use crate::program::{fp8, llamero, run};
use llamero_fake_hub::{FakeHub, Faults, files};

#[test]
fn bad_input_is_told_in_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir(path("empty")).unwrap();
    std::fs::write(path("text.gguf"), "no GGUF").unwrap();
    std::fs::write(path("cut.gguf"), "GGUF").unwrap();
    let server = FakeHub::start(files(), Faults::default());
    let (endpoint, model) = (server.endpoint.as_str(), fp8().to_str().unwrap().to_owned());
    let refused = |args: &[&str], code: i32, part: &str| {
        let ran = run(llamero(&cache, args));
        assert_eq!(ran.code, Some(code), "{args:?}: {ran:?}");
        assert!(ran.err.contains(part), "{args:?}: {ran:?} does not say {part:?}");
        assert_eq!(ran.out, "", "{args:?}");
    };
    refused(&["run", &path("none")], 2, "there is no file or folder");
    let mut loud = llamero(&cache, &["list"]);
    loud.env("LLAMERO_LOG", "loud=er=est");
    let ran = run(loud);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.err.contains("LLAMERO_LOG is \"loud=er=est\""), "{ran:?}");
    refused(&["run", &path("empty")], 2, "config.json");
    refused(&["run", &path("text.gguf")], 2, "is not a GGUF file");
    refused(&["run", &path("cut.gguf")], 2, "was not converted");
    refused(&["run", &model, "--file", "a.gguf"], 2, "--file chooses");
    refused(
        &["run", &model, "--quantize", "fp8", "--prompt", "x"],
        2,
        "was not quantised",
    );
    refused(&["run", &model, "--max-context-length", "100000"], 2, "lower it");
    refused(
        &["run", &model, "--temperature=-1", "--prompt", "x"],
        1,
        "temperature",
    );
    refused(&["pull", &model], 2, "only a repository");
    refused(&["rm", "nothing"], 2, "nothing in the cache is called nothing");
    refused(
        &["run", "org/unknown", "--endpoint", endpoint],
        2,
        "has no org/unknown@main",
    );
    refused(
        &["run", "org/model@v9", "--endpoint", endpoint],
        2,
        "not this revision",
    );
    refused(
        &["run", "org/model", "--endpoint", "nowhere"],
        2,
        "is not the address of a Hub",
    );
    refused(
        &["run", "org/model", "--endpoint", endpoint, "--file", "b.gguf"],
        2,
        "there are small.gguf",
    );
    refused(
        &["run", "org/model", "--token-file", &path("none")],
        1,
        "the token file",
    );
    let list = run(llamero(&cache, &["list"]));
    assert_eq!(list.out, "", "{list:?}");
}

#[test]
fn a_prompt_from_nowhere_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let ran = run(llamero(
        dir.path(),
        &["run", fp8().to_str().unwrap(), "--prompt", "-"],
    ));
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.err.contains("standard input is empty"), "{ran:?}");
}
