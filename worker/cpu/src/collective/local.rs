//! A group of ranks that are threads of one process.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use llamero_engine::leaf_tree::{join, maximal_subtrees};
use llamero_engine::{Abort, Collective, CollectiveError, Era, LeafLayout};

/// One call's data on its way from one rank to another.
struct Frame {
    step: u64,
    sequence: u64,
    data: Vec<f32>,
}

struct Mail {
    /// `[from][to]`.
    queues: Vec<Vec<VecDeque<Frame>>>,
    gone: Vec<bool>,
    aborted: bool,
}

struct Office {
    mail: Mutex<Mail>,
    arrived: Condvar,
}

impl Office {
    fn lock(&self) -> MutexGuard<'_, Mail> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Abort for Office {
    fn abort(&self) {
        self.lock().aborted = true;
        self.arrived.notify_all();
    }
}

/// One rank's end of a group within a process. Dropping it makes the others see a lost peer.
pub struct LocalCollective {
    office: Arc<Office>,
    rank: usize,
    world: usize,
    era: Era,
    deadline: Duration,
    step: u64,
    sequence: u64,
}

/// The ends of a group of `world` ranks, in rank order; every wait ends after `deadline`.
#[must_use]
pub fn local_group(world: usize, era: Era, deadline: Duration) -> Vec<LocalCollective> {
    let queues = (0..world)
        .map(|_| (0..world).map(|_| VecDeque::new()).collect())
        .collect();
    let mail = Mail {
        queues,
        gone: vec![false; world],
        aborted: false,
    };
    let office = Arc::new(Office {
        mail: Mutex::new(mail),
        arrived: Condvar::new(),
    });
    let end = |rank| LocalCollective {
        office: Arc::clone(&office),
        rank,
        world,
        era,
        deadline,
        step: 0,
        sequence: 0,
    };
    (0..world).map(end).collect()
}

impl LocalCollective {
    fn post(&self, to: usize, data: &[f32]) -> Result<(), CollectiveError> {
        let mut mail = self.office.lock();
        if mail.aborted {
            return Err(CollectiveError::Aborted);
        }
        let frame = Frame {
            step: self.step,
            sequence: self.sequence,
            data: data.to_vec(),
        };
        mail.queues[self.rank][to].push_back(frame);
        drop(mail);
        self.office.arrived.notify_all();
        Ok(())
    }

    fn take(&self, from: usize, len: usize) -> Result<Vec<f32>, CollectiveError> {
        let rank = from as u32;
        let until = Instant::now() + self.deadline;
        let mut mail = self.office.lock();
        let frame = loop {
            if mail.aborted {
                return Err(CollectiveError::Aborted);
            }
            if let Some(frame) = mail.queues[from][self.rank].pop_front() {
                break frame;
            }
            if mail.gone[from] {
                return Err(CollectiveError::PeerLost {
                    rank,
                    reason: "it left the group".to_owned(),
                });
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(CollectiveError::Deadline {
                    rank,
                    millis: self.deadline.as_millis() as u64,
                });
            }
            let wait = self.office.arrived.wait_timeout(mail, left);
            mail = wait.unwrap_or_else(PoisonError::into_inner).0;
        };
        let got = (frame.step, frame.sequence, frame.data.len());
        let wanted = (self.step, self.sequence, len);
        if got != wanted {
            let reason = format!("(step, call, length) is {got:?} instead of {wanted:?}");
            return Err(CollectiveError::Protocol { rank, reason });
        }
        Ok(frame.data)
    }

    /// Everybody's data, in rank order.
    fn exchange(&mut self, counts: &[usize], mine: &[f32]) -> Result<Vec<Vec<f32>>, CollectiveError> {
        self.sequence += 1;
        for peer in (0..self.world).filter(|peer| *peer != self.rank) {
            self.post(peer, mine)?;
        }
        let part = |peer| {
            if peer == self.rank {
                Ok(mine.to_vec())
            } else {
                self.take(peer, counts[peer])
            }
        };
        (0..self.world).map(part).collect()
    }
}

impl Drop for LocalCollective {
    fn drop(&mut self) {
        self.office.lock().gone[self.rank] = true;
        self.office.arrived.notify_all();
    }
}

impl Collective for LocalCollective {
    type Buffer = [f32];

    fn world(&self) -> u32 {
        self.world as u32
    }

