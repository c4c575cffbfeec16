//! A folder with one file a rank gives every rank the same bits as the whole checkpoint, and nothing else.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use common::published::{Shape, write, write_bf16};
use common::{Sizes, config_json, header, model, tensors};
use llamero_checkpoint::inspect::inspect;
use llamero_checkpoint::load::{Rows, Sink, SinkError, load_rank};
use llamero_checkpoint::presharded::{MANIFEST_NAME, ShardManifest, ShardOptions, to_shards};
use llamero_checkpoint::quantize::{QuantizeOptions, to_fp8};
use llamero_checkpoint::remote::{Announced, RemoteWeights, WeightFile};
use llamero_checkpoint::safetensors::SafetensorsFile;
use llamero_checkpoint::{
    Checkpoint, ContentIdentity, Dtype, Error, LlamaConfig, Members, ModelLayout, TensorId, Topology,
};

/// Rows of a rank: bytes and scales by tensor and first row.
type Taken = BTreeMap<(TensorId, u64), (Vec<u8>, Vec<u32>)>;

struct Take(Mutex<Taken>);

impl Sink for Take {
    type Scratch = ();

    fn put(&self, rows: &Rows<'_>, (): &mut ()) -> Result<(), SinkError> {
        let scales = rows.scales.iter().map(|scale| scale.to_bits()).collect();
        let before = self
            .0
            .lock()
            .unwrap()
            .insert((rows.piece.tensor.id, rows.first), (rows.bytes.to_vec(), scales));
        assert!(before.is_none(), "rows are handed over once");
        Ok(())
    }
}

/// What `rank` of a group loads, by `threads` threads.
fn load(checkpoint: &Checkpoint, topology: Topology, rank: u32, threads: usize) -> Result<Taken, Error> {
    let layout = ModelLayout::check(checkpoint)?;
    let plan = checkpoint.shard_plan(&topology.into())?;
    let take = Take(Mutex::default());
    let mut watch = |_| ControlFlow::Continue(());
    load_rank(
        checkpoint,
        &layout,
        plan.member(rank)?,
        threads,
        &take,
        &mut watch,
    )?;
    Ok(take.0.into_inner().unwrap())
}

fn shard(source: &Path, topology: Topology) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    to_shards(source, folder.path(), ShardOptions::new(topology), &mut |_| ()).unwrap();
    folder
}

fn topology(tensor: u32, pipeline: u32) -> Topology {
    Topology { tensor, pipeline }
}

/// All ranks load the same bits, read each byte of their file once, and the weights are the same by name.
fn check(source: &Path, topology: Topology) {
    let made = shard(source, topology);
    let (whole, parts) = (
        Checkpoint::open(source).unwrap(),
        Checkpoint::open(made.path()).unwrap(),
    );
    assert_eq!(
        ContentIdentity::of(&whole).unwrap(),
        ContentIdentity::of(&parts).unwrap()
    );
    assert_eq!(
        ModelLayout::check(&whole).unwrap(),
        ModelLayout::check(&parts).unwrap()
    );
    for rank in 0..topology.ranks() {
        let before = parts.bytes_read();
        let loaded = load(&parts, topology, rank, 3).unwrap();
        assert!(
            loaded == load(&whole, topology, rank, 3).unwrap(),
            "rank {rank} of {topology}"
        );
        let data = parts.files()[rank as usize].header().data_bytes();
        let read = parts.bytes_read() - before;
        // A scale for a whole matrix is read with each of its blocks.
        assert!(
            (data..data + data / 100 + 4096).contains(&read),
            "{read} of {data}"
        );
    }
}

/// Random bytes, so that no two rows are alike.
fn write_random(folder: &Path, sizes: Sizes, fp8: bool) {
    let json = config_json(sizes);
    let config = LlamaConfig::from_json(json.clone()).unwrap();
    fs::write(folder.join("config.json"), json.to_string()).unwrap();
    let (header, data) = header(&tensors(&config, |_| fp8));
    let text = header.to_string();
    let mut file = (text.len() as u64).to_le_bytes().to_vec();
    file.extend(text.as_bytes());
    let mut state = 7u32;
    file.extend((0..data).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    }));
    fs::write(folder.join("model.safetensors"), file).unwrap();
}

