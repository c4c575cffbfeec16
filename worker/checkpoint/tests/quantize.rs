//! Quantised checkpoints say what they are in the words of their publishers, and leave alone what those leave alone.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::process::Command;

use common::published::{LAYERS, Published, loaded, write_bf16};
use common::{LLAMA_405B, Sizes, write_checkpoint};
use llamero_checkpoint::layout::TensorId;
use llamero_checkpoint::quantize::{QuantizeOptions, Scheme, quantize_row, to_fp8};
use llamero_checkpoint::{Checkpoint, Dtype, Error, ModelLayout, TensorKind, e4m3};
use serde_json::{Value, json};

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn quantize(source: &Published, options: &QuantizeOptions) -> Result<(tempfile::TempDir, Checkpoint), Error> {
    let folder = tempfile::tempdir().unwrap();
    to_fp8(source.folder.path(), folder.path(), options, &mut |_| ())?;
    let checkpoint = Checkpoint::open(folder.path())?;
    Ok((folder, checkpoint))
}

fn meta(scheme: Scheme, head: bool) -> QuantizeOptions {
    QuantizeOptions {
        scheme,
        head,
        ..Default::default()
    }
}

/// Every matrix is FP8 exactly where `fp8` says so, and everything means what the rule of row-wise FP8 makes of it.
fn check(source: &Published, checkpoint: &Checkpoint, fp8: impl Fn(TensorId) -> bool) {
    let loaded = loaded(checkpoint);
    for (id, plain) in &source.values {
        let info = checkpoint.tensor(&id.name()).unwrap();
        let wanted = if fp8(*id) { Dtype::F8E4M3 } else { Dtype::BF16 };
        assert_eq!(info.dtype, wanted, "{id}");
        let cols = id.kind.shape(checkpoint.config()).1 as usize;
        let rows = plain.chunks(cols).flat_map(|row| {
            let mut codes = Vec::new();
            let scale = quantize_row(row, &mut codes).unwrap();
            codes.into_iter().map(move |code| e4m3::decode(code) * scale)
        });
        let wanted = if fp8(*id) { rows.collect() } else { plain.clone() };
        assert!(loaded[id] == wanted, "{id}");
    }
    // The list names every matrix that was left, and nothing else.
    let quantization = checkpoint.config().quantization.clone().unwrap();
    let left = source
        .values
        .keys()
        .filter(|id| id.kind.is_linear() && !fp8(**id));
    let mut left: Vec<_> = left.map(|id| id.module()).collect();
    let mut said = quantization.excluded;
    left.sort();
    said.sort();
    assert_eq!(said, left);
}

#[test]
fn the_head_stays_as_it_is_unless_asked() {
    let source = write_bf16("meta-8b", |_| ());
    for scheme in [Scheme::FbgemmFp8, Scheme::CompressedTensorsChannel] {
        for head in [false, true] {
            let (_folder, checkpoint) = quantize(&source, &meta(scheme, head)).unwrap();
            let fp8 = |id: TensorId| id.kind.is_linear() && (id.kind != TensorKind::Head || head);
            check(&source, &checkpoint, fp8);
        }
    }
}

#[test]
fn metas_scheme_leaves_what_meta_leaves() {
    let source = write_bf16("meta-8b", |_| ());
    let (folder, checkpoint) = quantize(&source, &meta(Scheme::FbgemmFp8Meta, false)).unwrap();
    let inner = |id: TensorId| id.layer.is_some_and(|layer| layer != 0 && layer != LAYERS - 1);
    check(&source, &checkpoint, |id| inner(id) && id.kind.is_feed_forward());
    let config = json(&folder.path().join("config.json"));
    assert_eq!(config["quantization_config"]["quant_method"], "fbgemm_fp8");
    assert_eq!(config["quantization_config"]["activation_scale_ub"], 1200.0);
    // Everything else of the configuration is the source's, and so are the files beside it.
    let mut without = config.clone();
    without.as_object_mut().unwrap().remove("quantization_config");
    assert_eq!(without, json(&source.folder.path().join("config.json")));
    for name in ["generation_config.json", "tokenizer_config.json"] {
        assert_eq!(
            json(&folder.path().join(name)),
            json(&source.folder.path().join(name))
        );
    }
    let scale = checkpoint
        .tensor("model.layers.1.mlp.down_proj.weight_scale")
        .unwrap();
    assert_eq!((scale.dtype, scale.shape.as_slice()), (Dtype::F32, &[64, 1][..]));
}

