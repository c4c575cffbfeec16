//! Checkpoints as their publishers ship them are read as they mean; what means something else is refused by name.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::fs;

use common::published::{Form, LAYERS, Published, Shape, files, loaded, write};
use llamero_checkpoint::config::{Llama3Rope, QuantMethod};
use llamero_checkpoint::layout::TensorId;
use llamero_checkpoint::{
    Checkpoint, CheckpointSummary, Dtype, GenerationConfig, LlamaConfig, ModelLayout, TensorKind, Topology,
};
use serde_json::{Value, json};

const LLAMA_3_1: Llama3Rope = Llama3Rope {
    factor: 8.0,
    low_freq_factor: 1.0,
    high_freq_factor: 4.0,
    original_max_position_embeddings: 8192,
};

fn is_meta_fp8(id: TensorId) -> bool {
    id.layer.is_some_and(|layer| layer != 0 && layer != LAYERS - 1) && id.kind.is_feed_forward()
}

fn every_layer(id: TensorId, form: Form) -> Form {
    form.filter(|_| id.layer.is_some() && id.kind.is_linear())
}

fn beside(id: TensorId, leaves: &[&'static str]) -> Vec<&'static str> {
    if id.layer.is_some() && id.kind.is_linear() {
        leaves.to_vec()
    } else {
        vec![]
    }
}

/// The true configuration is understood, and the small checkpoint means what was written.
fn check(name: &str, sizes: [u32; 4], published: &Published, weights: &str, method: Option<QuantMethod>) {
    let config = LlamaConfig::from_json(files(name)["config.json"].clone()).unwrap();
    let [hidden, layers, q_heads, ffn] = sizes;
    assert_eq!(
        [config.hidden_size, config.layers, config.q_heads, config.ffn_size],
        [hidden, layers, q_heads, ffn]
    );
    assert_eq!(
        (config.kv_heads, config.head_dim, config.vocab_size),
        (8, 128, 128_256)
    );
    assert_eq!((config.rope_theta, config.rms_norm_eps), (500_000.0, 1e-5));

    let checkpoint = Checkpoint::open(published.folder.path()).unwrap();
    let layout = ModelLayout::check(&checkpoint).unwrap();
    let summary = CheckpointSummary::new(&checkpoint, &layout, Topology::tensor(2));
    assert_eq!(summary.weights, weights, "{name}");
    let found = checkpoint.config().quantization.as_ref();
    assert_eq!(found.map(|quantization| quantization.method), method);
    let loaded = loaded(&checkpoint);
    assert_eq!(loaded.len(), published.values.len());
    for (id, wanted) in &published.values {
        assert!(loaded[id] == *wanted, "{id} of {name}");
    }
}

fn check_defaults(published: &Published, rope: Option<Llama3Rope>, eos: &[u32]) {
    let checkpoint = Checkpoint::open(published.folder.path()).unwrap();
    assert_eq!(checkpoint.config().rope_scaling, rope);
    let wanted = GenerationConfig {
        // The files name Meta's ids; these models have a smaller vocabulary.
        eos_token_ids: vec![],
        bos_token_id: Some(128_000),
        do_sample: Some(true),
        temperature: Some(0.6),
        top_p: Some(0.9),
        top_k: None,
    };
    assert_eq!(*checkpoint.generation(), wanted);
    let file = published.folder.path().join("generation_config.json");
    assert_eq!(GenerationConfig::read(&file).unwrap().eos_token_ids, eos);
}

const EOS: [u32; 3] = [128_001, 128_008, 128_009];

#[test]
fn meta_8b_and_70b() {
    for (name, sizes) in [
        ("meta-8b", [4096, 32, 32, 14336]),
        ("meta-70b", [8192, 80, 64, 28672]),
    ] {
        let published = write(name, |_| None, |_| vec![]);
        check(name, sizes, &published, "bf16", None);
        check_defaults(&published, Some(LLAMA_3_1), &EOS);
    }
}

/// Llama 3.2: the true shapes, one table that is embedding and head, positions scaled by 32.
#[test]
fn meta_1b_and_3b_of_3_2() {
    for (name, sizes, head_dim, parameters) in [
        ("meta-3.2-1b", [2048, 16, 32, 8192], 64, 1_235_814_400),
        ("meta-3.2-3b", [3072, 28, 24, 8192], 128, 3_212_749_824),
    ] {
        let config = LlamaConfig::from_json(files(name)["config.json"].clone()).unwrap();
        assert_eq!(
            [config.hidden_size, config.layers, config.q_heads, config.ffn_size],
            sizes
        );
        assert_eq!(
            (config.kv_heads, config.head_dim, config.vocab_size),
            (8, head_dim, 128_256)
        );
        assert!(config.tie_word_embeddings);
        let of = |kind| TensorId { layer: None, kind };
        let counted = TensorId::all(&config).filter(|id| *id != of(TensorKind::Head));
        let count = |id: TensorId| {
            let (rows, cols) = id.kind.shape(&config);
            rows * cols
        };
        assert_eq!(counted.map(count).sum::<u64>(), parameters, "{name}");

        let published = write(name, |_| None, |_| vec![]);
        let further = Llama3Rope {
            factor: 32.0,
            ..LLAMA_3_1
        };
        check_defaults(&published, Some(further), &EOS);
        let checkpoint = Checkpoint::open(published.folder.path()).unwrap();
        assert!(ModelLayout::check(&checkpoint).unwrap().is_tied());
        let loaded = loaded(&checkpoint);
        for (id, wanted) in &published.values {
            let held = loaded.get(id).or_else(|| loaded.get(&of(TensorKind::Head)));
            assert!(held == Some(wanted), "{id} of {name}");
        }
    }
}

/// Attention, first and last layer, embedding and head are bf16; the rest has F32 or bf16 scales of shape `[N, 1]`.
#[test]
fn meta_405b_fp8() {
    for dtype in [Dtype::F32, Dtype::BF16] {
        let form = |id| is_meta_fp8(id).then_some(("weight_scale", dtype, Shape::Column));
        let published = write("meta-405b-fp8", form, |_| vec![]);
        let method = Some(QuantMethod::FbgemmFp8);
        check(
            "meta-405b-fp8",
            [16384, 126, 128, 53248],
            &published,
            "mixed",
            method,
        );
        check_defaults(&published, Some(LLAMA_3_1), &EOS);
        let checkpoint = Checkpoint::open(published.folder.path()).unwrap();
        let quantization = checkpoint.config().quantization.clone().unwrap();
        assert_eq!(quantization.activation_scale_ub, Some(1200.0));
        // 4 matrices of attention in every layer, 3 more in two layers, the head.
        assert_eq!(quantization.excluded.len(), 4 * 126 + 3 * 2 + 1);
    }
}

/// The list of modules in the configuration may say anything: the types in the headers are the truth.
#[test]
fn headers_decide_and_not_the_list() {
    let form = |id| is_meta_fp8(id).then_some(("weight_scale", Dtype::F32, Shape::Column));
    let published = write("meta-405b-fp8", form, |_| vec![]);
    let path = published.folder.path().join("config.json");
    for list in [
        json!([]),
        json!(null),
        json!(["model.layers.1.mlp.up_proj", "lm_head"]),
    ] {
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config["quantization_config"]["modules_to_not_convert"] = list;
        fs::write(&path, config.to_string()).unwrap();
        let loaded = loaded(&Checkpoint::open(published.folder.path()).unwrap());
        assert!(loaded == published.values);
    }
}

#[test]
fn compressed_tensors_by_channel_and_by_tensor() {
    let method = Some(QuantMethod::CompressedTensors);
    for dtype in [Dtype::BF16, Dtype::F32] {
        let form = |id| every_layer(id, Some(("weight_scale", dtype, Shape::Column)));
        let published = write("redhat-70b-fp8-dynamic", form, |_| vec![]);
        let sizes = [8192, 80, 64, 28672];
        check("redhat-70b-fp8-dynamic", sizes, &published, "fp8", method);
        check_defaults(&published, Some(LLAMA_3_1), &EOS);
    }
    for (dtype, shape) in [(Dtype::F32, Shape::One), (Dtype::BF16, Shape::Scalar)] {
        let form = |id| every_layer(id, Some(("weight_scale", dtype, shape)));
        let published = write("neuralmagic-8b-fp8", form, |id| beside(id, &["input_scale"]));
        check(
            "neuralmagic-8b-fp8",
            [4096, 32, 32, 14336],
            &published,
            "fp8",
            method,
        );
    }
}

#[test]
fn modelopt_with_its_sidecar() {
    // Scales of a quantised cache lie beside k and v; the cache is kept in bf16.
    let companions = |id: TensorId| match id.kind {
        TensorKind::K => beside(id, &["input_scale", "k_scale"]),
        TensorKind::V => beside(id, &["input_scale", "v_scale"]),
        _ => beside(id, &["input_scale"]),
    };
    for shape in [Shape::Scalar, Shape::Rows] {
        let form = |id| every_layer(id, Some(("weight_scale", Dtype::F32, shape)));
        let published = write("nvidia-8b-fp8", form, companions);
        let method = Some(QuantMethod::Modelopt);
        check_small("nvidia-8b-fp8", &published, method);
        check_defaults(&published, Some(LLAMA_3_1), &EOS);
    }
}

fn check_small(name: &str, published: &Published, method: Option<QuantMethod>) {
    check(name, [4096, 32, 32, 14336], published, "fp8", method);
}

/// `quant_method: "fp8"` of AutoFP8 (Llama 3, static) and of transformers 5 (dynamic, `rope_parameters`, `dtype`).
#[test]
fn plain_fp8_by_tensor() {
    let method = Some(QuantMethod::Fp8);
    let form = |id| every_layer(id, Some(("weight_scale", Dtype::F32, Shape::One)));
    let published = write("autofp8-8b-static", form, |id| beside(id, &["input_scale"]));
    check_small("autofp8-8b-static", &published, method);
    check_defaults(&published, None, &[128_001, 128_009]);

    // Without generation_config.json the one id of config.json counts.
    fs::remove_file(published.folder.path().join("generation_config.json")).unwrap();
    let checkpoint = Checkpoint::open(published.folder.path()).unwrap();
    assert_eq!(checkpoint.config().eos_token_ids, [128_001]);
    assert_eq!(checkpoint.generation().temperature, None);

    let form = |id| every_layer(id, Some(("weight_scale_inv", Dtype::F32, Shape::Scalar)));
    let published = write("transformers5-8b-fp8-dynamic", form, |id| {
        beside(id, &["activation_scale"])
    });
    check_small("transformers5-8b-fp8-dynamic", &published, method);
    check_defaults(&published, Some(LLAMA_3_1), &EOS);
}

#[test]
fn block_wise_fp8_is_refused_by_name() {
    let json = files("transformers-8b-fp8-blocks")["config.json"].clone();
    let said = LlamaConfig::from_json(json).unwrap_err().to_string();
    assert!(
        said.contains("fp8 with a scale for each block of [128,128] (weight_block_size)"),
        "{said}"
    );
    assert!(said.contains("use the bf16 weights"), "{said}");
}

/// Tensors that no Llama of this size has would be left out of the sum, so the checkpoint is refused.
#[test]
fn tensors_that_would_change_the_answer_are_refused_by_name() {
    let refusal = |leaf: &'static str| {
        let companions = |id: TensorId| match (id.kind, id.layer) {
            (TensorKind::Q, Some(1)) => vec![leaf],
            _ => vec![],
        };
        let published = write("meta-8b", |_| None, companions);
        let checkpoint = Checkpoint::open(published.folder.path()).unwrap();
        ModelLayout::check(&checkpoint).unwrap_err().to_string()
    };
    let said = refusal("bias");
    assert!(
        said.contains("layers.1.self_attn.q_proj.bias") && said.contains("biases"),
        "{said}"
    );
    assert!(refusal("pre_quant_scale").contains("change the answer"));
    assert!(refusal("lora_A.weight").contains("q_proj.lora_A.weight"));

    let published = write("meta-8b", |_| None, |_| vec![]);
    let path = published.folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["num_hidden_layers"] = json!(LAYERS - 1);
    fs::write(&path, config.to_string()).unwrap();
    let checkpoint = Checkpoint::open(published.folder.path()).unwrap();
    let said = ModelLayout::check(&checkpoint).unwrap_err().to_string();
    assert!(
        said.contains("model.layers.3.") && said.contains("config.json has 3 layers"),
        "{said}"
    );
}