    fn rank(&self) -> u32 {
        self.rank as u32
    }

    fn era(&self) -> Era {
        self.era
    }

    fn begin_step(&mut self, step: u64) {
        self.step = step;
        self.sequence = 0;
    }

    fn reduce_tree(
        &mut self,
        layout: &LeafLayout,
        rows: usize,
        width: usize,
        roots: &[f32],
        out: &mut [f32],
    ) -> Result<(), CollectiveError> {
        let leaves = layout.owners.last().map_or(0, |owned| owned.end);
        let trees: Vec<_> = layout
            .owners
            .iter()
            .map(|owned| maximal_subtrees(leaves, owned))
            .collect();
        let size = rows * width;
        let counts: Vec<usize> = trees.iter().map(|trees| trees.len() * size).collect();
        let all = self.exchange(&counts, roots)?;
        let mut parts = trees
            .iter()
            .zip(&all)
            .flat_map(|(trees, data)| trees.iter().cloned().zip(data.chunks_exact(size)))
            .map(|(tree, root)| (tree, root.to_vec()));
        let total = join(&(0..leaves), &mut parts, &mut |mut left: Vec<f32>, right| {
            left.iter_mut()
                .zip(&right)
                .for_each(|(left, right)| *left += right);
            left
        });
        match total {
            Some(total) => out.copy_from_slice(&total),
            None => {
                let reason = "the owners of the leaves do not cover the tree".to_owned();
                return Err(CollectiveError::Protocol {
                    rank: self.rank as u32,
                    reason,
                });
            }
        }
        Ok(())
    }

    fn all_gather(&mut self, counts: &[usize], mine: &[f32], out: &mut [f32]) -> Result<(), CollectiveError> {
        let all = self.exchange(counts, mine)?;
        out.copy_from_slice(&all.concat());
        Ok(())
    }

    fn send(&mut self, to: u32, data: &[f32]) -> Result<(), CollectiveError> {
        self.sequence += 1;
        self.post(to as usize, data)
    }

    fn recv(&mut self, from: u32, data: &mut [f32]) -> Result<(), CollectiveError> {
        self.sequence += 1;
        data.copy_from_slice(&self.take(from as usize, data.len())?);
        Ok(())
    }

    fn abort_handle(&self) -> Arc<dyn Abort> {
        Arc::clone(&self.office) as Arc<dyn Abort>
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ERA: Era = Era {
        generation: 1,
        epoch: 1,
    };

    #[test]
    fn the_sum_is_the_trees() {
        // (2^24 + 1) + (1 - 2^24) in f32 is 1; a chain would give 0.
        let layout = LeafLayout {
            owners: vec![0..1, 1..4],
        };
        let ends = local_group(2, ERA, Duration::from_secs(10));
        let roots = [vec![16_777_216.0], vec![1.0, 1.0 - 16_777_216.0]];
        std::thread::scope(|scope| {
            for (mut end, roots) in ends.into_iter().zip(&roots) {
                let layout = &layout;
                scope.spawn(move || {
                    let mut out = [0.0];
                    end.begin_step(1);
                    end.reduce_tree(layout, 1, 1, roots, &mut out).unwrap();
                    assert_eq!(out, [1.0]);
                    let mut all = [0.0; 3];
                    let mine = vec![end.rank() as f32; end.rank() as usize + 1];
                    end.all_gather(&[1, 2], &mine, &mut all).unwrap();
                    assert_eq!(all, [0.0, 1.0, 1.0]);
                });
            }
        });
    }

    #[test]
    fn every_wait_ends_with_the_reason() {
        let mut ends = local_group(3, ERA, Duration::from_millis(5));
        let mut data = [0.0];
        assert!(matches!(
            ends[0].recv(1, &mut data),
            Err(CollectiveError::Deadline { rank: 1, .. })
        ));
        drop(ends.pop());
        assert!(matches!(
            ends[0].recv(2, &mut data),
            Err(CollectiveError::PeerLost { rank: 2, .. })
        ));
        ends[1].begin_step(7);
        ends[1].send(0, &[1.0]).unwrap();
        assert!(matches!(
            ends[0].recv(1, &mut data),
            Err(CollectiveError::Protocol { rank: 1, .. })
        ));
        ends[0].abort_handle().abort();
        assert_eq!(ends[1].recv(0, &mut data), Err(CollectiveError::Aborted));
    }
}