#[test]
fn compressed_tensors_is_announced_as_red_hat_does() {
    let source = write_bf16("meta-8b", |_| ());
    let (folder, _) = quantize(&source, &meta(Scheme::CompressedTensorsChannel, false)).unwrap();
    let ours = json(&folder.path().join("config.json"))["quantization_config"].clone();
    let red_hat =
        common::published::files("redhat-70b-fp8-dynamic")["config.json"]["quantization_config"].clone();
    let group = |json: &Value, part: &str, field: &str| json["config_groups"]["group_0"][part][field].clone();
    for part in ["weights", "input_activations"] {
        for field in [
            "num_bits",
            "type",
            "symmetric",
            "strategy",
            "dynamic",
            "group_size",
            "block_structure",
        ] {
            assert_eq!(
                group(&ours, part, field),
                group(&red_hat, part, field),
                "{part} {field}"
            );
        }
    }
    for field in ["quant_method", "format", "quantization_status", "kv_cache_scheme"] {
        assert_eq!(ours[field], red_hat[field]);
    }
    assert_eq!(ours["config_groups"]["group_0"]["targets"], json!(["Linear"]));
    assert_eq!(ours["ignore"], json!(["lm_head"]));
}

#[test]
fn a_tied_head_is_untied_only_where_it_is_quantised() {
    let source = write_bf16("meta-8b", |config| config["tie_word_embeddings"] = json!(true));
    let (_folder, tied) = quantize(&source, &meta(Scheme::FbgemmFp8, false)).unwrap();
    assert!(tied.config().tie_word_embeddings && tied.tensor("lm_head.weight").is_none());
    let (_folder, untied) = quantize(&source, &meta(Scheme::FbgemmFp8, true)).unwrap();
    assert!(!untied.config().tie_word_embeddings);
    assert_eq!(untied.tensor("lm_head.weight").unwrap().dtype, Dtype::F8E4M3);
    assert_eq!(
        untied.tensor("model.embed_tokens.weight").unwrap().dtype,
        Dtype::BF16
    );
}

#[test]
fn modules_can_be_kept_by_name_or_prefix() {
    let source = write_bf16("meta-8b", |_| ());
    let keep = |names: &[&str]| QuantizeOptions {
        keep: names.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    let options = keep(&["model.layers.1", "model.layers.2.mlp.up_proj"]);
    let (_folder, checkpoint) = quantize(&source, &options).unwrap();
    check(&source, &checkpoint, |id| {
        let kept = id.layer == Some(1) || (id.layer == Some(2) && id.kind == TensorKind::Up);
        id.layer.is_some() && id.kind.is_linear() && !kept
    });
    let refused = quantize(&source, &keep(&["model"])).unwrap_err().to_string();
    assert!(
        refused.contains("no matrix of the 4 layers is quantised"),
        "{refused}"
    );
}

#[test]
fn what_is_quantised_already_or_in_the_way_is_refused() {
    let source = write_bf16("meta-8b", |_| ());
    let (folder, _) = quantize(&source, &QuantizeOptions::default()).unwrap();
    let options = QuantizeOptions::default();
    let again = to_fp8(folder.path(), &folder.path().join("again"), &options, &mut |_| ());
    assert!(again.unwrap_err().to_string().contains("F8_E4M3 already"));
    let target = to_fp8(source.folder.path(), folder.path(), &options, &mut |_| ());
    assert!(target.unwrap_err().to_string().contains("not empty"));
}

/// Interrupted at every progress report in turn, the same command goes on, writes no finished file again, and makes the same bytes.
#[test]
fn an_interrupted_run_is_gone_on_with() {
    let source = write_bf16("meta-8b", |_| ());
    let options = QuantizeOptions {
        max_file_bytes: 60_000,
        ..meta(Scheme::FbgemmFp8, false)
    };
    let root = tempfile::tempdir().unwrap();
    let whole = root.path().join("whole");
    let mut reports = 0;
    to_fp8(source.folder.path(), &whole, &options, &mut |_| reports += 1).unwrap();
    let files = contents(&whole);
    assert!(
        files.len() > 5 && reports > 20,
        "{reports} reports, {} files",
        files.len()
    );
    for stop in (1..reports).step_by(7) {
        let target = root.path().join(format!("stopped-{stop}"));
        let mut left = stop;
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            to_fp8(source.folder.path(), &target, &options, &mut |_| {
                left -= 1;
                assert!(left > 0, "interrupted");
            })
        }));
        assert!(ended.is_err() && !target.exists());
        let partial = root.path().join(format!(".stopped-{stop}.partial"));
        let finished = written_at(&partial);
        to_fp8(source.folder.path(), &target, &options, &mut |_| ()).unwrap();
        assert!(contents(&target) == files, "stopped at {stop}");
        let now = written_at(&target);
        for (name, when) in &finished {
            assert_eq!(now.get(name), Some(when), "{name} was written again");
        }
    }
}

