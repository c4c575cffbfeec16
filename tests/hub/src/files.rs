//! A small checkpoint.

use std::collections::BTreeMap;

/// The files of a checkpoint that is small, and no real one beyond its configuration, with others that are not wanted.
pub fn files() -> BTreeMap<String, Vec<u8>> {
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "torch_dtype": "bfloat16", "tie_word_embeddings": true,
    });
    let index = serde_json::json!({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}});
    let bytes = |seed: usize, length: usize| {
        (0..length)
            .map(|at| (at * 31 + at / 251 + seed) as u8)
            .collect::<Vec<u8>>()
    };
    BTreeMap::from([
        ("config.json".to_owned(), config.to_string().into_bytes()),
        ("tokenizer.json".to_owned(), bytes(1, 100_000)),
        ("tokenizer_config.json".to_owned(), b"{}".to_vec()),
        ("generation_config.json".to_owned(), b"{}".to_vec()),
        (
            "model.safetensors.index.json".to_owned(),
            index.to_string().into_bytes(),
        ),
        ("model-1.safetensors".to_owned(), bytes(2, 300_000)),
        ("model-2.safetensors".to_owned(), bytes(3, 200_000)),
        ("model-3.safetensors".to_owned(), bytes(4, 200_000)),
        ("original/consolidated.00.pth".to_owned(), bytes(5, 200_000)),
        ("small.gguf".to_owned(), bytes(6, 50_000)),
        ("README.md".to_owned(), bytes(7, 500)),
    ])
}
