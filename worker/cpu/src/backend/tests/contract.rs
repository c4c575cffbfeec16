//! What the engine may rely on besides numbers.

use std::cell::{Cell, RefCell};
use std::time::Instant;

use llamero_checkpoint::Topology;
use llamero_engine::mesh::TcpMesh;
use llamero_engine::mesh::local::local_mesh;
use llamero_engine::step::BlockDeltas;
use llamero_engine::{
    Backend, BackendError, BlockTables, Era, FormSpec, KvDtype, Late, LoadProgress, LoadWatch, MeshError,
    Plan, PlanRow, RowOutput, SampleKey, Ticket, TokenRef, Unwatched, Waited,
};
use rustix::fs::{MemfdFlags, memfd_create};

use super::group::{GREEDY, Group, Way, done, options, row, spec};
use super::tiny;
use crate::{CpuBackend, CpuOptions, Kernel};

const ERA: Era = Era {
    generation: 4,
    epoch: 2,
};

fn one(tensor: u32, rank: u32) -> CpuOptions {
    options(tensor, rank, 1, Kernel::detect().level())
}

fn backend(folder: &tempfile::TempDir) -> CpuBackend {
    CpuBackend::new(folder.path(), one(1, 0)).unwrap()
}

fn form(backend: &mut CpuBackend, spec: &FormSpec) -> Result<(), BackendError> {
    backend
        .form(spec, Box::new(TcpMesh::alone(ERA)), &mut |_| {})
        .map(|_| ())
}

fn formed(folder: &tempfile::TempDir) -> CpuBackend {
    let mut backend = backend(folder);
    backend.load(&Unwatched).unwrap();
    form(&mut backend, &spec(ERA, 64)).unwrap();
    backend
}

/// Plans with the right step and hash.
struct Leader {
    tables: BlockTables,
    step: u64,
}

impl Leader {
    fn new() -> Self {
        Self {
            tables: BlockTables::new(6, 4096),
            step: 0,
        }
    }

    fn plan(&mut self, rows: Vec<PlanRow>, blocks: BlockDeltas) -> Plan {
        self.tables.apply(&blocks).unwrap();
        self.step += 1;
        let is_late = |token: &&TokenRef| matches!(token, TokenRef::Late(_));
        let late_tokens = rows.iter().flat_map(|row| &row.tokens).filter(is_late).count() as u32;
        Plan {
            era: ERA,
            step: self.step,
            rows,
            blocks,
            late_tokens,
            late_sampling: false,
            state_hash: self.tables.hash(),
        }
    }
}

fn append(slot: u32, block: u32) -> BlockDeltas {
    BlockDeltas {
        appends: vec![(slot, vec![block])],
        ..BlockDeltas::default()
    }
}

/// Notes all progress, and cancels when asked the given number of times.
#[derive(Default)]
struct Notes {
    calls: RefCell<Vec<LoadProgress>>,
    asked: Cell<usize>,
    cancel_at: Option<usize>,
}

impl LoadWatch for Notes {
    fn progress(&self, progress: LoadProgress) {
        self.calls.borrow_mut().push(progress);
    }

    fn is_cancelled(&self) -> bool {
        self.asked.set(self.asked.get() + 1);
        self.cancel_at.is_some_and(|at| self.asked.get() >= at)
    }
}

fn load(folder: &tempfile::TempDir, options: CpuOptions) -> Vec<LoadProgress> {
    let notes = Notes::default();
    CpuBackend::new(folder.path(), options)
        .unwrap()
        .load(&notes)
        .unwrap();
    notes.calls.into_inner()
}

#[test]
fn a_memory_file_outlives_the_process_that_filled_it() {
    let folder = tiny::checkpoint(true);
    let file = memfd_create("weights", MemfdFlags::CLOEXEC).unwrap();
    let rank = |rank| CpuOptions {
        memory: Some(file.try_clone().unwrap()),
        ..one(2, rank)
    };
    let calls = load(&folder, rank(1));
    let last = *calls.last().unwrap();
    assert!(calls[0].loaded < last.loaded && last.loaded == last.total && last.read > 0);

    // The second process does not read: the data could be gone.
    let found = LoadProgress { read: 0, ..last };
    assert_eq!(load(&folder, rank(1)), [found]);

    // Another shard does not take it for its own.
    assert!(load(&folder, rank(0)).last().unwrap().read > 0);
}

