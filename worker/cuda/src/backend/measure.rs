//! What exchanges take, apart from the steps that they are part of.

use cudarc::driver::sys::CUevent_flags;
use llamero_engine::BackendError;

use super::CudaBackend;
use crate::error::{bug, refused};
use crate::exchange::Which;
use crate::ops::MAX_ROWS;

impl CudaBackend {
    /// Seconds of a sum over all ranks of `rows` hidden rows and of its joining, by the device's clock: the mean of `count`, one
    /// behind the other. The other ranks do the same, unless this one exchanges with itself.
    ///
    /// # Errors
    /// [`BackendError::Bug`] when no group of several ranks was formed; the driver's.
    pub fn exchange_seconds(&mut self, rows: usize, count: u32) -> Result<f64, BackendError> {
        let width = self.shape.hidden;
        let (_, formed, ops) = self.parts()?;
        let Some(exchange) = &formed.exchange else {
            return Err(bug("a rank alone exchanges nothing"));
        };
        if rows == 0 || rows > MAX_ROWS || count == 0 {
            return Err(bug(format!(
                "{count} exchanges of {rows} rows; at most {MAX_ROWS} rows are exchanged at a time"
            )));
        }
        let stream = ops.stream().clone();
        let event = || {
            stream
                .context()
                .new_event(Some(CUevent_flags::CU_EVENT_DEFAULT))
                .map_err(refused)
        };
        let (start, end) = (event()?, event()?);
        start.record(&stream).map_err(refused)?;
        for _ in 0..count {
            exchange.sum(ops, Which::Ffn, &formed.work.roots, rows * width)?;
            let received = exchange.received(Which::Ffn, rows * width, None);
            ops.join_roots(&mut formed.work.hidden, received, rows, width)?;
        }
        end.record(&stream).map_err(refused)?;
        end.synchronize().map_err(refused)?;
        exchange.check(0)?;
        let milliseconds = start.elapsed_ms(&end).map_err(refused)?;
        Ok(f64::from(milliseconds) / 1e3 / f64::from(count))
    }
}
