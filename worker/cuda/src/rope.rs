//! Tables of rotary angles (Su et al., 2021).

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream};
use llamero_checkpoint::LlamaConfig;
use llamero_engine::BackendError;

use crate::error::refused;

/// Cosines and sines on the device: `[position][head_dim / 2]`.
#[derive(Debug)]
pub(crate) struct Rope {
    positions: usize,
    pub(crate) cos: CudaSlice<f32>,
    pub(crate) sin: CudaSlice<f32>,
}

impl Rope {
    /// The angles of so many positions: in f64, rounded once.
    pub(crate) fn new(
        stream: &Arc<CudaStream>,
        config: &LlamaConfig,
        positions: usize,
    ) -> Result<Self, BackendError> {
        let dim = f64::from(config.head_dim);
        let frequency = |i: u32| {
            let plain = config.rope_theta.powf(-2.0 * f64::from(i) / dim);
            config.rope_scaling.map_or(plain, |scaling| scaling.scale(plain))
        };
        let frequencies: Vec<f64> = (0..config.head_dim / 2).map(frequency).collect();
        let angles = (0..positions).flat_map(|position| {
            let turn = move |frequency: &f64| (position as f64 * frequency).sin_cos();
            frequencies.iter().map(turn)
        });
        let (sin, cos): (Vec<f32>, Vec<f32>) = angles.map(|(sin, cos)| (sin as f32, cos as f32)).unzip();
        Ok(Self {
            positions,
            cos: stream.clone_htod(&cos).map_err(refused)?,
            sin: stream.clone_htod(&sin).map_err(refused)?,
        })
    }

    pub(crate) fn positions(&self) -> usize {
        self.positions
    }
}