#[test]
fn an_incomplete_memory_file_is_filled_again() {
    let folder = tiny::checkpoint(true);
    let file = memfd_create("weights", MemfdFlags::CLOEXEC).unwrap();
    let rank = || CpuOptions {
        memory: Some(file.try_clone().unwrap()),
        ..one(1, 0)
    };
    load(&folder, rank());
    // The flag is the fourth word of the header.
    rustix::io::pwrite(&file, &[0; 8], 24).unwrap();
    assert!(load(&folder, rank()).last().unwrap().read > 0);
}

#[test]
fn a_cancelled_load_is_made_up_for() {
    let folder = tiny::checkpoint(true);
    let mut rank = backend(&folder);
    let notes = Notes {
        cancel_at: Some(2),
        ..Notes::default()
    };
    assert!(matches!(rank.load(&notes), Err(BackendError::Cancelled)));
    assert!(matches!(
        form(&mut rank, &spec(ERA, 64)),
        Err(BackendError::Bug(_))
    ));
    rank.load(&Unwatched).unwrap();
    form(&mut rank, &spec(ERA, 64)).unwrap();
    // Weights and era go together.
    rank.unload();
    let heartbeat = Leader::new().plan(vec![], BlockDeltas::default());
    assert!(matches!(rank.submit(&heartbeat), Err(BackendError::Bug(_))));
    rank.load(&Unwatched).unwrap();
    form(&mut rank, &spec(ERA, 64)).unwrap();
}

#[test]
fn calls_out_of_order_are_bugs() {
    let folder = tiny::checkpoint(false);
    let mut backend = backend(&folder);
    assert!(matches!(
        form(&mut backend, &spec(ERA, 64)),
        Err(BackendError::Bug(_))
    ));
    backend.load(&Unwatched).unwrap();
    let plan = Leader::new().plan(vec![], BlockDeltas::default());
    assert!(matches!(backend.submit(&plan), Err(BackendError::Bug(_))));
    form(&mut backend, &spec(ERA, 64)).unwrap();
    assert!(backend.wait(Ticket(1), Instant::now()).is_err());
    let old = Plan {
        era: Era {
            generation: 3,
            epoch: 9,
        },
        ..plan.clone()
    };
    assert!(matches!(backend.submit(&old), Err(BackendError::Bug(_))));
    let early = Plan {
        step: 2,
        ..plan.clone()
    };
    assert!(backend.submit(&early).is_err());
    let ticket = backend.submit(&plan).unwrap();
    assert_eq!(done(&mut backend, ticket).unwrap().candidates, vec![]);
    backend.dissolve();
    assert!(matches!(backend.submit(&plan), Err(BackendError::Bug(_))));
    // The weights are still there.
    form(&mut backend, &spec(ERA, 64)).unwrap();
}

#[test]
fn the_numerics_class_says_all_that_decides_the_bits() {
    let folder = tiny::checkpoint(false);
    let backend = backend(&folder);
    let class = backend.numerics_class(KvDtype::Bf16, 0);
    assert!(class.ends_with(" kv-bf16 adapters-0"), "{class}");
    assert_ne!(class, backend.numerics_class(KvDtype::Fp8E4m3, 0));
    assert_ne!(class, backend.numerics_class(KvDtype::Bf16, 1));
}

#[test]
fn what_cannot_be_is_unusable_and_named() {
    let folder = tiny::checkpoint(false);
    let mut backend = backend(&folder);
    backend.load(&Unwatched).unwrap();
    let mut refused = |part: &str, change: &dyn Fn(&mut FormSpec)| {
        let mut spec = spec(ERA, 64);
        change(&mut spec);
        let error = form(&mut backend, &spec).unwrap_err();
        assert!(
            matches!(&error, BackendError::Unusable(text) if text.contains(part)),
            "{error}"
        );
    };
    refused("raise the KV memory", &|spec| spec.kv_bytes = 1000);
    refused("KV block of 24", &|spec| spec.limits.block_size = 24);
    refused("1 adapters with ranks up to 0", &|spec| {
        spec.limits.max_adapters = 1
    });
    let staged = CpuOptions {
        members: Topology {
            tensor: 1,
            pipeline: 3,
        }
        .into(),
        ..one(1, 0)
    };
    let error = CpuBackend::new(folder.path(), staged).err().unwrap();
    assert!(
        matches!(&error, BackendError::Unusable(text) if text.contains("pipeline 3 is more than the 2 layers")),
        "{error}"
    );
}

