//! A rank's weights: on the device, but for the embedding, of which a step needs a few rows.

use std::collections::HashMap;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DeviceRepr, DriverError};
use llamero_engine::BackendError;

use crate::error::{refused, unusable};
use crate::layout::{Layout, MatrixId, MatrixLayout};
use crate::ops::{Leaves, Weights};
use crate::pinned::Pinned;
use crate::shape::Shape;

/// One layer.
#[derive(Debug)]
pub(crate) struct LayerWeights {
    pub(crate) input_norm: CudaSlice<f32>,
    pub(crate) qkv: Weights,
    pub(crate) o: Weights,
    pub(crate) post_norm: CudaSlice<f32>,
    pub(crate) gate_up: Weights,
    pub(crate) down: Weights,
}

/// All of them. Not initialised before they are loaded.
#[derive(Debug)]
pub(crate) struct ModelWeights {
    /// bf16 `[vocabulary of the rank][hidden]`, in pinned memory of the host; none behind the first stage.
    pub(crate) embedding: Option<Pinned<u16>>,
    pub(crate) layers: Vec<LayerWeights>,
    /// None before the last stage.
    pub(crate) head: Option<HeadWeights>,
}

/// What stands behind the layers of the last stage.
#[derive(Debug)]
pub(crate) struct HeadWeights {
    pub(crate) norm: CudaSlice<f32>,
    /// From hidden states to logits of the rank's vocabulary.
    pub(crate) matrix: Weights,
}

/// Room for `count` elements, with whatever was there before.
pub(crate) fn room<T: DeviceRepr>(
    stream: &Arc<CudaStream>,
    count: usize,
) -> Result<CudaSlice<T>, DriverError> {
    // SAFETY: what reads a buffer is enqueued behind what fills it.
    unsafe { stream.alloc(count.max(1)) }
}

/// Allocates matrices whose programs are shared.
struct Allocator<'a> {
    stream: &'a Arc<CudaStream>,
    programs: HashMap<Vec<u8>, Arc<CudaSlice<u8>>>,
}

impl Allocator<'_> {
    fn program(&mut self, leaves: &Leaves) -> Result<Arc<CudaSlice<u8>>, BackendError> {
        let program = leaves.program()?;
        if let Some(known) = self.programs.get(&program) {
            return Ok(Arc::clone(known));
        }
        let on_device = self.stream.clone_htod(&program).map_err(refused)?;
        let shared = Arc::new(on_device);
        self.programs.insert(program, Arc::clone(&shared));
        Ok(shared)
    }

    fn matrix(&mut self, layout: &MatrixLayout) -> Result<Weights, BackendError> {
        let program = self.program(&layout.leaves)?;
        let values = room(self.stream, layout.outputs * layout.row_bytes()).map_err(refused)?;
        let scales = match layout.scaled {
            true => Some(room(self.stream, layout.outputs).map_err(refused)?),
            false => None,
        };
        Ok(Weights {
            values,
            element: layout.element,
            scales,
            outputs: layout.outputs,
            leaves: layout.leaves.clone(),
            program,
        })
    }
}

impl ModelWeights {
    /// Room for all weights.
    pub(crate) fn allocate(
        stream: &Arc<CudaStream>,
        shape: &Shape,
        layout: &Layout,
    ) -> Result<Self, BackendError> {
        let (free, total) = stream.context().mem_get_info().map_err(refused)?;
        if layout.bytes() > free {
            return Err(unusable(format!(
                "the weights need {} bytes of the GPU's memory and {free} of {total} are free: use more tensor-parallel ranks, \
                 or end what else uses this GPU",
                layout.bytes()
            )));
        }
        let mut allocator = Allocator {
            stream,
            programs: HashMap::new(),
        };
        let norm = || room::<f32>(stream, shape.hidden).map_err(refused);
        let mut layers = Vec::new();
        for layer in &layout.layers {
            layers.push(LayerWeights {
                input_norm: norm()?,
                qkv: allocator.matrix(&layer.qkv)?,
                o: allocator.matrix(&layer.o)?,
                post_norm: norm()?,
                gate_up: allocator.matrix(&layer.gate_up)?,
                down: allocator.matrix(&layer.down)?,
            });
        }
        let table = shape.vocab_width() * shape.hidden;
        let embedding = || {
            Pinned::new(stream.context(), table).map_err(|error| {
                unusable(format!(
                    "the host has no {} bytes of memory to pin for the embedding: {}. Raise the pod's memory",
                    2 * table,
                    crate::probe::describe(error)
                ))
            })
        };
        let head = match &layout.head {
            Some(head) => Some(HeadWeights {
                norm: norm()?,
                matrix: allocator.matrix(head)?,
            }),
            None => None,
        };
        Ok(Self {
            embedding: shape.has_embedding.then(embedding).transpose()?,
            layers,
            head,
        })
    }

    /// A matrix; none for the head of a stage that has none.
    pub(crate) fn matrix(&self, id: MatrixId) -> Option<&Weights> {
        match id {
            MatrixId::Qkv(layer) => Some(&self.layers[layer].qkv),
            MatrixId::O(layer) => Some(&self.layers[layer].o),
            MatrixId::GateUp(layer) => Some(&self.layers[layer].gate_up),
            MatrixId::Down(layer) => Some(&self.layers[layer].down),
            MatrixId::Head => self.head.as_ref().map(|head| &head.matrix),
        }
    }

    /// The norms in front of each layer's two halves, then the last.
    pub(crate) fn norms(&self) -> impl Iterator<Item = &CudaSlice<f32>> {
        let of_layers = self
            .layers
            .iter()
            .flat_map(|layer| [&layer.input_norm, &layer.post_norm]);
        of_layers.chain(self.head.as_ref().map(|head| &head.norm))
    }

    /// Every matrix.
    pub(crate) fn matrices(&self) -> impl Iterator<Item = &Weights> {
        let of_layers = self
            .layers
            .iter()
            .flat_map(|layer| [&layer.qkv, &layer.o, &layer.gate_up, &layer.down]);
        of_layers.chain(self.head.as_ref().map(|head| &head.matrix))
    }
}
