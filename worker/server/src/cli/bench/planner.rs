//! What the leader of a large group does in a step.

use std::fmt;
use std::io;

use llamero_engine::runtime::bench::{PlannerBench, PlannerSpeed, planner};

/// Figures of every way of sampling.
pub(super) struct Planner {
    bench: PlannerBench,
    speeds: Vec<PlannerSpeed>,
}

impl Planner {
    /// Measure a group of the default size.
    ///
    /// # Errors
    /// No sockets or threads can be had.
    pub(super) fn measure() -> io::Result<Self> {
        let bench = PlannerBench::default();
        let speeds = planner(bench)?;
        Ok(Self { bench, speeds })
    }

    pub(super) fn json(&self) -> serde_json::Value {
        let micros = |time: std::time::Duration| time.as_secs_f64() * 1e6;
        let speeds: Vec<_> = self
            .speeds
            .iter()
            .map(|speed| {
                serde_json::json!({
                    "sampling": speed.sampling,
                    "workMicros": micros(speed.work),
                    "lateMicros": micros(speed.late),
                    "lateAtOnceMicros": micros(speed.late_at_once),
                })
            })
            .collect();
        let PlannerBench {
            rows, vocab, ranks, ..
        } = self.bench;
        serde_json::json!({"rows": rows, "vocabulary": vocab, "ranks": ranks, "steps": speeds})
    }
}

impl fmt::Display for Planner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PlannerBench {
            rows, vocab, ranks, ..
        } = self.bench;
        write!(
            f,
            "planner   {rows} rows, {vocab} tokens, {ranks} ranks, without their compute:"
        )?;
        for speed in &self.speeds {
            write!(f, "\n          {speed}")?;
        }
        Ok(())
    }
}
