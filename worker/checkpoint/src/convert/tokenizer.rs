//! `tokenizer.json` and `tokenizer_config.json` from GGUF metadata: byte-level BPE as SmolLM and Llama 3 use it.

use serde_json::{Map, Value, json};

use super::ConvertError;
use crate::error::Result;
use crate::gguf::{GgufError, GgufFile, GgufValue};

/// Kinds of tokens in `tokenizer.ggml.token_type`.
const CONTROL: u32 = 3;
const USER_DEFINED: u32 = 4;

/// The split of Llama 3 (its `tokenizer.json`), before byte-level BPE.
const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

pub(super) struct Converted {
    pub(super) tokenizer: Value,
    pub(super) config: Value,
}

/// How text is cut before BPE, by the name that llama.cpp gives to the pre-tokenizer.
struct Family {
    pre_tokenizer: Value,
    ignore_merges: bool,
    /// Whether texts start with the first token where `tokenizer.ggml.add_bos_token` is absent, as llama.cpp has it.
    add_bos: bool,
}

pub(super) fn from_gguf(gguf: &GgufFile) -> Result<Converted> {
    let model = gguf.require("tokenizer.ggml.model", GgufValue::as_str)?;
    if model != "gpt2" {
        let (found, supported) = (model.to_owned(), "byte-level BPE (\"gpt2\") can be converted");
        return Err(ConvertError::Unsupported {
            what: "the tokenizer",
            found,
            supported,
        }
        .into());
    }
    let family = family(gguf.require("tokenizer.ggml.pre", GgufValue::as_str)?)?;
    let add_bos = add_bos(gguf, &family)?;
    let tokens = tokens(gguf)?;
    let merges = texts(gguf, "tokenizer.ggml.merges")?;
    let kinds = gguf
        .metadata()
        .get("tokenizer.ggml.token_type")
        .and_then(GgufValue::as_array)
        .unwrap_or(&[]);
    let vocab: Map<String, Value> = tokens
        .iter()
        .enumerate()
        .map(|(id, token)| ((*token).to_owned(), json!(id)))
        .collect();
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(&tokens, kinds),
        "normalizer": null,
        "pre_tokenizer": family.pre_tokenizer,
        "post_processor": post_processor(gguf, &tokens, add_bos),
        "decoder": byte_level(true),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": family.ignore_merges,
            "vocab": vocab,
            "merges": merges,
        },
    });
    Ok(Converted {
        tokenizer,
        config: tokenizer_config(gguf, &tokens),
    })
}

/// Whether every text starts with the first token. No model that writes answers wants its end token after every text.
fn add_bos(gguf: &GgufFile, family: &Family) -> Result<bool, ConvertError> {
    let flag = |key: &str| gguf.metadata().get(key).and_then(GgufValue::as_bool);
    if flag("tokenizer.ggml.add_eos_token") == Some(true) {
        return Err(ConvertError::Unsupported {
            what: "tokenizer.ggml.add_eos_token",
            found: "true".to_owned(),
            supported: "a tokenizer that ends every text with a token cannot be converted",
        });
    }
    Ok(flag("tokenizer.ggml.add_bos_token").unwrap_or(family.add_bos))
}

fn tokens(gguf: &GgufFile) -> Result<Vec<&str>> {
    let tokens = texts(gguf, "tokenizer.ggml.tokens")?;
    let rows = gguf.require_tensor("token_embd.weight")?.rows;
    if tokens.len() as u64 > rows {
        return Err(GgufError::Damaged {
            path: gguf.path().to_path_buf(),
            reason: format!(
                "it lists {} tokens and has embeddings for {rows}; the file is damaged",
                tokens.len()
            ),
        }
        .into());
    }
    Ok(tokens)
}

