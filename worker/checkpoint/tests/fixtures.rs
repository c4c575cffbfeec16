//! Equality, bit for bit, with what gguf, torch and transformers make of the same numbers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::collections::BTreeMap;
use std::fs;

use common::gguf::Gguf;
use common::{bytes, fixture, floats, model};
use llamero_checkpoint::gguf::GgufFile;
use llamero_checkpoint::quantize::quantize_row;
use llamero_checkpoint::safetensors::SafetensorsFile;
use llamero_checkpoint::{Checkpoint, e4m3};
use sha2::{Digest, Sha256};

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn hashes(table: &str) -> BTreeMap<String, String> {
    let json: BTreeMap<String, BTreeMap<String, String>> =
        serde_json::from_slice(&fs::read(fixture("weights.json")).unwrap()).unwrap();
    json[table].clone()
}

fn same_bits(ours: &[f32], wanted: &[f32], what: &str) {
    assert_eq!(ours.len(), wanted.len(), "{what}");
    for (index, (our, want)) in ours.iter().zip(wanted).enumerate() {
        assert_eq!(
            our.to_bits(),
            want.to_bits(),
            "{what}, element {index}: {our} and not {want}"
        );
    }
}

/// Of every type by its number in a file, two rows that are read one by one.
#[test]
fn all_block_formats_are_dequantised_exactly() {
    let file = SafetensorsFile::open(&fixture("ggml-blocks.safetensors")).unwrap();
    let kinds = [
        ("F32", 0),
        ("F16", 1),
        ("BF16", 30),
        ("Q4_0", 2),
        ("Q4_1", 3),
        ("Q5_0", 6),
        ("Q5_1", 7),
        ("Q8_0", 8),
        ("Q2_K", 10),
        ("Q3_K", 11),
        ("Q4_K", 12),
        ("Q5_K", 13),
        ("Q6_K", 14),
    ];
    assert_eq!(file.header().tensors.len(), 2 * kinds.len());
    let mut gguf = Gguf::new();
    for (name, code) in kinds {
        let cols = floats(&file, &format!("{name}.values")).len() as u64 / 2;
        gguf.stored(name, &[cols, 2], code, bytes(&file, &format!("{name}.raw")));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("blocks.gguf");
    fs::write(&path, gguf.bytes()).unwrap();
    let gguf = GgufFile::open(&path).unwrap();
    for (name, _) in kinds {
        let mut values = Vec::new();
        for row in 0..2 {
            gguf.read_f32(&gguf.tensors()[name], row, 1, &mut values).unwrap();
        }
        same_bits(&values, &floats(&file, &format!("{name}.values")), name);
    }
}

#[test]
fn the_gguf_of_smollm2_is_dequantised_exactly() {
    let gguf = GgufFile::open(&model("SmolLM2-135M-Instruct.Q4_1.gguf")).unwrap();
    let wanted = hashes("dequantized_f32");
    assert_eq!(gguf.tensors().len(), wanted.len());
    for (name, tensor) in gguf.tensors() {
        let mut values = Vec::new();
        gguf.read_f32(tensor, 0, tensor.rows, &mut values).unwrap();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(hex(&bytes), wanted[name], "{name}");
    }
}

fn check_checkpoint(name: &str, wanted: &BTreeMap<String, String>) -> usize {
    let checkpoint = Checkpoint::open(&model(name)).unwrap();
    let mut checked = 0;
    for (tensor, info) in checkpoint.tensors() {
        let Some(wanted) = wanted.get(tensor) else {
            continue;
        };
        let mut bytes = vec![0; info.bytes() as usize];
        checkpoint.read_at(tensor, 0, &mut bytes).unwrap();
        assert_eq!(&hex(&bytes), wanted, "{tensor} of {name}");
        checked += 1;
    }
    checked
}

#[test]
fn the_converted_checkpoint_is_transformers_own() {
    assert_eq!(
        check_checkpoint("SmolLM2-135M-Instruct", &hashes("converted_bf16")),
        272
    );
}

#[test]
fn the_quantised_checkpoint_is_torchs_own() {
    // 7 matrices in 30 layers and the head, each with its scales; embedding and norms stay as they are.
    let name = "SmolLM2-135M-Instruct-FP8";
    assert_eq!(check_checkpoint(name, &hashes("quantized_fp8")), 2 * (7 * 30 + 1));
    let plain: BTreeMap<_, _> = hashes("converted_bf16")
        .into_iter()
        .filter(|(name, _)| name.contains("norm") || name.contains("embed"))
        .collect();
    assert_eq!(check_checkpoint(name, &plain), 62);
}

#[test]
fn all_codes_of_e4m3_are_torchs_own() {
    let file = SafetensorsFile::open(&fixture("e4m3.safetensors")).unwrap();
    let decoded = floats(&file, "decoded");
    assert_eq!(decoded.len(), 256);
    for (code, wanted) in (0..=255u8).zip(&decoded) {
        let ours = e4m3::decode(code);
        assert!(
            ours.to_bits() == wanted.to_bits() || (ours.is_nan() && wanted.is_nan()),
            "{code:#04x}"
        );
    }
    let inputs = floats(&file, "encode_inputs");
    assert!(inputs.len() > 2000);
    for (input, wanted) in inputs.iter().zip(bytes(&file, "encode_codes")) {
        assert_eq!(e4m3::encode(*input), wanted, "{input}");
    }
}

#[test]
fn rows_are_quantised_as_torch_does() {
    let file = SafetensorsFile::open(&fixture("e4m3.safetensors")).unwrap();
    let cols = file.tensor("rows").unwrap().shape[1] as usize;
    let (rows, codes, scales) = (
        floats(&file, "rows"),
        bytes(&file, "row_codes"),
        floats(&file, "row_scales"),
    );
    for ((row, wanted), scale) in rows.chunks(cols).zip(codes.chunks(cols)).zip(scales) {
        let mut ours = Vec::new();
        assert_eq!(quantize_row(row, &mut ours), Some(scale));
        assert_eq!(ours, wanted);
    }
    assert_eq!(quantize_row(&[1.0, f32::NAN], &mut Vec::new()), None);
    assert_eq!(quantize_row(&[f32::NEG_INFINITY], &mut Vec::new()), None);
}