#[test]
fn steps_are_submitted_ahead() {
    let folder = tiny::checkpoint(false);
    let mut leader = Leader::new();
    let first = leader.plan(vec![row(0, 0, vec![5, 6, 7])], append(0, 9));
    let late = PlanRow {
        tokens: vec![TokenRef::Late(0)],
        ..row(0, 3, vec![0])
    };
    let second = leader.plan(vec![late], BlockDeltas::default());
    // The third frees the slot and gives its block to another before the second is computed.
    let mut deltas = append(1, 9);
    deltas.frees = vec![0];
    let third = leader.plan(vec![row(1, 0, vec![8])], deltas);
    let fourth = leader.plan(vec![], BlockDeltas::default());

    let mut ahead = formed(&folder);
    let tickets: Vec<Ticket> = [&first, &second, &third]
        .map(|plan| ahead.submit(plan).unwrap())
        .to_vec();
    assert!(
        matches!(ahead.submit(&fourth), Err(BackendError::Bug(_))),
        "three are in flight"
    );
    let output = done(&mut ahead, tickets[0]).unwrap();
    assert!(ahead.wait(tickets[1], Instant::now()).is_err(), "no late tokens");
    assert!(ahead.late(tickets[1], &Late::Tokens(vec![])).is_err());
    assert!(ahead.late(tickets[0], &Late::Tokens(vec![1])).is_err());
    let token = output.candidates[2].top[0].0;
    ahead.late(tickets[1], &Late::Tokens(vec![token])).unwrap();
    let got = done(&mut ahead, tickets[1]).unwrap();
    done(&mut ahead, tickets[2]).unwrap();

    let mut group = Group::load(folder.path(), Topology::tensor(1), 1, Kernel::detect().level());
    let want = group.logits(&[5, 6, 7, token], Way::new(4, 0));
    assert_eq!(ahead.fetch(tickets[1], 0, 0).unwrap().logits, want[3]);
    let best = want[3]
        .iter()
        .enumerate()
        .max_by(|a, b| a.1.total_cmp(b.1))
        .unwrap();
    assert_eq!(got.candidates[0].top[0], (best.0 as u32, *best.1));
    assert!(ahead.fetch(tickets[1], 1, 0).is_err());
    assert!(ahead.fetch(tickets[1], 0, 1).is_err());
    ahead.release(tickets[1]);
    assert!(ahead.fetch(tickets[1], 0, 0).is_err());
    ahead.submit(&fourth).unwrap();
}

#[test]
fn blocks_outlive_their_era_where_as_many_are_wanted() {
    let folder = tiny::checkpoint(false);
    let mut rank = backend(&folder);
    rank.load(&Unwatched).unwrap();
    let form = |rank: &mut CpuBackend, spec: &FormSpec| {
        let mesh = Box::new(TcpMesh::alone(ERA));
        rank.form(spec, mesh, &mut |_| {}).unwrap().kept
    };
    let usual = spec(ERA, 64);
    for why in ["nothing was there", "nothing was computed"] {
        assert_eq!(form(&mut rank, &usual), None, "{why}");
        rank.dissolve();
    }
    form(&mut rank, &usual);
    let tokens: Vec<u32> = (0..17).map(|i| 3 + i * 5).collect();
    let blocks = |slot| BlockDeltas {
        appends: vec![(slot, vec![9, 4])],
        ..BlockDeltas::default()
    };
    let plan = Leader::new().plan(vec![row(0, 0, tokens.clone())], blocks(0));
    let ticket = rank.submit(&plan).unwrap();
    let want = done(&mut rank, ticket).unwrap();
    rank.dissolve();
    assert_eq!(form(&mut rank, &usual), Some(ERA));
    // The last token alone, behind the full block that the era before has left.
    let plan = Leader::new().plan(vec![row(1, 16, vec![tokens[16]])], blocks(1));
    let ticket = rank.submit(&plan).unwrap();
    let got = done(&mut rank, ticket).unwrap();
    assert_eq!(got.candidates[0].top, want.candidates[16].top);
    let mut in_fp8 = usual;
    in_fp8.limits.kv_dtype = KvDtype::Fp8E4m3;
    assert_eq!(form(&mut rank, &in_fp8), None, "blocks of another type");
    assert_eq!(form(&mut rank, &usual), None, "blocks of another type");
    let fewer = FormSpec {
        kv_bytes: usual.kv_bytes / 2,
        ..usual
    };
    assert_eq!(form(&mut rank, &fewer), None);
    assert!(
        matches!(rank.submit(&plan), Err(BackendError::Bug(_))),
        "that block holds nothing"
    );
}

