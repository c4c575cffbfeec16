//! The end of a step: its answers are merged; late values for the next, then events for clients.

use std::time::Instant;

use super::Planner;
use super::choice::Choice;
use super::merge::{Merging, align};
use super::requests::Publication;
use super::row::PlannedRow;
use super::step::PlannedStep;
use crate::mesh::MeshError;
use crate::runtime::executor::Executor;
use crate::schedule::SequenceId;

impl Planner {
    /// Merge the oldest step in flight as far as its answers are there. Returns its number when it has ended.
    pub(super) fn merge_next(
        &mut self,
        executor: &mut Executor,
        now: &impl Fn() -> Instant,
    ) -> Result<Option<u64>, MeshError> {
        let Some(step) = self.steps.front_mut() else {
            return Ok(None);
        };
        if step.merging.is_none() {
            let Some(outputs) = executor.outputs(step.number) else {
                return Ok(None);
            };
            let answers = align(step.number, &step.rows, outputs)?;
            let merging = Merging::by_candidates(&step.rows, answers, &self.requests);
            for row in merging.wanted() {
                executor.fetch(step.number, row, 0, now())?;
            }
            step.merging = Some(merging);
        }
        let PlannedStep {
            number,
            rows,
            merging,
            ..
        } = step;
        let Some(merging) = merging else { return Ok(None) };
        merging.take_rows(|row| executor.shards(*number, row, 0), rows, &self.requests);
        if merging.wanted().next().is_some() {
            return Ok(None);
        }
        let number = *number;
        self.finish(executor, now)?;
        Ok(Some(number))
    }

    /// The oldest step is merged: record its tokens, let the next step begin, then tell the clients.
    fn finish(&mut self, executor: &mut Executor, now: &impl Fn() -> Instant) -> Result<(), MeshError> {
        let Some(step) = self.steps.pop_front() else {
            return Ok(());
        };
        let choices = step.merging.map(|merging| merging.choices).unwrap_or_default();
        let mut news = Vec::new();
        for (row, choice) in step.rows.iter().zip(choices) {
            news.extend(self.record(row, choice));
        }
        let ended: Vec<SequenceId> = news
            .iter()
            .filter(|news| news.ends())
            .map(Publication::sequence)
            .collect();
        for id in &ended {
            self.scheduler.remove(*id);
        }
        executor.release(step.number);
        // Tokens are in the histories now: they are published even when the era ends here.
        let sent = self.let_begin(executor, &ended, now);
        self.measure(step.tokens, step.began, now());
        self.show();
        let gone = self.requests.publish(news, now());
        sent?;
        for id in gone {
            self.cancel(id, Some(executor), now())?;
        }
        Ok(())
    }

    /// Append what a row sampled to its history.
    fn record(&mut self, row: &PlannedRow, choice: Option<Choice>) -> Option<Publication> {
        let id = row.sequence;
        let choice = choice.filter(|_| !row.cancelled);
        let token = choice.as_ref().and_then(|choice| choice.as_ref().ok());
        let length = self
            .scheduler
            .row_done(id, token.map(|chosen| chosen.sampled.token));
        match choice? {
            Ok(chosen) => {
                let full = self.scheduler.is_full(id);
                self.requests.sampled(id, chosen, length?, full)
            }
            Err(error) => Some(Publication::broken(id, error.to_string())),
        }
    }

    /// Send the next step what it waits for: tokens and cancelled rows first, since it cannot begin without, then what
    /// it needs before sampling.
    fn let_begin(
        &mut self,
        executor: &mut Executor,
        ended: &[SequenceId],
        now: &impl Fn() -> Instant,
    ) -> Result<(), MeshError> {
        let mut values = if ended.is_empty() {
            Vec::new()
        } else {
            self.cancel_rows(ended)
        };
        let Some(next) = self.steps.front_mut() else {
            return executor.late(values, now());
        };
        values.extend(next.late_values(&self.scheduler).map(|late| (next.number, late)));
        executor.late(values, now())?;
        next.began = now();
        match next.sampling(&mut self.requests) {
            Some(sampling) => executor.late(vec![(next.number, sampling)], now()),
            None => Ok(()),
        }
    }

    fn measure(&mut self, tokens: u32, began: Instant, now: Instant) {
        let duration = now.saturating_duration_since(began);
        self.budget.measured(tokens, duration);
        self.queue.measured(tokens, duration);
        self.ended_at = Some(now);
        self.load.update(|figures| {
            figures.steps += 1;
            figures.last_step_at = Some(now);
        });
    }
}
