//! Weights that are read by range: the same bits as from a folder, and no others.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use llamero_checkpoint::load::{Member, PodNotes, Together, load_together};
use llamero_checkpoint::piece::pieces;
use llamero_checkpoint::{Checkpoint, ModelLayout, ShardPlan, Topology};
use llamero_fake_hub::{COMMIT, FakeHub, Faults, NEXT_COMMIT, REPOSITORY};
use llamero_sources::{FetchError, Manifest, Place, Repository};

use crate::common::{LLAMA_405B, Sizes, model, write_checkpoint};
use crate::loads::{self, Forget, access, assert_same_bits, load};

/// Of the shape of a Llama, small enough to be sent some dozens of times.
const SMALL: Sizes = Sizes {
    hidden: 2048,
    layers: 2,
    q_heads: 16,
    kv_heads: 4,
    ffn: 8192,
    vocab: 4096,
};

fn prepare(server: &FakeHub, revision: &str, folder: &Path) -> Result<Manifest, FetchError> {
    let repository = Repository {
        name: REPOSITORY.to_owned(),
        revision: revision.to_owned(),
    };
    let endpoint = server.endpoint.clone();
    loads::prepare(&Place::Hub { endpoint, repository }, &access(), folder)
}

fn opened(server: &FakeHub, folder: &Path) -> Checkpoint {
    prepare(server, "main", folder).unwrap();
    llamero_sources::open(folder, &access()).unwrap()
}

fn hub_of(name: &str, faults: Faults) -> FakeHub {
    FakeHub::of_folder(&model(name), "localhost", faults)
}

#[test]
fn the_same_bits_are_loaded_as_from_a_folder() {
    for (name, sizes) in [
        ("SmolLM2-135M-Instruct", &[1, 3][..]),
        ("SmolLM2-135M-Instruct-FP8", &[2]),
    ] {
        let server = hub_of(name, Faults::default());
        let dir = tempfile::tempdir().unwrap();
        let remote = opened(&server, dir.path());
        for tensor in sizes {
            assert_same_bits(name, &remote, *tensor);
        }
        let asked_of_hub = server
            .log()
            .iter()
            .filter(|asked| asked.at_hub && asked.path.contains(".safetensors"))
            .count();
        assert!(
            asked_of_hub <= 2 * remote.files().len(),
            "the Hub is asked once for a file, not for each range: {asked_of_hub}"
        );
    }
}

#[test]
fn everything_that_passes_changes_no_bit() {
    let server = hub_of("SmolLM2-135M-Instruct-FP8", Faults::default());
    let dir = tempfile::tempdir().unwrap();
    prepare(&server, "main", dir.path()).unwrap();
    let mut access = access();
    // More than there are faults: one reader may meet them all in a row.
    access.patience.attempts = 32;
    let remote = llamero_sources::open(dir.path(), &access).unwrap();
    {
        let mut faults = server.faults();
        faults.cuts = vec![0, 1, 7, 99_999, 1 << 20, 3_000_000, 4_000_000, 2, 0, 1 << 21];
        faults.failing = 3;
        faults.expired = 3;
        faults.busy = 2;
    }
    assert_same_bits("SmolLM2-135M-Instruct-FP8", &remote, 2);
    let faults = server.faults();
    assert_eq!(
        (faults.cuts.len(), faults.failing, faults.expired, faults.busy),
        (0, 0, 0, 0),
        "not every fault happened"
    );
}

#[test]
fn a_wrong_byte_is_never_served_where_whole_files_are_read() {
    let server = hub_of("SmolLM2-135M-Instruct", Faults::default());
    let dir = tempfile::tempdir().unwrap();
    let remote = opened(&server, dir.path());
    server.faults().wrong = 1;
    let error = load(&remote, 1, 0, &Forget).unwrap_err();
    assert!(error.to_string().contains("arrived damaged"), "{error}");
    assert!(
        error.is_passing(),
        "the next try may get the right bytes: {error}"
    );
    load(&remote, 1, 0, &Forget).unwrap();
}

