//! The content identity: the same for the same model however it is stored, another for another model.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::{LLAMA_405B, Sizes, TINY, config_json, header, tensors, write_checkpoint, write_sparse};
use llamero_checkpoint::{Checkpoint, ContentIdentity, LlamaConfig};
use serde_json::json;

fn identity(folder: &Path) -> ContentIdentity {
    ContentIdentity::of(&Checkpoint::open(folder).unwrap()).unwrap()
}

fn tiny(per_file: usize, edit: impl FnOnce(&Path)) -> ContentIdentity {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path(), TINY, per_file, |_| true);
    fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    edit(folder.path());
    identity(folder.path())
}

#[test]
fn the_same_model_however_it_is_cut_into_files() {
    let one = tiny(5, |_| {});
    assert_eq!(one, tiny(7, |_| {}));
    let single = tempfile::tempdir().unwrap();
    let json = config_json(TINY);
    fs::write(single.path().join("config.json"), json.to_string()).unwrap();
    fs::write(single.path().join("tokenizer.json"), "{}").unwrap();
    let config = LlamaConfig::from_json(json).unwrap();
    let (header, data) = header(&tensors(&config, |_| true));
    write_sparse(&single.path().join("model.safetensors"), &header, data);
    assert_eq!(one, identity(single.path()));
}

#[test]
fn weights_configuration_and_tokenizer_count() {
    let mut seen = vec![tiny(5, |_| {})];
    // Every matrix of a tiny model is small enough to be hashed whole: its last byte counts.
    seen.push(tiny(5, |folder| {
        let file = File::options()
            .write(true)
            .open(folder.join("model-1.safetensors"))
            .unwrap();
        let end = file.metadata().unwrap().len();
        file.write_all_at(&[1], end - 1).unwrap();
    }));
    seen.push(tiny(5, |folder| {
        fs::write(folder.join("tokenizer.json"), "{ }").unwrap()
    }));
    seen.push(tiny(5, |folder| {
        fs::write(folder.join("tokenizer_config.json"), "{}").unwrap()
    }));
    seen.push(tiny(5, |folder| {
        fs::write(folder.join("generation_config.json"), r#"{"temperature": 0.6}"#).unwrap()
    }));
    seen.push(tiny(5, |folder| {
        let mut json = config_json(TINY);
        json["eos_token_id"] = json!(7);
        fs::write(folder.join("config.json"), json.to_string()).unwrap();
    }));
    seen.push(tiny(5, |folder| {
        let mut json = config_json(TINY);
        json["rope_theta"] = json!(10000.0);
        fs::write(folder.join("config.json"), json.to_string()).unwrap();
    }));
    seen.push(tiny(5, |folder| {
        let mut json = config_json(TINY);
        json["rope_scaling"]["factor"] = json!(32.0);
        fs::write(folder.join("config.json"), json.to_string()).unwrap();
    }));
    for (i, one) in seen.iter().enumerate() {
        assert!(!seen[..i].contains(one), "change {i} does not show");
    }
}

/// Matrices of more than three pages, which are sampled.
const SAMPLED: Sizes = Sizes {
    hidden: 256,
    ffn: 512,
    ..TINY
};

/// Training changes a matrix everywhere, so samples see it.
#[test]
fn a_matrix_that_was_trained_anew_shows() {
    let json = config_json(SAMPLED);
    let config = LlamaConfig::from_json(json.clone()).unwrap();
    let (header, data) = header(&tensors(&config, |_| true));
    let trained = |anew: Option<&str>| {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), json.to_string()).unwrap();
        let path = folder.path().join("model.safetensors");
        write_sparse(&path, &header, data);
        let file = File::options().write(true).open(path).unwrap();
        let first = 8 + header.to_string().len() as u64;
        for (name, entry) in header.as_object().unwrap() {
            let [start, end] = [0, 1].map(|at| entry["data_offsets"][at].as_u64().unwrap());
            let mut noise = Xorshift(if anew == Some(name) { 2 } else { 1 });
            let bytes: Vec<u8> = (start..end).map(|_| noise.byte()).collect();
            file.write_all_at(&bytes, first + start).unwrap();
        }
        identity(folder.path())
    };
    let one = trained(None);
    assert_eq!(one, trained(None));
    let sampled: Vec<_> = header
        .as_object()
        .unwrap()
        .iter()
        .filter(|(_, entry)| {
            entry["data_offsets"][1].as_u64() > entry["data_offsets"][0].as_u64().map(|at| at + 32_768)
        })
        .collect();
    assert!(sampled.len() > 10);
    for (name, _) in sampled {
        assert_ne!(one, trained(Some(name)), "{name}");
    }
}

/// Marsaglia (2003), "Xorshift RNGs".
struct Xorshift(u64);

impl Xorshift {
    fn byte(&mut self) -> u8 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 24) as u8
    }
}

/// What it costs for the largest model: 12 KiB of each of two thousand tensors.
#[test]
fn a_405b_costs_megabytes() {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path(), LLAMA_405B, 40, |id| id.layer.is_some());
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let one = ContentIdentity::of(&checkpoint).unwrap();
    assert!(
        checkpoint.bytes_read() < 26_000_000,
        "{}",
        checkpoint.bytes_read()
    );
    assert_eq!(one, ContentIdentity::of(&checkpoint).unwrap());
}

#[test]
fn it_is_written_and_read() {
    let one = tiny(5, |_| {});
    let text = one.to_string();
    assert_eq!((text.len(), one.short().len()), (64, 12));
    assert!(text.starts_with(&one.short()));
    assert_eq!(text.parse(), Ok(one));
    assert_eq!(format!("sha256:{text}").parse(), Ok(one));
    assert_eq!(
        serde_json::from_value::<ContentIdentity>(json!(text)).unwrap(),
        one
    );
    for bad in [
        "",
        "sha256:12",
        &"g".repeat(64),
        &format!("{text}0"),
        &"é".repeat(32),
    ] {
        assert!(
            bad.parse::<ContentIdentity>()
                .unwrap_err()
                .to_string()
                .contains("64 hexadecimal")
        );
    }
}
