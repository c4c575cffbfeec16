//! What the engine may rely on besides numbers.

use std::time::Duration;

use llamero_engine::step::BlockDeltas;
use llamero_engine::{
    Backend, BackendError, BlockTables, CollectiveError, Era, FormSpec, Late, Plan, PlanRow, Ticket, TokenRef,
};
use rustix::fs::{MemfdFlags, memfd_create};

use super::group::{Group, Way, row, spec};
use super::tiny;
use crate::collective::{Solo, local_group};
use crate::{CpuBackend, CpuOptions, Kernel};

const ERA: Era = Era {
    generation: 4,
    epoch: 2,
};

fn backend(folder: &tempfile::TempDir) -> CpuBackend {
    let options = CpuOptions {
        tensor: 1,
        rank: 0,
        memory: None,
        threads: 1,
        kernel: Kernel::detect(),
    };
    CpuBackend::new(folder.path(), options).unwrap()
}

fn formed(folder: &tempfile::TempDir) -> CpuBackend {
    let mut backend = backend(folder);
    backend.load(&mut |_| {}).unwrap();
    backend.form(&spec(ERA, 64), Box::new(Solo::new(ERA))).unwrap();
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
        Plan {
            era: ERA,
            step: self.step,
            micro_batch: 0,
            rows,
            blocks,
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

#[test]
fn a_memory_file_outlives_the_process_that_filled_it() {
    let folder = tiny::checkpoint(true);
    let file = memfd_create("weights", MemfdFlags::CLOEXEC).unwrap();
    let rank = || CpuOptions {
        tensor: 2,
        rank: 1,
        memory: Some(file.try_clone().unwrap()),
        threads: 1,
        kernel: Kernel::detect(),
    };
    let mut first = CpuBackend::new(folder.path(), rank()).unwrap();
    let mut calls = Vec::new();
    first.load(&mut |progress| calls.push(progress)).unwrap();
    let total = calls.last().unwrap().total;
    assert!(calls.len() > 10 && calls[0].loaded == 0 && calls.last().unwrap().loaded == total);
    drop(first);

    // The second process does not read: the data could be gone.
    let mut second = CpuBackend::new(folder.path(), rank()).unwrap();
    let mut calls = Vec::new();
    second.load(&mut |progress| calls.push(progress)).unwrap();
    assert_eq!(calls.len(), 1);
    assert_eq!((calls[0].loaded, calls[0].total), (total, total));

    // Another shard does not take it for its own.
    let mut other = CpuBackend::new(folder.path(), CpuOptions { rank: 0, ..rank() }).unwrap();
    let mut calls = 0;
    other.load(&mut |_| calls += 1).unwrap();
    assert!(calls > 10);
}

#[test]
fn an_incomplete_memory_file_is_filled_again() {
    let folder = tiny::checkpoint(true);
    let file = memfd_create("weights", MemfdFlags::CLOEXEC).unwrap();
    let rank = || CpuOptions {
        tensor: 1,
        rank: 0,
        memory: Some(file.try_clone().unwrap()),
        threads: 1,
        kernel: Kernel::detect(),
    };
    CpuBackend::new(folder.path(), rank())
        .unwrap()
        .load(&mut |_| {})
        .unwrap();
    // The flag is the fourth word of the header.
    rustix::io::pwrite(&file, &[0; 8], 24).unwrap();
    let mut calls = 0;
    CpuBackend::new(folder.path(), rank())
        .unwrap()
        .load(&mut |_| calls += 1)
        .unwrap();
    assert!(calls > 10);
}

#[test]
fn calls_out_of_order_are_refused() {
    let folder = tiny::checkpoint(false);
    let mut backend = backend(&folder);
    assert!(matches!(
        backend.form(&spec(ERA, 64), Box::new(Solo::new(ERA))),
        Err(BackendError::NotReady(_))
    ));
    backend.load(&mut |_| {}).unwrap();
    let plan = Leader::new().plan(vec![], BlockDeltas::default());
    assert!(matches!(backend.submit(&plan), Err(BackendError::NotReady(_))));
    let small = FormSpec {
        kv_bytes: 1000,
        ..spec(ERA, 64)
    };
    let error = backend.form(&small, Box::new(Solo::new(ERA))).unwrap_err();
    assert!(
        matches!(&error, BackendError::Memory(text) if text.contains("raise the KV memory")),
        "{error}"
    );
    let odd = FormSpec {
        block_size: 24,
        ..spec(ERA, 64)
    };
    assert!(matches!(
        backend.form(&odd, Box::new(Solo::new(ERA))),
        Err(BackendError::Memory(_))
    ));
    backend.form(&spec(ERA, 64), Box::new(Solo::new(ERA))).unwrap();
    assert!(backend.poll(Ticket(1)).is_err());
    let old = Plan {
        era: Era {
            generation: 3,
            epoch: 9,
        },
        ..plan.clone()
    };
    assert!(matches!(backend.submit(&old), Err(BackendError::Plan { .. })));
    assert!(
        backend
            .submit(&Plan {
                step: 2,
                ..plan.clone()
            })
            .is_err()
    );
    let ticket = backend.submit(&plan).unwrap();
    assert_eq!(backend.poll(ticket).unwrap().unwrap().candidates, vec![]);
    backend.dissolve();
    assert!(matches!(backend.submit(&plan), Err(BackendError::NotReady(_))));
    // The weights are still there.
    backend.form(&spec(ERA, 64), Box::new(Solo::new(ERA))).unwrap();
}

#[test]
fn a_plan_may_be_sent_one_step_ahead() {
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

    let mut ahead = formed(&folder);
    let tickets: Vec<Ticket> = [&first, &second, &third]
        .map(|plan| ahead.submit(plan).unwrap())
        .to_vec();
    let output = ahead.poll(tickets[0]).unwrap().unwrap();
    assert!(ahead.bind(tickets[1], &Late::default()).is_err());
    assert!(ahead.bind(tickets[0], &Late::default()).is_err());
    let token = output.candidates[2].top[0].0;
    ahead
        .bind(
            tickets[1],
            &Late {
                tokens: vec![token],
                ..Late::default()
            },
        )
        .unwrap();
    let got = ahead.poll(tickets[1]).unwrap().unwrap();
    ahead.poll(tickets[2]).unwrap();

    let mut group = Group::load(folder.path(), 1, 1, Kernel::detect().level());
    let want = group.logits(&[5, 6, 7, token], Way { chunk: 4, mates: 0 });
    assert_eq!(ahead.logits(tickets[1], 0).unwrap().logits, want[3]);
    let best = want[3]
        .iter()
        .enumerate()
        .max_by(|a, b| a.1.total_cmp(b.1))
        .unwrap();
    assert_eq!(got.candidates[0].top[0], (best.0 as u32, *best.1));
    assert!(ahead.logits(tickets[1], 1).is_err());
    ahead.release(tickets[1]);
    assert!(ahead.logits(tickets[1], 0).is_err());
}

#[test]
fn rewinds_and_copies_leave_no_trace() {
    let folder = tiny::checkpoint(false);
    let mut leader = Leader::new();
    let mut rank = formed(&folder);
    let mut step = |plan: Plan| {
        let ticket = rank.submit(&plan).unwrap();
        rank.poll(ticket).unwrap();
        let logits = rank.logits(ticket, 0).unwrap().logits;
        rank.release(ticket);
        logits
    };
    let tokens: Vec<u32> = (10..22).collect();
    step(leader.plan(vec![row(0, 0, tokens.clone())], append(0, 3)));
    let want = step(leader.plan(vec![row(0, 12, vec![50])], BlockDeltas::default()));
    // Other tokens, then back: the same position gives the same bits.
    step(leader.plan(vec![row(0, 12, vec![60, 61, 62])], BlockDeltas::default()));
    let again = step(leader.plan(vec![row(0, 12, vec![50])], BlockDeltas::default()));
    assert_eq!(again, want);
    // A copy of the block serves another slot.
    let mut deltas = append(1, 4);
    deltas.copies = vec![(3, 4)];
    let copied = step(leader.plan(vec![row(1, 12, vec![50])], deltas));
    assert_eq!(copied, want);
}

#[test]
fn a_lost_peer_ends_the_step() {
    let folder = tiny::checkpoint(false);
    let mut group = Group::load(folder.path(), 2, 1, Kernel::detect().level());
    let mut ends = local_group(2, ERA, Duration::from_secs(60));
    drop(ends.pop());
    let end = ends.remove(0);
    let rank = &mut group.ranks[0];
    rank.form(&spec(ERA, 64), Box::new(end)).unwrap();
    let heartbeat = Leader::new().plan(vec![], BlockDeltas::default());
    let ticket = rank.submit(&heartbeat).unwrap();
    let error = rank.poll(ticket).unwrap_err();
    assert!(
        matches!(
            error,
            BackendError::Collective(CollectiveError::PeerLost { rank: 1, .. })
        ),
        "{error}"
    );
}