#[test]
fn what_stays_broken_ends_in_a_sentence() {
    let server = hub_of("SmolLM2-135M-Instruct-FP8", Faults::default());
    let dir = tempfile::tempdir().unwrap();
    let remote = opened(&server, dir.path());
    let failing = |set: fn(&mut Faults), part: &str, is_passing: bool| {
        set(&mut server.faults());
        let error = load(&remote, 2, 0, &Forget).unwrap_err();
        assert!(error.to_string().contains(part), "{error} does not say {part:?}");
        assert_eq!(error.is_passing(), is_passing, "{error}");
        *server.faults() = Faults::default();
    };
    failing(
        |faults| faults.failing = usize::MAX,
        "answered 503 for model.safetensors",
        true,
    );
    failing(|faults| faults.no_ranges = true, "a mirror that knows them", true);
    // The link of the earlier loads is not asked for again before it expires.
    failing(
        |faults| {
            faults.expired = 1;
            faults.replaced = true;
        },
        "it is of commit fedcba98",
        true,
    );
    failing(
        |faults| {
            faults.expired = 1;
            faults.gated = true;
        },
        "in a Secret that model.source.huggingFace.tokenSecretRef names",
        false,
    );
    load(&remote, 2, 0, &Forget).unwrap();
}

#[test]
fn a_moved_branch_moves_nothing_that_is_pinned() {
    let server = hub_of("SmolLM2-135M-Instruct-FP8", Faults::default());
    let dir = tempfile::tempdir().unwrap();
    let first = prepare(&server, "main", &dir.path().join("a")).unwrap();
    assert_eq!(first.listing.commit.as_deref(), Some(COMMIT));
    server.faults().moved = true;
    let pinned = prepare(&server, COMMIT, &dir.path().join("b")).unwrap();
    assert_eq!(
        (&pinned.listing, pinned.identity()),
        (&first.listing, first.identity())
    );
    let asked = server.log().len();
    prepare(&server, COMMIT, &dir.path().join("b")).unwrap();
    assert_eq!(server.log().len(), asked, "what is there is not asked for");
    let moved = prepare(&server, "main", &dir.path().join("a")).unwrap();
    assert_eq!(moved.listing.commit.as_deref(), Some(NEXT_COMMIT));
    // Not one file of the earlier commit is left in the folder.
    let next = format!("/resolve/{NEXT_COMMIT}/config.json");
    assert!(server.log().iter().any(|asked| asked.path.ends_with(&next)));

    let own = dir.path().join("own");
    std::fs::create_dir(&own).unwrap();
    std::fs::write(own.join("config.json"), "{}").unwrap();
    let error = prepare(&server, "main", &own).unwrap_err().to_string();
    assert!(error.contains("name an empty folder"), "{error}");
    assert_eq!(std::fs::read(own.join("config.json")).unwrap(), b"{}");
}

#[test]
fn a_checkpoint_is_opened_again_while_the_hub_is_away() {
    let server = hub_of("SmolLM2-135M-Instruct-FP8", Faults::default());
    let dir = tempfile::tempdir().unwrap();
    let first = opened(&server, dir.path());
    server.faults().gated = true;
    let again = llamero_sources::open(dir.path(), &access()).unwrap();
    assert_eq!(again.bytes(), first.bytes());
    let error = load(&again, 2, 0, &Forget).unwrap_err();
    assert!(error.to_string().contains("(403)"), "{error}");
}

/// What looking into a 405B at a Hub took.
struct Sized {
    files: usize,
    took: Duration,
    server: FakeHub,
}

fn size_a_405b() -> Sized {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path(), LLAMA_405B, 18, |id| id.layer.is_some());
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::write(folder.path().join(name), "{}").unwrap();
    }
    let server = FakeHub::of_folder(folder.path(), "localhost", Faults::default());
    let dir = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let remote = opened(&server, dir.path());
    ModelLayout::check(&remote).unwrap();
    let (files, took) = (remote.files().len(), begun.elapsed());
    let (requests, most) = (server.log().len(), server.most_connections());
    eprintln!(
        "{files} headers in {took:?}: {requests} requests, {} bytes, {most} connections at once",
        server.sent()
    );
    Sized { files, took, server }
}