fn contents(folder: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap())
        })
        .collect()
}

/// When the whole files of weights were written.
fn written_at(folder: &Path) -> std::collections::BTreeMap<String, std::time::SystemTime> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let named = entries.map(|entry| (entry.file_name().into_string().unwrap(), entry));
    named
        .filter(|(name, _)| name.ends_with(".safetensors"))
        .map(|(name, entry)| (name, entry.metadata().unwrap().modified().unwrap()))
        .collect()
}

/// Says to [`in_a_process_of_its_own`] which folder it is to quantise.
const FOLDER: &str = "LLAMERO_TEST_QUANTIZE";

/// Quantise a sparse checkpoint of these sizes in a process of its own, whose results are thrown away file by file. The most memory that it had, in
/// bytes; files in the page cache do not count, which go when somebody needs the room.
fn peak_of_quantising(sizes: Sizes) -> u64 {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    fs::create_dir(&source).unwrap();
    write_checkpoint(&source, sizes, 19, |_| false);
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["in_a_process_of_its_own", "--exact", "--ignored", "--nocapture"])
        .env(FOLDER, folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let made = Checkpoint::open(&folder.path().join("made")).unwrap();
    let layout = ModelLayout::check(&made).unwrap();
    let fp8 = |id: TensorId| id.layer.is_some() && id.kind.is_linear();
    assert!(
        layout
            .tensors
            .iter()
            .all(|tensor| tensor.scale.is_some() == fp8(tensor.id))
    );
    let peak = said
        .split("VmHWM:")
        .nth(1)
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap();
    let peak = peak.parse::<u64>().unwrap() * 1024;
    eprintln!("{} bytes were made with {peak} bytes of memory", made.bytes());
    peak
}

#[test]
#[ignore = "the other tests run it, in a process of its own"]
fn in_a_process_of_its_own() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let folder = Path::new(&folder);
    let (source, target) = (folder.join("source"), folder.join("made"));
    to_fp8(&source, &target, &QuantizeOptions::default(), &mut |_| {
        throw_away(&folder.join(".made.partial"));
    })
    .unwrap();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    println!(
        "{}",
        status.lines().find(|line| line.starts_with("VmHWM:")).unwrap()
    );
}

/// Give back the room of files that are finished, all but their headers, so that a 405B can be made on a small disk.
fn throw_away(folder: &Path) {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(".safetensors")) {
        let metadata = entry.metadata().unwrap();
        let mut head = vec![0; 1 << 20];
        if metadata.len() > 4 * head.len() as u64 && metadata.blocks() * 512 > 2 * head.len() as u64 {
            let mut file = fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open(entry.path())
                .unwrap();
            file.read_exact(&mut head).unwrap();
            file.set_len(0).unwrap();
            file.write_all_at(&head, 0).unwrap();
            file.set_len(metadata.len()).unwrap();
        }
    }
}

/// Two matrices of the true size, 537 MB each: who held one whole, or its values as f32, would need more.
#[test]
fn quantising_takes_some_megabytes_whatever_the_size_of_a_tensor() {
    let few = Sizes {
        layers: 1,
        ffn: 1024,
        vocab: 1024,
        ..LLAMA_405B
    };
    let peak = peak_of_quantising(few);
    assert!(peak < 128 << 20, "{peak}");
}

#[test]
#[ignore = "long: 810 GB are read from a sparse checkpoint, and 410 GB made"]
fn a_405b_is_quantised_within_4_gib() {
    let peak = peak_of_quantising(LLAMA_405B);
    assert!(peak < 4 << 30, "{peak}");
}