#[test]
fn every_rank_loads_the_same_bits() {
    // Blocks of several rows and of 32 wide ones, uneven shares, kv heads that two ranks hold.
    let wide = Sizes {
        hidden: 192,
        layers: 3,
        q_heads: 6,
        kv_heads: 2,
        ffn: 16384,
        vocab: 700,
    };
    for sizes in [common::TINY, wide] {
        for fp8 in [false, true] {
            let source = tempfile::tempdir().unwrap();
            write_random(source.path(), sizes, fp8);
            for (tensor, pipeline) in [(1, 1), (3, 1), (2, 2)] {
                check(source.path(), topology(tensor, pipeline));
            }
        }
    }
}

#[test]
fn a_tied_model_of_fp8_too() {
    let source = model("SmolLM2-135M-Instruct-FP8");
    check(&source, topology(9, 1));
    check(&source, topology(2, 3));
}

/// The publishers' forms of scales: one a matrix, one a row, in f32 and bf16.
#[test]
fn published_forms_keep_their_scales() {
    for (name, leaf, dtype, shape) in [
        ("nvidia-8b-fp8", "weight_scale", Dtype::F32, Shape::Scalar),
        ("neuralmagic-8b-fp8", "weight_scale", Dtype::BF16, Shape::One),
        (
            "redhat-70b-fp8-dynamic",
            "weight_scale",
            Dtype::BF16,
            Shape::Column,
        ),
        ("autofp8-8b-static", "weight_scale_inv", Dtype::BF16, Shape::Rows),
    ] {
        let is_fp8 = |id: TensorId| id.layer.is_some() && id.kind.is_linear();
        let fp8 = |id| is_fp8(id).then_some((leaf, dtype, shape));
        let beside = |id| if is_fp8(id) { vec!["input_scale"] } else { vec![] };
        let source = write(name, fp8, beside);
        check(source.folder.path(), topology(2, 1));
    }
}

/// A rank reads one file, and that from its beginning to its end.
#[test]
fn a_rank_reads_its_own_file_in_order() {
    let source = tempfile::tempdir().unwrap();
    write_random(source.path(), common::TINY, true);
    let (topology, rank) = (topology(2, 1), 1);
    let made = shard(source.path(), topology);
    let reads = Arc::new(Recorded::new(made.path()));
    let checkpoint = Checkpoint::open_remote(made.path(), Arc::clone(&reads) as _).unwrap();
    reads.reads.lock().unwrap().clear();
    load(&checkpoint, topology, rank, 1).unwrap();
    let reads = std::mem::take(&mut *reads.reads.lock().unwrap());
    assert!(reads.iter().all(|(file, _)| *file == rank as usize));
    let file = &checkpoint.files()[rank as usize];
    let size = fs::metadata(file.path()).unwrap().len();
    let mut seen: Vec<Range<u64>> = reads.into_iter().map(|(_, range)| range).collect();
    // Scales lie before their rows and are read with them, a block later than the first of these at most.
    assert!(
        seen.windows(2)
            .all(|two| two[1].end + (256 << 10) >= two[0].start),
        "{seen:?}"
    );
    seen.sort_unstable_by_key(|range| range.start);
    let start = size - file.header().data_bytes();
    assert!(seen[0].start == start && seen.last().unwrap().end == size);
    assert!(
        seen.windows(2).all(|two| two[0].end == two[1].start),
        "each byte once: {seen:?}"
    );
}

/// Numbers of files, and the ranges that were read of them, in order.
type Reads = Vec<(usize, Range<u64>)>;

#[derive(Debug)]
struct Recorded {
    folder: std::path::PathBuf,
    reads: Arc<Mutex<Reads>>,
    announced: Mutex<Vec<Announced>>,
}