/// 405B is looked into by two requests for each of its files and a few for the others, without reading any weight: what the
/// time is made of, whatever the machine.
#[test]
fn headers_of_a_405b_come_by_one_request_a_file() {
    let Sized { files, server, .. } = size_a_405b();
    assert!(files >= 109, "{files}");
    let asked = server.log().len();
    assert!(asked <= 2 * files + 12, "{asked} requests for {files} files");
    assert!(
        server.sent() < 100 * files as u64 * 1024,
        "{} bytes",
        server.sent()
    );
    // So that four round trips' time is what it takes at least, and no server is flooded.
    let most = server.most_connections();
    assert!((8..=96).contains(&most), "{most} connections at once");
}

#[test]
#[ignore = "long: a measurement, run by make test-long on a machine that does nothing else"]
fn a_405b_is_sized_within_two_seconds() {
    let Sized { files, took, .. } = size_a_405b();
    assert!(took < Duration::from_secs(2), "{files} headers took {took:?}");
}

/// A rank that is alone in its pod fetches the rows that it wants a part of whole, but once. Reading them through the gaps
/// between its columns once made blocks go that were still needed.
#[test]
fn a_rank_fetches_no_byte_twice() {
    let server = hub_of("SmolLM2-135M-Instruct-FP8", Faults::default());
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = opened(&server, dir.path());
    let layout = ModelLayout::check(&checkpoint).unwrap();
    let plan = ShardPlan::new(checkpoint.config(), Topology::tensor(2)).unwrap();
    for rank in 0..2 {
        let wanted: u64 = pieces(&layout, plan.member(rank).unwrap())
            .iter()
            .map(|piece| piece.rows() * piece.tensor.cols * piece.tensor.dtype.size())
            .sum();
        let before = server.sent();
        load(&checkpoint, 2, rank, &Forget).unwrap();
        let sent = server.sent() - before;
        assert!(
            sent <= wanted + wanted / 50,
            "rank {rank} fetched {sent} bytes of {wanted}"
        );
    }
}

/// What the supervisor keeps for a pod, in one process.
struct Notes(Vec<AtomicBool>);

impl PodNotes for Notes {
    fn member(&self, _: usize) -> Member {
        Member::Loading
    }

    fn is_done(&self, chunk: usize) -> bool {
        self.0[chunk].load(Ordering::Acquire)
    }

    fn set_done(&self, chunk: usize) {
        self.0[chunk].store(true, Ordering::Release);
    }
}

/// Two pods of eight ranks: rows that are split by columns leave the source once for each pod, everything else once.
#[test]
fn pods_read_little_more_than_the_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path(), SMALL, 12, |id| id.layer.is_some());
    std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    let server = FakeHub::of_folder(folder.path(), "localhost", Faults::default());
    let dir = tempfile::tempdir().unwrap();
    let bytes = opened(&server, dir.path()).bytes();
    let before = server.sent();
    for pod in 0..2 {
        load_pod(dir.path(), pod);
    }
    let sent = server.sent() - before;
    let factor = sent as f64 / bytes as f64;
    assert!(factor <= 1.4, "{factor} of the checkpoint left the source");
}

fn load_pod(folder: &Path, pod: usize) {
    let notes = Notes((0..4096).map(|_| AtomicBool::new(false)).collect());
    let sinks: Vec<Forget> = (0..8).map(|_| Forget).collect();
    std::thread::scope(|scope| {
        for own in 0..8 {
            let (notes, sinks) = (&notes, &sinks);
            scope.spawn(move || {
                let checkpoint = llamero_sources::open(folder, &access()).unwrap();
                let layout = ModelLayout::check(&checkpoint).unwrap();
                let plan = ShardPlan::new(checkpoint.config(), Topology::tensor(16)).unwrap();
                let together = Together {
                    members: &plan.shards()[8 * pod..8 * pod + 8],
                    own,
                    sinks,
                    notes,
                    patience: Duration::from_secs(60),
                };
                load_together(&checkpoint, &layout, &together, 1, &mut |_| {
                    ControlFlow::Continue(())
                })
                .unwrap();
            });
        }
    });
}
