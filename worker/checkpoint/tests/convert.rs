//! GGUF files become checkpoints that can be opened, or are refused with a sentence.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::fs;
use std::path::Path;

use common::gguf::{FFN, Gguf, HIDDEN, add_tensors, tiny};
use llamero_checkpoint::config::Llama3Rope;
use llamero_checkpoint::convert::{ConvertOptions, gguf_to_hugging_face};
use llamero_checkpoint::dtype::extend_f32;
use llamero_checkpoint::gguf::GgufFile;
use llamero_checkpoint::{Checkpoint, ModelLayout, Result};
use proptest::prelude::*;
use serde_json::Value;

fn convert(folder: &Path, bytes: &[u8]) -> Result<Checkpoint> {
    let (source, target) = (folder.join("model.gguf"), folder.join("converted"));
    fs::write(&source, bytes).unwrap();
    gguf_to_hugging_face(
        &source,
        &target,
        ConvertOptions { max_file_bytes: 1500 },
        &mut |_| (),
    )?;
    let checkpoint = Checkpoint::open(&target)?;
    ModelLayout::check(&checkpoint)?;
    Ok(checkpoint)
}

fn refusal(gguf: &Gguf) -> String {
    let folder = tempfile::tempdir().unwrap();
    let said = convert(folder.path(), &gguf.bytes())
        .expect_err("must be refused")
        .to_string();
    assert!(!folder.path().join("converted").exists());
    assert_eq!(
        fs::read_dir(folder.path()).unwrap().count(),
        1,
        "nothing is left behind"
    );
    said
}

