//! Loading a rank, and comparing what came.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use llamero_checkpoint::load::{Rows, Sink, SinkError, load_rank};
use llamero_checkpoint::{Checkpoint, Error, ModelLayout, ShardPlan, TensorId, Topology};
use llamero_sources::{Access, Audience, FetchError, Manifest, Patience, Place};

use crate::common::model;

/// A row's bytes and the bits of its scale.
pub(crate) type Row = (Vec<u8>, Option<u32>);

/// The rows of a rank, by tensor and number.
#[derive(Default)]
pub(crate) struct Keep(pub(crate) Mutex<BTreeMap<(TensorId, u64), Row>>);

impl Sink for Keep {
    type Scratch = ();

    fn put(&self, rows: &Rows<'_>, (): &mut ()) -> Result<(), SinkError> {
        let width = rows.piece.row_bytes() as usize;
        let mut held = self.0.lock().unwrap();
        for (at, row) in rows.bytes.chunks(width).enumerate() {
            let scale = rows.scales.get(at).map(|scale| scale.to_bits());
            held.insert(
                (rows.piece.tensor.id, rows.first + at as u64),
                (row.to_vec(), scale),
            );
        }
        Ok(())
    }
}

/// Takes rows and forgets them.
pub(crate) struct Forget;

impl Sink for Forget {
    type Scratch = ();

    fn put(&self, _: &Rows<'_>, (): &mut ()) -> Result<(), SinkError> {
        Ok(())
    }
}

pub(crate) fn access() -> Access {
    Access {
        patience: Patience {
            attempts: 6,
            first: Duration::from_millis(1),
            most: Duration::from_millis(5),
            silence: Duration::from_secs(20),
        },
        audience: Audience::HuggingFace,
        ..Access::default()
    }
}

/// Put the small files of `place` into `folder`.
pub(crate) fn prepare(place: &Place, access: &Access, folder: &Path) -> Result<Manifest, FetchError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(llamero_sources::prepare(access, place, folder))
}

pub(crate) fn load<S: Sink>(checkpoint: &Checkpoint, tensor: u32, rank: u32, sink: &S) -> Result<(), Error> {
    let layout = ModelLayout::check(checkpoint).unwrap();
    let plan = ShardPlan::new(checkpoint.config(), Topology::tensor(tensor)).unwrap();
    load_rank(
        checkpoint,
        &layout,
        plan.member(rank).unwrap(),
        3,
        sink,
        &mut |_| ControlFlow::Continue(()),
    )
}

/// Assert that every rank of `tensor` gets the same bits from `remote` as from the folder of the model `name`.
pub(crate) fn assert_same_bits(name: &str, remote: &Checkpoint, tensor: u32) {
    let local = Checkpoint::open(&model(name)).unwrap();
    assert_eq!(remote.bytes(), local.bytes());
    for rank in 0..tensor {
        let (here, there) = (Keep::default(), Keep::default());
        load(&local, tensor, rank, &here).unwrap();
        load(remote, tensor, rank, &there).unwrap();
        let (here, there) = (here.0.into_inner().unwrap(), there.0.into_inner().unwrap());
        assert!(here == there, "rank {rank} of {tensor} of {name} differs");
    }
}