impl Recorded {
    fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_path_buf(),
            reads: Arc::default(),
            announced: Mutex::default(),
        }
    }
}

#[derive(Debug)]
struct RecordedFile {
    number: usize,
    file: File,
    reads: Arc<Mutex<Reads>>,
}

impl RemoteWeights for Recorded {
    fn open(&self, names: &[&str]) -> io::Result<Vec<Box<dyn WeightFile>>> {
        let open = |(number, name): (usize, &&str)| {
            let file = File::open(self.folder.join(name))?;
            let reads = Arc::clone(&self.reads);
            Ok(Box::new(RecordedFile { number, file, reads }) as Box<dyn WeightFile>)
        };
        names.iter().enumerate().map(open).collect()
    }

    fn announce(&self, ranges: Vec<Announced>) {
        *self.announced.lock().unwrap() = ranges;
    }

    fn finish(&self) -> io::Result<()> {
        Ok(())
    }

    fn bytes_read(&self) -> u64 {
        self.reads
            .lock()
            .unwrap()
            .iter()
            .map(|(_, range)| range.end - range.start)
            .sum()
    }
}

impl WeightFile for RecordedFile {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let read = (self.number, offset..offset + buffer.len() as u64);
        self.reads.lock().unwrap().push(read);
        FileExt::read_exact_at(&self.file, buffer, offset)
    }
}

/// Over a network every byte that is read was announced before, and nothing else.
#[test]
fn what_a_rank_reads_is_announced() {
    let source = tempfile::tempdir().unwrap();
    write_random(source.path(), common::TINY, true);
    let topology = topology(2, 1);
    let made = shard(source.path(), topology);
    let recorded = Arc::new(Recorded::new(made.path()));
    let checkpoint = Checkpoint::open_remote(made.path(), Arc::clone(&recorded) as _).unwrap();
    load(&checkpoint, topology, 0, 1).unwrap();
    let announced = recorded.announced.lock().unwrap();
    let file = &checkpoint.files()[0];
    let table = file.tensor("block_sha256").unwrap().bytes();
    let told: u64 = announced
        .iter()
        .map(|one| {
            assert_eq!((one.file, one.wanted), (0, Some(one.range.end - one.range.start)));
            one.range.end - one.range.start
        })
        .sum();
    assert_eq!(told + table, file.header().data_bytes());
}

#[test]
fn other_groups_are_refused_in_words() {
    let source = tempfile::tempdir().unwrap();
    write_random(source.path(), common::TINY, true);
    let made = shard(source.path(), topology(2, 2));
    let checkpoint = Checkpoint::open(made.path()).unwrap();
    let error = load(&checkpoint, topology(4, 1), 0, 1).unwrap_err().to_string();
    assert!(
        error.contains("made for tensor 2 x pipeline 2, not for tensor 4")
            && error.contains("llamero-worker shard --tensor 4 --pipeline 1"),
        "{error}"
    );
    let lost = Members::new(topology(2, 2), &[1]).unwrap();
    let error = checkpoint.shard_plan(&lost).unwrap_err().to_string();
    assert!(error.contains("lost ranks: replace them"), "{error}");

    let report = inspect(made.path(), topology(4, 1)).unwrap();
    assert!(
        report
            .summary
            .problem
            .as_ref()
            .unwrap()
            .contains("not for tensor 4")
    );
    assert!(report.ranks.is_empty() && report.summary.plans.is_empty());
    let report = inspect(made.path(), topology(2, 2)).unwrap();
    assert_eq!(report.summary.problem, None);
    let whole = inspect(source.path(), topology(2, 2)).unwrap();
    assert_eq!(report.ranks, whole.ranks);
    assert_eq!(report.identity, whole.identity);
    assert_eq!(report.summary.checkpoint_bytes, whole.summary.checkpoint_bytes);
    let sizes = |report: &llamero_checkpoint::inspect::Report| {
        let plans = report.summary.plans.iter().filter(|plan| plan.tensor == 2);
        plans.cloned().collect::<Vec<_>>()
    };
    assert_eq!(sizes(&report), sizes(&whole));
    let text = report.to_string();
    assert!(
        text.contains("one file a rank, made for tensor 2 x pipeline 2"),
        "{text}"
    );
}

