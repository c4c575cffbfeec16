//! Ranks of a pod that load together.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::Duration;

use common::{LLAMA_70B, Sizes, TINY, config_json, header, tensors, write_checkpoint};
use llamero_checkpoint::load::{
    LoadProgress, Member, PodNotes, Rows, Sink, SinkError, Together, load_rank, load_together,
};
use llamero_checkpoint::piece::rank_bytes;
use llamero_checkpoint::{Checkpoint, Error, LlamaConfig, ModelLayout, ShardPlan, TensorId, Topology};

/// What the supervisor keeps for a pod, in one process.
struct Notes {
    done: Vec<AtomicBool>,
    complete: Vec<AtomicBool>,
}

impl Notes {
    fn new(members: usize) -> Self {
        let flags = |count| (0..count).map(|_| AtomicBool::new(false)).collect();
        Self {
            done: flags(1 << 16),
            complete: flags(members),
        }
    }
}

impl PodNotes for Notes {
    fn member(&self, member: usize) -> Member {
        match self.complete[member].load(Ordering::Acquire) {
            true => Member::Complete,
            false => Member::Loading,
        }
    }

    fn is_done(&self, chunk: usize) -> bool {
        self.done[chunk].load(Ordering::Acquire)
    }

    fn set_done(&self, chunk: usize) {
        self.done[chunk].store(true, Ordering::Release);
    }
}

/// Counts bytes, and nothing else.
#[derive(Default)]
struct Count(AtomicU64);

impl Sink for Count {
    type Scratch = ();

    fn put(&self, rows: &Rows<'_>, (): &mut ()) -> Result<(), SinkError> {
        assert_eq!(rows.bytes.len() as u64, rows.count * rows.piece.row_bytes());
        let bytes = rows.bytes.len() + 4 * rows.scales.len();
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(())
    }
}

/// The rows of a rank, with the bits of their scales, by tensor and number.
type Held = BTreeMap<(TensorId, u64), (Vec<u8>, Option<u32>)>;

/// Keeps rows one by one.
#[derive(Default)]
struct Keep(Mutex<Held>);

impl Sink for Keep {
    type Scratch = ();

    fn put(&self, rows: &Rows<'_>, (): &mut ()) -> Result<(), SinkError> {
        let width = rows.piece.row_bytes() as usize;
        let mut held = self.0.lock().unwrap();
        for (at, row) in rows.bytes.chunks(width).enumerate() {
            let scale = rows.scales.get(at).map(|scale| scale.to_bits());
            let row = (row.to_vec(), scale);
            let key = (rows.piece.tensor.id, rows.first + at as u64);
            if let Some(before) = held.insert(key, row.clone()) {
                assert_eq!(before, row, "a row came twice, and not the same");
            }
        }
        Ok(())
    }
}