#[test]
fn late_sampling_values_hold_up_sampling_only() {
    let folder = tiny::checkpoint(false);
    let mut leader = Leader::new();
    let mut rank = formed(&folder);
    let mut plan = leader.plan(vec![row(0, 0, vec![5, 6, 7])], append(0, 9));
    plan.late_sampling = true;
    let ticket = rank.submit(&plan).unwrap();
    let before = rank.progress().layers();
    assert_eq!(rank.wait(ticket, Instant::now()).unwrap(), Waited::NeedsSampling);
    let layers = rank.progress().layers();
    assert_eq!(layers - before, 2, "the layers are computed");
    let only = |token: u32| {
        let mut mask = vec![0; tiny::VOCAB.div_ceil(8) as usize];
        mask[token as usize / 8] |= 1 << (token % 8);
        mask
    };
    let late = Late::Sampling {
        biases: (0..3).map(|offset| ((0, offset), vec![(40, 2.5)])).collect(),
        masks: (0..3).map(|offset| ((0, offset), only(40))).collect(),
        repetitions: vec![],
    };
    rank.late(ticket, &late).unwrap();
    assert!(rank.late(ticket, &late).is_err(), "given once");
    let output = done(&mut rank, ticket).unwrap();
    assert_eq!(rank.progress().layers(), layers, "they are not computed again");
    for offset in 0..3 {
        let (token, logit) = output.candidates[offset].top[0];
        assert_eq!(token, 40);
        let shard = rank.fetch(ticket, 0, offset as u32).unwrap();
        assert_eq!(shard.logits[40].to_bits(), logit.to_bits());
        assert!(shard.logits[41] == f32::NEG_INFINITY);
    }
}

/// A row of each kind, each in a slot and a block of its own.
fn rows_of_each_kind() -> (Vec<PlanRow>, BlockDeltas) {
    let asks = |slot, output| PlanRow {
        output,
        ..row(slot, 0, vec![5, 6, 7])
    };
    let everything = SampleKey {
        temperature: 0.8,
        top: 7,
        mass: true,
        logprobs: true,
        ..GREEDY
    };
    let rows = vec![
        asks(0, RowOutput::None),
        asks(1, RowOutput::Sample { last: 2, key: GREEDY }),
        asks(
            2,
            RowOutput::Score {
                ids: vec![9, 10],
                top: 2,
            },
        ),
        asks(3, RowOutput::Hidden),
        asks(
            4,
            RowOutput::Sample {
                last: 1,
                key: everything,
            },
        ),
        asks(5, RowOutput::Sample { last: 1, key: GREEDY }),
    ];
    let blocks = BlockDeltas {
        appends: (0..6).map(|slot| (slot, vec![slot])).collect(),
        ..BlockDeltas::default()
    };
    (rows, blocks)
}

#[test]
fn rows_answer_what_they_are_asked() {
    let folder = tiny::checkpoint(true);
    let mut rank = formed(&folder);
    let (rows, blocks) = rows_of_each_kind();
    let ticket = rank.submit(&Leader::new().plan(rows, blocks)).unwrap();
    rank.late(ticket, &Late::Cancel(vec![5])).unwrap();
    let output = done(&mut rank, ticket).unwrap();
    // A cancel that comes too late changes nothing.
    rank.late(ticket, &Late::Cancel(vec![1])).unwrap();
    assert!(rank.late(ticket, &Late::Cancel(vec![6])).is_err());
    let places: Vec<_> = output
        .candidates
        .iter()
        .map(|one| (one.row, one.offset))
        .collect();
    assert_eq!(places, [(1, 0), (1, 1), (2, 0), (2, 1), (4, 0)]);
    let [_, greedy, _, scored, sampled] = output.candidates.as_slice() else {
        panic!()
    };
    assert_eq!(
        (greedy.top.len(), greedy.mass.len(), greedy.mass_raw.len()),
        (4, 0, 0)
    );
    assert_eq!(greedy.gumbel, None);
    let shard = rank.fetch(ticket, 1, 1).unwrap();
    assert_eq!(
        scored.scored,
        Some(shard.logits[10]),
        "the same tokens, the same logits"
    );
    assert_eq!(
        (scored.top.len(), scored.mass_raw.len(), scored.mass.len()),
        (2, 2, 0)
    );
    assert_eq!(
        (sampled.top.len(), sampled.mass.len(), sampled.mass_raw.len()),
        // Nine tiles are a subtree of eight and one of one.
        (7, 2, 2)
    );
    assert!(sampled.gumbel.is_some());
    let [(3, hidden)] = output.hidden.as_slice() else {
        panic!("{:?}", output.hidden)
    };
    assert_eq!(hidden.len(), 96);
    assert!(hidden.iter().any(|x| *x != 0.0) && hidden.iter().all(|x| x.is_finite()));
    assert!(rank.fetch(ticket, 2, 0).is_err(), "scored is not sampled");
}

