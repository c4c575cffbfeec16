//! Damaged, incomplete and unsuitable checkpoints are refused with a sentence that says what to do.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::{TINY, config_json, header, tensors, write_checkpoint, write_sparse};
use llamero_checkpoint::safetensors::SafetensorsFile;
use llamero_checkpoint::{Checkpoint, ContentIdentity, LlamaConfig, ModelLayout, Result};
use proptest::prelude::*;
use serde_json::{Value, json};

fn open(folder: &Path) -> Result<()> {
    let checkpoint = Checkpoint::open(folder)?;
    ModelLayout::check(&checkpoint)?;
    Ok(())
}

fn refusal(folder: &Path) -> String {
    open(folder).expect_err("must be refused").to_string()
}

fn tiny(edit: impl FnOnce(&Path)) -> String {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path(), TINY, 5, |_| true);
    open(folder.path()).unwrap();
    edit(folder.path());
    refusal(folder.path())
}

fn assert_says(refusal: &str, parts: &[&str]) {
    for part in parts {
        assert!(refusal.contains(part), "{refusal:?} should say {part:?}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let said = tiny(|folder| fs::remove_file(folder.join("model-2.safetensors")).unwrap());
    assert_says(
        &said,
        &["model-2.safetensors", "not there", "1 of ", "finish the download"],
    );
}

/// A ban of such a token would be no executable step.
#[test]
fn only_tokens_of_the_vocabulary_end_a_text() {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path(), TINY, 5, |_| true);
    let ends = |text: &str| {
        fs::write(folder.path().join("generation_config.json"), text).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        checkpoint.generation().eos_token_ids.clone()
    };
    assert_eq!(TINY.vocab, 300);
    assert_eq!(ends(r#"{"eos_token_id": [299, 300, 128009, 7]}"#), [299, 7]);
    assert_eq!(ends(r#"{"eos_token_id": 128009}"#), [0; 0]);
    let mut config = config_json(TINY);
    config["eos_token_id"] = json!([300, 2]);
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    assert_eq!(ends("{}"), [2]);
}

/// The file of this process's own memory lies under every name; nothing is mapped at its start, so reading it there fails with
/// EIO. A link to itself stands for a file system that does not even say what a name is.
#[test]
fn a_disk_that_does_not_answer_may_answer_another_time() {
    let names = [
        "config.json",
        "generation_config.json",
        "hf_quant_config.json",
        "model.safetensors.index.json",
        "model-1.safetensors",
        "tokenizer.json",
    ];
    for name in names {
        for target in [Path::new("/proc/self/mem"), Path::new(name)] {
            let folder = tempfile::tempdir().unwrap();
            write_checkpoint(folder.path(), TINY, 5, |_| true);
            let file = folder.path().join(name);
            let kept = folder.path().join("kept");
            let there = fs::rename(&file, &kept).is_ok();
            std::os::unix::fs::symlink(target, &file).unwrap();
            let opened = |folder: &Path| {
                open(folder)?;
                ContentIdentity::of(&Checkpoint::open(folder)?)
            };
            // A file of weights that claims to be empty is cut off.
            if (name, target) != ("model-1.safetensors", Path::new("/proc/self/mem")) {
                let error = opened(folder.path()).unwrap_err();
                assert!(error.is_passing(), "{name}: {error}");
                assert!(error.to_string().contains(name), "{error}");
            }
            fs::remove_file(&file).unwrap();
            if there {
                fs::rename(&kept, &file).unwrap();
            }
            opened(folder.path()).unwrap();
        }
    }
    let folder = tempfile::tempdir().unwrap();
    assert!(!open(folder.path()).unwrap_err().is_passing());
}

#[test]
fn a_truncated_file_is_named() {
    let cut = |folder: &Path, by: u64| {
        let file = OpenOptions::new()
            .write(true)
            .open(folder.join("model-1.safetensors"))
            .unwrap();
        file.set_len(file.metadata().unwrap().len() - by).unwrap();
    };
    assert_says(
        &tiny(|folder| cut(folder, 1)),
        &["model-1.safetensors", "cut off", "download it again"],
    );
    let header = |folder: &Path, len| {
        File::options()
            .write(true)
            .open(folder.join("model-1.safetensors"))
            .unwrap()
            .set_len(len)
            .unwrap()
    };
    assert_says(&tiny(|folder| header(folder, 100)), &["cut off", "has 100 bytes"]);
    assert_says(&tiny(|folder| header(folder, 3)), &["cut off", "has 3 bytes"]);
    assert_says(&tiny(|folder| header(folder, 0)), &["cut off"]);
}

#[test]
fn an_absurd_header_length_is_refused_before_memory_is_taken() {
    let said = tiny(|folder| fs::write(folder.join("model-0.safetensors"), [0xff; 64]).unwrap());
    assert_says(&said, &["18446744073709551615 bytes", "not a safetensors file"]);
    let said =
        tiny(|folder| fs::write(folder.join("model-0.safetensors"), b"<html>\n<body>Not found").unwrap());
    assert_says(&said, &["not a safetensors file"]);
}

#[test]
fn offsets_that_overlap_or_leave_holes_are_refused() {
    let with_header = |header: Value, data: u64| {
        tiny(|folder| write_sparse(&folder.join("model-0.safetensors"), &header, data))
    };
    let entry =
        |start: u64, end: u64| json!({"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]});
    assert_says(
        &with_header(json!({"a": entry(0, 8), "b": entry(4, 12)}), 12),
        &["b starts at byte 4, inside"],
    );
    assert_says(
        &with_header(json!({"a": entry(0, 8), "b": entry(9, 12)}), 12),
        &["bytes 8..9 belong to no tensor"],
    );
    assert_says(
        &with_header(json!({"a": entry(0, 8)}), 9),
        &["1 bytes follow the last tensor"],
    );
    assert_says(&with_header(json!({"a": entry(0, 8)}), 7), &["cut off"]);
    assert_says(
        &with_header(json!({"a": entry(0, 8)}), 8),
        &["index", "different downloads"],
    );
}

#[test]
fn a_damaged_index_is_named() {
    let index =
        |text: &str| tiny(|folder| fs::write(folder.join("model.safetensors.index.json"), text).unwrap());
    assert_says(&index("{"), &["index.json", "damaged"]);
    assert_says(
        &index(r#"{"weight_map": {"a": "../b.safetensors"}}"#),
        &["leads out of the folder"],
    );
    assert_says(
        &index(r#"{"weight_map": {}}"#),
        &["lacks the tensor model.embed_tokens.weight"],
    );
    let said = tiny(|folder| fs::remove_file(folder.join("model.safetensors.index.json")).unwrap());
    assert_says(
        &said,
        &["neither model.safetensors nor", "llamero-worker convert"],
    );
    let said = tiny(|folder| fs::remove_file(folder.join("config.json")).unwrap());
    assert_says(&said, &["config.json is not there", "llamero-worker convert"]);
}

#[test]
fn shapes_are_checked_against_the_configuration() {
    let config = |field: &str, value: Value| {
        tiny(|folder| {
            let mut json = config_json(TINY);
            json[field] = value;
            fs::write(folder.join("config.json"), json.to_string()).unwrap();
        })
    };
    assert_says(
        &config("vocab_size", json!(301)),
        &[
            "model.embed_tokens.weight",
            "[300, 64]",
            "[301, 64]",
            "vocab_size",
        ],
    );
    assert_says(
        &config("num_key_value_heads", json!(1)),
        &["k_proj", "[32, 64]", "[16, 64]", "duplicated kv heads"],
    );
    assert_says(
        &config("intermediate_size", json!(512)),
        &["gate_proj", "[256, 64]", "[512, 64]"],
    );
    assert_says(
        &config("num_hidden_layers", json!(3)),
        &["lacks the tensor model.layers.2"],
    );
}

#[test]
fn element_types_and_scales_are_checked() {
    let replace = |name: &str, change: &dyn Fn(&mut Value)| {
        tiny(|folder| {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path
                    .extension()
                    .is_none_or(|extension| extension != "safetensors")
                {
                    continue;
                }
                let bytes = fs::read(&path).unwrap();
                let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
                let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
                if let Some(entry) = header.get_mut(name) {
                    change(entry);
                    write_sparse(&path, &header, (bytes.len() - 8 - length) as u64);
                }
            }
        })
    };
    let q = "model.layers.0.self_attn.q_proj.weight";
    assert_says(
        &replace(q, &|entry| entry["dtype"] = json!("I8")),
        &[q, "element type I8", "F8_E4M3"],
    );
    let norm = "model.norm.weight";
    assert_says(
        &replace(norm, &|entry| {
            entry["dtype"] = json!("I16");
        }),
        &[norm, "BF16, F16 or F32 can be used"],
    );
    let scale = "model.layers.1.mlp.up_proj.weight_scale";
    assert_says(
        &replace(scale, &|entry| entry["shape"] = json!([2, 128])),
        &[scale, "[2, 128]", "256 rows", "block-wise"],
    );
    assert_says(
        &replace(scale, &|entry| entry["dtype"] = json!("I32")),
        &[scale, "element type I32"],
    );
}

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b\nsize 4976698672\n";

#[test]
fn a_git_lfs_pointer_is_named() {
    for name in [
        "model-1.safetensors",
        "config.json",
        "tokenizer.json",
        "model.safetensors.index.json",
    ] {
        let said = tiny(|folder| fs::write(folder.join(name), POINTER).unwrap());
        assert_says(&said, &[name, "Git-LFS pointer", "git lfs pull"]);
    }
}

/// A checkpoint that says its head is the embedding, and has an `lm_head` with `change` in one of its bytes.
fn tied_with_head(change: u8) -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let mut json = config_json(TINY);
    json["tie_word_embeddings"] = json!(true);
    fs::write(folder.path().join("config.json"), json.to_string()).unwrap();
    json["tie_word_embeddings"] = json!(false);
    let config = LlamaConfig::from_json(json).unwrap();
    let (header, data) = header(&tensors(&config, |_| false));
    let path = folder.path().join("model.safetensors");
    write_sparse(&path, &header, data);
    let file = File::options().write(true).open(&path).unwrap();
    let end = file.metadata().unwrap().len();
    // The head is the last tensor.
    file.write_all_at(&[change], end - 1).unwrap();
    open(folder.path())
}

#[test]
fn a_tied_model_with_another_head_is_refused() {
    tied_with_head(0).unwrap();
    let said = tied_with_head(1).unwrap_err().to_string();
    assert_says(
        &said,
        &[
            "tie_word_embeddings",
            "lm_head.weight that differs",
            "set tie_word_embeddings to false",
        ],
    );
}

proptest! {
    /// Whatever a few changed bytes make of a file, it is opened or refused; nothing panics.
    #[test]
    fn changed_bytes_never_panic(changes in proptest::collection::vec((0..250usize, any::<u8>()), 1..4)) {
        let entry = |start: u64| json!({"dtype": "BF16", "shape": [2, 4], "data_offsets": [start, start + 16]});
        let header = json!({"__metadata__": {"format": "pt"}, "a": entry(0), "b": entry(16), "c": entry(32)}).to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + 48, 7);
        for (at, value) in changes {
            bytes[at] = value;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        fs::write(&path, bytes).unwrap();
        if let Ok(file) = SafetensorsFile::open(&path) {
            for (name, info) in &file.header().tensors {
                file.read_at(name, 0, &mut vec![0; info.bytes() as usize]).unwrap();
            }
        }
    }
}