fn unwatched(_: LoadProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn eight_ranks_of_a_70b_read_their_pods_bytes_once() {
    let folder = tempfile::tempdir().unwrap();
    let sizes = Sizes {
        layers: 2,
        vocab: 12_800,
        ..LLAMA_70B
    };
    write_checkpoint(folder.path(), sizes, 400, |id| id.layer.is_some());
    let open = || Checkpoint::open(folder.path()).unwrap();
    let plan = ShardPlan::new(open().config(), Topology::tensor(8)).unwrap();
    let (notes, sinks) = (Notes::new(8), <[Count; 8]>::default());
    let start = Barrier::new(8);
    let load = |own: usize| {
        let (checkpoint, mut last) = (open(), LoadProgress::default());
        let layout = ModelLayout::check(&checkpoint).unwrap();
        let together = Together {
            members: plan.shards(),
            own,
            sinks: &sinks,
            notes: &notes,
            patience: Duration::from_secs(600),
        };
        let mut watch = |now: LoadProgress| {
            assert!(now.loaded >= last.loaded && now.read >= last.read);
            last = now;
            ControlFlow::Continue(())
        };
        start.wait();
        load_together(&checkpoint, &layout, &together, 2, &mut watch).unwrap();
        notes.complete[own].store(true, Ordering::Release);
        let total = rank_bytes(&layout, &plan.shards()[own]);
        assert_eq!(
            (last.loaded, last.total, last.read),
            (total, total, checkpoint.bytes_read())
        );
        (total, checkpoint.bytes_read())
    };
    let load = &load;
    let ranks: Vec<(u64, u64)> = std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..8).map(|own| scope.spawn(move || load(own))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    let held: u64 = ranks.iter().map(|(total, _)| total).sum();
    let read: u64 = ranks.iter().map(|(_, read)| read).sum();
    assert_eq!(
        sinks
            .iter()
            .map(|sink| sink.0.load(Ordering::Relaxed))
            .sum::<u64>(),
        held
    );
    assert!(read * 100 <= held * 102, "{read} bytes read for {held}");
    let most = ranks.iter().map(|(_, read)| *read).max().unwrap();
    assert!(most * 8 * 100 <= held * 105, "one rank reads {most} of {held}");
}

/// A checkpoint of random bytes.
fn write_random(folder: &Path) {
    let json = config_json(TINY);
    let config = LlamaConfig::from_json(json.clone()).unwrap();
    fs::write(folder.join("config.json"), json.to_string()).unwrap();
    let (header, data) = header(&tensors(&config, |_| true));
    let text = header.to_string();
    let mut file = (text.len() as u64).to_le_bytes().to_vec();
    file.extend(text.as_bytes());
    let mut state = 1u32;
    file.extend((0..data).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    }));
    fs::write(folder.join("model.safetensors"), file).unwrap();
}

/// One of three ranks stops at each point it can stop at, the others finish without it, and it comes back alone.
#[test]
fn a_member_that_stops_costs_the_others_time_only() {
    let folder = tempfile::tempdir().unwrap();
    write_random(folder.path());
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let layout = ModelLayout::check(&checkpoint).unwrap();
    let plan = ShardPlan::new(checkpoint.config(), Topology::tensor(3)).unwrap();
    let alone: Vec<Held> = plan
        .shards()
        .iter()
        .map(|shard| {
            let sink = Keep::default();
            load_rank(&checkpoint, &layout, shard, 1, &sink, &mut unwatched).unwrap();
            sink.0.into_inner().unwrap()
        })
        .collect();
    for stop_after in 0..12 {
        let (notes, sinks) = (Notes::new(3), <[Keep; 3]>::default());
        let load = |own: usize, watch: &mut dyn FnMut(LoadProgress) -> ControlFlow<()>| {
            let together = Together {
                members: plan.shards(),
                own,
                sinks: &sinks,
                notes: &notes,
                patience: Duration::from_millis(50),
            };
            let loaded = load_together(&checkpoint, &layout, &together, 1, watch);
            if loaded.is_ok() {
                notes.complete[own].store(true, Ordering::Release);
            }
            loaded
        };
        let mut told = 0;
        let mut stop = |_: LoadProgress| {
            told += 1;
            if told > stop_after {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        std::thread::scope(|scope| {
            let others = [0, 2].map(|own| scope.spawn(move || load(own, &mut unwatched)));
            let error = load(1, &mut stop).unwrap_err();
            assert!(matches!(error, Error::Cancelled), "{error}");
            others
                .into_iter()
                .for_each(|other| other.join().unwrap().unwrap());
        });
        let mut last = LoadProgress::default();
        load(1, &mut |now| {
            last = now;
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(
            (last.loaded, last.total),
            (last.total, rank_bytes(&layout, &plan.shards()[1]))
        );
        for (sink, alone) in sinks.iter().zip(&alone) {
            assert!(*sink.0.lock().unwrap() == *alone, "stopped after {stop_after}");
        }
    }
}