#[test]
fn parts_are_no_source() {
    let source = tempfile::tempdir().unwrap();
    write_random(source.path(), common::TINY, false);
    let made = shard(source.path(), topology(2, 1));
    let out = tempfile::tempdir().unwrap();
    let options = ShardOptions::new(topology(4, 1));
    let again = to_shards(made.path(), out.path(), options, &mut |_| ()).unwrap_err();
    let fp8 = to_fp8(made.path(), out.path(), &QuantizeOptions::default(), &mut |_| ()).unwrap_err();
    for error in [again.to_string(), fp8.to_string()] {
        assert!(error.contains("give the folder that it was made from"), "{error}");
    }
}

/// Another tokenizer is another model for whoever compares identities.
#[test]
fn the_tokenizer_counts() {
    let source = write_bf16("meta-8b", |_| ());
    let made = shard(source.folder.path(), topology(2, 1));
    let identity = || ContentIdentity::of(&Checkpoint::open(made.path()).unwrap()).unwrap();
    let before = identity();
    fs::write(made.path().join("tokenizer_config.json"), "{\"x\": 1}").unwrap();
    assert_ne!(identity(), before);
}

/// Wherever a byte of a rank's file is wrong, its rank does not load.
#[test]
fn a_wrong_byte_is_never_loaded() {
    let source = tempfile::tempdir().unwrap();
    write_random(source.path(), common::TINY, true);
    let topology = topology(2, 1);
    let made = shard(source.path(), topology);
    let checkpoint = Checkpoint::open(made.path()).unwrap();
    let path = checkpoint.files()[1].path().to_path_buf();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let size = file.metadata().unwrap().len();
    let data = size - checkpoint.files()[1].header().data_bytes();
    for position in (data..size).step_by(1009).chain([data, size - 1]) {
        let mut byte = [0];
        FileExt::read_exact_at(&file, &mut byte, position).unwrap();
        file.write_all_at(&[byte[0] ^ 1], position).unwrap();
        let error = load(&checkpoint, topology, 1, 2).unwrap_err().to_string();
        assert!(
            error.contains("not what was written") && error.contains("rank-00001"),
            "{error}"
        );
        file.write_all_at(&byte, position).unwrap();
    }
    load(&checkpoint, topology, 1, 2).unwrap();
}

#[test]
fn damage_of_the_folder_is_named() {
    let source = tempfile::tempdir().unwrap();
    write_random(source.path(), common::TINY, true);
    let made = shard(source.path(), topology(2, 1));
    let at = |name: &str| made.path().join(name);
    let (first, second) = (
        "rank-00000-of-00002.safetensors",
        "rank-00001-of-00002.safetensors",
    );
    let refused = || Checkpoint::open(made.path()).unwrap_err().to_string();
    let good = fs::read(at(MANIFEST_NAME)).unwrap();
    let change = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut json = serde_json::from_slice(&good).unwrap();
        change(&mut json);
        fs::write(at(MANIFEST_NAME), json.to_string()).unwrap();
        refused()
    };
    assert!(change(&|json| json["formatVersion"] = 2.into()).contains("version 2"));
    assert!(change(&|json| json["topology"]["tensor"] = 3.into()).contains("2 files for tensor 3"));
    assert!(change(&|json| json["blockBytes"] = 0.into()).contains("blocks of 0"));
    assert!(change(&|json| json["files"][0]["name"] = "../a".into()).contains("leads out"));
    let norm = "model.norm.weight";
    assert!(
        change(&|json| json["tensors"][norm]["shape"] = serde_json::json!([u64::MAX, 2]))
            .contains("impossible")
    );
    assert!(
        change(&|json| drop(json["tensors"].as_object_mut().unwrap().remove(norm)))
            .contains("lacks the tensor")
    );
    assert!(change(&|json| *json = 5.into()).contains("damaged"));
    fs::write(at(MANIFEST_NAME), &good[..good.len() / 2]).unwrap();
    assert!(refused().contains("damaged"));
    fs::write(at(MANIFEST_NAME), &good).unwrap();

    // The files of two ranks that are mixed up have other tables, though the same tensors.
    fs::rename(at(first), at("x")).unwrap();
    fs::rename(at(second), at(first)).unwrap();
    fs::rename(at("x"), at(second)).unwrap();
    let mixed = match Checkpoint::open(made.path()) {
        Ok(checkpoint) => load(&checkpoint, topology(2, 1), 0, 1).unwrap_err().to_string(),
        Err(error) => error.to_string(),
    };
    assert!(
        mixed.contains("not what was written") || mixed.contains("not the file of rank"),
        "{mixed}"
    );
    let file = File::options().write(true).open(at(first)).unwrap();
    file.set_len(file.metadata().unwrap().len() - 1).unwrap();
    assert!(refused().contains("cut off"));
    fs::remove_file(at(second)).unwrap();
    fs::remove_file(at(first)).unwrap();
    assert!(refused().contains(first));
}