fn family(pre: &str) -> Result<Family, ConvertError> {
    match pre {
        "smollm" => Ok(Family {
            pre_tokenizer: json!({
                "type": "Sequence",
                "pretokenizers": [{ "type": "Digits", "individual_digits": true }, byte_level(true)],
            }),
            ignore_merges: false,
            add_bos: false,
        }),
        "llama-bpe" | "llama3" | "llama-v3" => Ok(Family {
            pre_tokenizer: json!({
                "type": "Sequence",
                "pretokenizers": [
                    { "type": "Split", "pattern": { "Regex": LLAMA3_SPLIT }, "behavior": "Isolated", "invert": false },
                    byte_level(false),
                ],
            }),
            ignore_merges: true,
            add_bos: true,
        }),
        other => Err(ConvertError::Unsupported {
            what: "the pre-tokenizer",
            found: other.to_owned(),
            supported: "those of SmolLM (\"smollm\") and Llama 3 (\"llama-bpe\") can be converted",
        }),
    }
}

fn byte_level(use_regex: bool) -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex })
}

fn texts<'a>(gguf: &'a GgufFile, key: &str) -> Result<Vec<&'a str>> {
    Ok(gguf.require(key, |value| {
        value.as_array()?.iter().map(GgufValue::as_str).collect()
    })?)
}

/// Control tokens are special: kept whole in the input, left out of decoded text.
fn added_tokens(tokens: &[&str], kinds: &[GgufValue]) -> Vec<Value> {
    let kinds = kinds.iter().map(GgufValue::as_u32);
    let added = tokens
        .iter()
        .enumerate()
        .zip(kinds)
        .filter(|(_, kind)| matches!(kind, Some(CONTROL | USER_DEFINED)));
    added
        .map(|((id, token), kind)| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": kind == Some(CONTROL),
            })
        })
        .collect()
}

fn named_token<'a>(gguf: &GgufFile, tokens: &[&'a str], key: &str) -> Option<&'a str> {
    let id = gguf
        .metadata()
        .get(&format!("tokenizer.ggml.{key}_token_id"))?
        .as_u32()?;
    tokens.get(id as usize).copied()
}

/// Models that want it get the first token in front of every text.
fn post_processor(gguf: &GgufFile, tokens: &[&str], add_bos: bool) -> Value {
    let id = gguf
        .metadata()
        .get("tokenizer.ggml.bos_token_id")
        .and_then(GgufValue::as_u32);
    let (true, Some(id), Some(bos)) = (add_bos, id, named_token(gguf, tokens, "bos")) else {
        return json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true });
    };
    let special = |type_id: u32| json!({ "SpecialToken": { "id": bos, "type_id": type_id } });
    let sequence = |name: &str, type_id: u32| json!({ "Sequence": { "id": name, "type_id": type_id } });
    json!({
        "type": "TemplateProcessing",
        "single": [special(0), sequence("A", 0)],
        "pair": [special(0), sequence("A", 0), special(1), sequence("B", 1)],
        "special_tokens": { bos: { "id": bos, "ids": [id], "tokens": [bos] } },
    })
}

fn tokenizer_config(gguf: &GgufFile, tokens: &[&str]) -> Value {
    let mut config = Map::new();
    config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
    config.insert("clean_up_tokenization_spaces".into(), json!(false));
    for (field, key) in [
        ("bos_token", "bos"),
        ("eos_token", "eos"),
        ("unk_token", "unknown"),
        ("pad_token", "padding"),
    ] {
        if let Some(token) = named_token(gguf, tokens, key) {
            config.insert(field.into(), json!(token));
        }
    }
    if let Some(length) = gguf
        .metadata()
        .get("llama.context_length")
        .and_then(GgufValue::as_u32)
    {
        config.insert("model_max_length".into(), json!(length));
    }
    if let Some(template) = gguf
        .metadata()
        .get("tokenizer.chat_template")
        .and_then(GgufValue::as_str)
    {
        config.insert("chat_template".into(), json!(template));
    }
    Value::Object(config)
}