fn values(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let info = checkpoint.tensor(name).unwrap();
    let mut bytes = vec![0; info.bytes() as usize];
    checkpoint.read_at(name, 0, &mut bytes).unwrap();
    let mut values = Vec::new();
    assert!(extend_f32(info.dtype, &bytes, &mut values));
    values
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_small_llama() {
    let mut gguf = tiny();
    add_tensors(&mut gguf, false);
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = convert(folder.path(), &gguf.bytes()).unwrap();
    assert!(checkpoint.files().len() > 2, "1500 bytes a file make several");
    let config = checkpoint.config();
    assert!(!config.tie_word_embeddings && config.rope_scaling.is_none());
    assert_eq!((config.rms_norm_eps, config.rope_theta), (1e-5, 500_000.0));
    assert_eq!(checkpoint.generation().eos_token_ids, [5]);

    // The embedding counts up from 1; v and others keep their order; q and k get theirs back, head by head.
    assert_eq!(
        values(&checkpoint, "model.embed_tokens.weight")[..3],
        [1.0, 2.0, 3.0]
    );
    let gguf = GgufFile::open(&folder.path().join("model.gguf")).unwrap();
    let stored = |name: &str| {
        let tensor = &gguf.tensors()[name];
        let mut values = Vec::new();
        gguf.read_f32(tensor, 0, tensor.rows, &mut values).unwrap();
        values
    };
    assert_eq!(
        values(&checkpoint, "model.layers.0.self_attn.v_proj.weight"),
        stored("blk.0.attn_v.weight")
    );
    let permuted = stored("blk.0.attn_q.weight");
    let rows: Vec<_> = permuted.chunks(HIDDEN as usize).collect();
    let wanted: Vec<f32> = [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]
        .iter()
        .flat_map(|row| rows[*row])
        .copied()
        .collect();
    assert_eq!(
        values(&checkpoint, "model.layers.0.self_attn.q_proj.weight"),
        wanted
    );

    let tokenizer = json(&checkpoint.folder().join("tokenizer.json"));
    assert_eq!(tokenizer["model"]["vocab"]["ab"], 2);
    assert_eq!(tokenizer["added_tokens"][1]["content"], "<|end|>");
    assert_eq!(tokenizer["post_processor"]["type"], "TemplateProcessing");
    assert_eq!(tokenizer["model"]["ignore_merges"], true);
    assert_eq!(
        json(&checkpoint.folder().join("tokenizer_config.json"))["chat_template"],
        "{{ messages }}"
    );
}

#[test]
fn llama_3_1s_rotary_factors_become_its_parameters() {
    let mut gguf = tiny();
    gguf.number("llama.attention.key_length", 8);
    add_tensors(&mut gguf, false);
    let rope = Llama3Rope {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let factors = |rope: Llama3Rope| {
        let frequency = |index: i32| 500_000f64.powf(-2.0 * f64::from(index) / 8.0);
        (0..4)
            .map(|index| (frequency(index) / rope.scale(frequency(index))) as f32)
            .collect()
    };
    let mut other = tiny();
    add_tensors(&mut other, false);
    gguf.tensor("rope_freqs.weight", &[4], factors(rope));
    other.tensor(
        "rope_freqs.weight",
        &[4],
        factors(Llama3Rope { factor: 5.0, ..rope }),
    );

    let folder = tempfile::tempdir().unwrap();
    assert_eq!(
        convert(folder.path(), &gguf.bytes())
            .unwrap()
            .config()
            .rope_scaling,
        Some(rope)
    );
    assert!(refusal(&other).contains("Llama 3.1's and 3.2's can be converted"));
}

fn converted(change: impl FnOnce(&mut Gguf)) -> (Value, Value, Value) {
    let mut gguf = tiny();
    change(&mut gguf);
    add_tensors(&mut gguf, false);
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = convert(folder.path(), &gguf.bytes()).unwrap();
    let read = |name: &str| json(&checkpoint.folder().join(name));
    (
        read("config.json"),
        read("generation_config.json"),
        read("tokenizer.json"),
    )
}

#[test]
fn every_token_that_ends_an_answer_joins_the_list() {
    let (config, generation, _) = converted(|_| ());
    assert_eq!(
        (&config["eos_token_id"], &generation["eos_token_id"]),
        (&5.into(), &5.into())
    );

    let (config, generation, _) = converted(|gguf| {
        gguf.number("tokenizer.ggml.eot_token_id", 3);
        gguf.number("tokenizer.ggml.eom_token_id", 4);
    });
    let wanted = serde_json::json!([3, 4, 5]);
    assert_eq!(
        (&config["eos_token_id"], &generation["eos_token_id"]),
        (&wanted, &wanted)
    );

    // As llama.cpp converts Llama 3.1 Instruct: only eos is named, the others are known by their texts.
    let texts = [
        "a",
        "<|end_of_text|>",
        "ab",
        "<|eom_id|>",
        "<|begin_of_text|>",
        "<|eot_id|>",
    ];
    let (config, ..) = converted(|gguf| gguf.texts("tokenizer.ggml.tokens", &texts));
    assert_eq!(config["eos_token_id"], serde_json::json!([1, 3, 5]));
}

#[test]
fn without_a_flag_the_family_decides_whether_texts_start_with_a_token() {
    let starts = |flag: Option<bool>, pre: &str| {
        let (.., tokenizer) = converted(|gguf| {
            gguf.text("tokenizer.ggml.pre", pre);
            match flag {
                Some(flag) => gguf.flag("tokenizer.ggml.add_bos_token", flag),
                None => gguf.rename("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_bos_other"),
            }
        });
        tokenizer["post_processor"]["type"] == "TemplateProcessing"
    };
    assert!(starts(None, "llama-bpe") && !starts(None, "smollm"));
    assert!(starts(Some(true), "smollm") && !starts(Some(false), "llama-bpe"));
}

#[test]
fn other_models_are_refused_by_name() {
    let mut other = Gguf::new();
    other.text("general.architecture", "qwen2");
    assert!(refusal(&other).contains("qwen2"));

    let empty = tiny();
    assert!(refusal(&empty).contains("tensor token_embd.weight is missing"));

    let mut wide = tiny();
    wide.number("llama.attention.key_length", 4);
    add_tensors(&mut wide, false);
    assert!(refusal(&wide).contains("asks for 8 x 16"), "{}", refusal(&wide));

    let mut experts = tiny();
    experts.number("llama.expert_count", 8);
    add_tensors(&mut experts, false);
    assert!(refusal(&experts).contains("experts"));

    let mut split = tiny();
    split.number("split.no", 0);
    split.number("split.count", 4);
    let said = refusal(&split);
    assert!(
        said.contains("part 1 of a model in 4 files") && said.contains("--merge"),
        "{said}"
    );

    let with = |key: &str, value: u32| {
        let mut gguf = tiny();
        gguf.number(key, value);
        add_tensors(&mut gguf, false);
        refusal(&gguf)
    };
    assert!(with("llama.attention.sliding_window", 64).contains("sliding_window"));
    assert!(with("llama.attention.value_length", 4).contains("value_length"));
    assert!(with("llama.rope.dimension_count", 4).contains("dimension_count"));
    assert!(with("tokenizer.ggml.eot_token_id", 6).contains("not one of the 6 tokens"));

    let mut linear = tiny();
    linear.float("llama.rope.scaling.factor", 4.0);
    add_tensors(&mut linear, false);
    assert!(refusal(&linear).contains("linear by 4"));

    let mut bias = tiny();
    add_tensors(&mut bias, false);
    bias.tensor("blk.0.attn_q.bias", &[HIDDEN], vec![0.5; HIDDEN as usize]);
    assert!(refusal(&bias).contains("blk.0.attn_q.bias"));

    let mut more = tiny();
    more.texts("tokenizer.ggml.tokens", &["a", "b", "c", "d", "e", "f", "g"]);
    add_tensors(&mut more, false);
    assert!(refusal(&more).contains("lists 7 tokens and has embeddings for 6"));

    let mut ends = tiny();
    ends.flag("tokenizer.ggml.add_eos_token", true);
    add_tensors(&mut ends, false);
    assert!(refusal(&ends).contains("add_eos_token"));

    let mut tokenizer = tiny();
    tokenizer.text("tokenizer.ggml.pre", "deepseek");
    add_tensors(&mut tokenizer, false);
    assert!(refusal(&tokenizer).contains("deepseek"));
}

#[test]
fn damaged_files_are_refused() {
    let mut gguf = tiny();
    add_tensors(&mut gguf, false);
    let good = gguf.bytes();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let refusal = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        GgufFile::open(&path).expect_err("must be refused").to_string()
    };
    assert!(refusal(b"<html>").contains("not a GGUF file"));
    assert!(refusal(b"version https://git-lfs.github.com/spec/v1\n").contains("git lfs pull"));
    assert!(refusal(&good[..2]).contains("cut off"));
    assert!(refusal(&good[..good.len() - 4]).contains("ends beyond the end of the file"));
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = good.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    assert!(refusal(&with(4, &9u32.to_le_bytes())).contains("version 9"));
    assert!(refusal(&with(8, &u64::MAX.to_le_bytes())).contains("more than it can hold"));
    assert!(refusal(&with(16, &(1u64 << 40).to_le_bytes())).contains("more than it can hold"));
    let name = good.windows(6).position(|window| window == b"blk.0.").unwrap();
    let code = name + "blk.0.attn_norm.weight".len() + 4 + 8;
    for (number, name) in [
        (23u32, "IQ4_XS"),
        (39, "MXFP4"),
        (34, "TQ1_0"),
        (15, "Q8_K"),
        (99, "number 99"),
    ] {
        let said = refusal(&with(code, &number.to_le_bytes()));
        assert!(
            said.contains(&format!("ggml type {name}, which cannot be converted")),
            "{said}"
        );
    }
    assert!(refusal(&with(4, &3u32.to_be_bytes())).contains("big-endian"));
    // Every cut inside the header is noticed.
    for length in (0..good.len() - FFN as usize * 4).step_by(7) {
        refusal(&good[..length]);
    }
}

proptest! {
    /// Whatever a few flipped bytes make of a file, it is opened or refused; nothing panics or takes memory it should not.
    #[test]
    fn flipped_bytes_never_panic(flips in proptest::collection::vec((0..2000usize, any::<u8>()), 1..4)) {
        let mut gguf = tiny();
        add_tensors(&mut gguf, false);
        let mut bytes = gguf.bytes();
        for (at, value) in flips {
            bytes[at] = value;
        }
        let folder = tempfile::tempdir().unwrap();
        let _ = convert(folder.path(), &bytes);
    }
}