/// Stop where progress has come to `share` of all, as a crash would: what was not flushed is lost.
fn interrupt(source: &Path, target: &Path, options: ShardOptions, share: f64) {
    struct Crash;
    let crashed = std::panic::catch_unwind(|| {
        to_shards(source, target, options, &mut |now| {
            if now.done as f64 > share * now.total as f64 {
                std::panic::resume_unwind(Box::new(Crash));
            }
        })
    });
    assert!(crashed.unwrap_err().is::<Crash>());
}

#[test]
fn an_interrupted_run_is_gone_on_with() {
    let source = tempfile::tempdir().unwrap();
    write_random(source.path(), common::TINY, true);
    let options = ShardOptions {
        topology: topology(2, 2),
        flush_bytes: 1 << 10,
    };
    let straight = shard(source.path(), options.topology);
    let root = tempfile::tempdir().unwrap();
    let target = root.path().join("made");
    let partial = root.path().join(".made.partial");
    for (share, of_first) in [(0.3, false), (0.8, true)] {
        interrupt(source.path(), &target, options, share);
        assert!(!target.exists());
        assert_eq!(partial.join("rank-00000-of-00004.safetensors").exists(), of_first);
        for name in fs::read_dir(&partial).unwrap().map(|entry| entry.unwrap().path()) {
            if name.extension().is_some_and(|end| end == "part") {
                spoil_tail(&name);
            }
        }
    }
    let mut first = None;
    to_shards(source.path(), &target, options, &mut |now| {
        // What is there is passed over before anything is read.
        if now.done > 0 {
            first.get_or_insert(now.done as f64 / now.total as f64);
        }
    })
    .unwrap();
    assert!(first.unwrap() > 0.2, "{first:?}");
    assert!(!partial.exists());
    let manifest = |folder: &Path| ShardManifest::read(folder).unwrap().unwrap();
    assert_eq!(manifest(&target), manifest(straight.path()));
    let mut names: Vec<_> = fs::read_dir(&target)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    for name in &names {
        assert!(
            fs::read(target.join(name)).unwrap() == fs::read(straight.path().join(name)).unwrap(),
            "{name:?}"
        );
    }
    assert_eq!(names.len(), 6, "{names:?}");
}

/// The last tensor with bytes in an unfinished file, and all behind it, may be lost in a crash.
fn spoil_tail(path: &Path) {
    let bytes = fs::read(path).unwrap();
    let written = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    let file = SafetensorsFile::open(path).unwrap();
    let start = bytes.len() as u64 - file.header().data_bytes();
    let ranges = file
        .header()
        .tensors
        .values()
        .map(|info| info.range.start + start);
    let last = ranges.filter(|at| *at < written as u64).max().unwrap();
    let junk = vec![0xaa; bytes.len() - last as usize];
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(&junk, last).unwrap();
}
