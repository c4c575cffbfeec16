//! Files of an ordinary web server.

use std::path::Path;

use llamero_checkpoint::Checkpoint;
use llamero_fake_hub::{FakeHub, Faults};
use llamero_sources::{Access, FetchError, Manifest, Place};

use crate::common::model;
use crate::loads::{self, Forget, access, assert_same_bits, load};

const FP8: &str = "SmolLM2-135M-Instruct-FP8";

fn prepare(server: &FakeHub, access: &Access, folder: &Path) -> Result<Manifest, FetchError> {
    let url = server.web_url();
    loads::prepare(&Place::Web { url }, access, folder)
}

fn opened(server: &FakeHub, folder: &Path) -> Checkpoint {
    prepare(server, &access(), folder).unwrap();
    llamero_sources::open(folder, &access()).unwrap()
}

fn server_of(name: &str) -> FakeHub {
    FakeHub::of_folder(&model(name), "localhost", Faults::default())
}

#[test]
fn the_same_bits_are_loaded_whatever_passes_on_the_way() {
    let server = server_of(FP8);
    let dir = tempfile::tempdir().unwrap();
    let remote = opened(&server, dir.path());
    {
        let mut faults = server.faults();
        faults.cuts = vec![0, 1, 7, 99_999, 1 << 20, 3_000_000, 2, 0, 1 << 21];
        faults.failing = 3;
    }
    assert_same_bits(FP8, &remote, 2);
    let faults = server.faults();
    assert_eq!(
        (faults.cuts.len(), faults.failing),
        (0, 0),
        "not every fault happened"
    );
    let without_tag = |asked: &&llamero_fake_hub::Asked| asked.from.is_some_and(|from| from > 0);
    let log = server.log();
    assert!(
        log.iter()
            .filter(without_tag)
            .all(|asked| asked.if_match.is_some()),
        "ranges of weights are asked for only of the file that was looked into"
    );
}

/// Files of another content must not be mixed with those that were looked into: neither within a load, nor between a pod that
/// was inspected and one that starts a day later.
#[test]
fn a_file_that_is_replaced_is_never_mixed_in() {
    let server = server_of(FP8);
    let dir = tempfile::tempdir().unwrap();
    let remote = opened(&server, &dir.path().join("a"));
    let pinned = Manifest::read(&dir.path().join("a")).unwrap().unwrap();
    load(&remote, 2, 0, &Forget).unwrap();

    server.faults().replaced = true;
    let error = load(&remote, 2, 0, &Forget).unwrap_err().to_string();
    assert!(
        error.contains("changed at localhost") && error.contains("rollout.restartedAt"),
        "{error}"
    );
    let later = prepare(&server, &access(), &dir.path().join("b")).unwrap();
    let error = later.check(pinned.identity()).unwrap_err().to_string();
    assert!(error.contains("rollout.restartedAt"), "{error}");
    // What an earlier attempt has left in the same folder is replaced with it.
    let again = prepare(&server, &access(), &dir.path().join("a")).unwrap();
    assert_eq!(again.identity(), later.identity());
    let remote = llamero_sources::open(&dir.path().join("a"), &access()).unwrap();
    assert_same_bits(FP8, &remote, 1);
}

#[test]
fn sums_beside_the_files_find_a_wrong_byte() {
    let dir = tempfile::tempdir().unwrap();
    let files = dir.path().join("files");
    std::fs::create_dir(&files).unwrap();
    for name in [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    ] {
        std::os::unix::fs::symlink(model(FP8).join(name), files.join(name)).unwrap();
    }
    let output = std::process::Command::new("sha256sum")
        .args(["config.json", "model.safetensors"])
        .current_dir(&files)
        .output()
        .unwrap();
    std::fs::write(files.join("SHA256SUMS"), output.stdout).unwrap();
    let server = FakeHub::of_folder(&files, "localhost", Faults::default());
    let remote = opened(&server, &dir.path().join("m"));
    server.faults().wrong = 1;
    let error = load(&remote, 1, 0, &Forget).unwrap_err().to_string();
    assert!(error.contains("arrived damaged"), "{error}");
    load(&remote, 1, 0, &Forget).unwrap();
}

#[test]
fn a_refusal_says_what_to_do() {
    let server = server_of(FP8);
    let dir = tempfile::tempdir().unwrap();
    let refused = |access: &Access, part: &str| {
        let error = prepare(&server, access, &dir.path().join("m")).unwrap_err();
        assert!(error.to_string().contains(part), "{error} does not say {part:?}");
        assert!(error.is_final(), "{error}");
    };
    server.faults().token = Some("right".to_owned());
    refused(
        &access(),
        "in a Secret that model.source.https.tokenSecretRef names",
    );
    let with_token = |token: &str| Access {
        token: Some(token.to_owned()),
        ..access()
    };
    refused(&with_token("wrong"), "(401)");
    prepare(&server, &with_token("right"), &dir.path().join("n")).unwrap();
    server.faults().token = None;
    server.faults().missing = Some("tokenizer.json".to_owned());
    refused(&access(), "has no tokenizer.json of http://localhost");
    server.faults().missing = Some("model.safetensors".to_owned());
    refused(&access(), "has no model.safetensors of http://localhost");
    let place = Place::Web {
        url: "localhost/x".to_owned(),
    };
    let error = loads::prepare(&place, &access(), dir.path())
        .unwrap_err()
        .to_string();
    assert!(error.contains("model.source.https.url"), "{error}");
}

#[test]
fn a_server_without_ranges_is_told_so() {
    let server = server_of(FP8);
    let dir = tempfile::tempdir().unwrap();
    server.faults().no_ranges = true;
    let remote = opened(&server, dir.path());
    let error = load(&remote, 2, 1, &Forget).unwrap_err().to_string();
    assert!(error.contains("a mirror that knows them"), "{error}");
}