#[test]
fn rewinds_copies_and_saved_blocks_leave_no_trace() {
    for kv in [KvDtype::Bf16, KvDtype::Fp8E4m3] {
        rewind_copy_and_restore(kv);
    }
}

fn rewind_copy_and_restore(kv: KvDtype) {
    let folder = tiny::checkpoint(false);
    let mut usual = spec(ERA, 64);
    usual.limits.kv_dtype = kv;
    let mut leader = Leader::new();
    let mut rank = backend(&folder);
    rank.load(&Unwatched).unwrap();
    form(&mut rank, &usual).unwrap();
    let step = |rank: &mut CpuBackend, plan: Plan| {
        let ticket = rank.submit(&plan).unwrap();
        done(rank, ticket).unwrap();
        let logits = rank.fetch(ticket, 0, 0).unwrap().logits;
        rank.release(ticket);
        logits
    };
    let tokens: Vec<u32> = (10..22).collect();
    step(&mut rank, leader.plan(vec![row(0, 0, tokens)], append(0, 3)));
    let want = step(
        &mut rank,
        leader.plan(vec![row(0, 12, vec![50])], BlockDeltas::default()),
    );
    // Other tokens, then back: the same position gives the same bits.
    step(
        &mut rank,
        leader.plan(vec![row(0, 12, vec![60, 61, 62])], BlockDeltas::default()),
    );
    let again = step(
        &mut rank,
        leader.plan(vec![row(0, 12, vec![50])], BlockDeltas::default()),
    );
    assert_eq!(again, want);
    // A copy of the block serves another slot.
    let mut deltas = append(1, 4);
    deltas.copies = vec![(3, 4)];
    let copied = step(&mut rank, leader.plan(vec![row(1, 12, vec![50])], deltas));
    assert_eq!(copied, want);
    // So does a block that was saved and put back, also in another era.
    let saved = rank.save(3).unwrap();
    assert!(rank.save(1 << 30).is_err());
    form(&mut rank, &usual).unwrap();
    let mut leader = Leader::new();
    assert!(rank.restore(7, &saved[1..]).is_err());
    rank.restore(7, &saved).unwrap();
    let plan = leader.plan(vec![row(2, 12, vec![50])], append(2, 7));
    let ticket = rank.submit(&plan).unwrap();
    assert!(rank.save(7).is_err(), "a step that writes it is not computed");
    assert!(rank.restore(7, &saved).is_err());
    assert!(rank.save(8).is_ok() && rank.restore(8, &saved).is_ok());
    done(&mut rank, ticket).unwrap();
    assert_eq!(rank.fetch(ticket, 0, 0).unwrap().logits, want);
}

#[test]
fn a_lost_peer_ends_the_step() {
    let folder = tiny::checkpoint(false);
    let mut group = Group::load(folder.path(), Topology::tensor(2), 1, Kernel::detect().level());
    let mut meshes = local_mesh(&Topology::tensor(2).into(), ERA).unwrap();
    drop(meshes.pop());
    let rank = &mut group.ranks[0];
    rank.form(&spec(ERA, 64), Box::new(meshes.remove(0)), &mut |_| {})
        .unwrap();
    let heartbeat = Leader::new().plan(vec![], BlockDeltas::default());
    let ticket = rank.submit(&heartbeat).unwrap();
    let error = done(rank, ticket).unwrap_err();
    assert!(
        matches!(error, BackendError::Lost(MeshError::PeerLost { rank: 1, .. })),
        "{error}"
    );
}

#[test]
fn a_step_that_is_told_to_stop_ends_at_its_next_layer() {
    let folder = tiny::checkpoint(false);
    let mut rank = formed(&folder);
    let plan = Leader::new().plan(vec![row(0, 0, vec![5])], append(0, 9));
    let ticket = rank.submit(&plan).unwrap();
    let before = rank.progress().layers();
    rank.progress().stop(true);
    let error = done(&mut rank, ticket).unwrap_err();
    assert!(matches!(error, BackendError::Lost(MeshError::Aborted)), "{error}");
    assert_eq!(rank.progress().layers(), before);
}
