//! From a seed to faults and their times. The same seed and length give the same schedule.

use std::time::Duration;

use super::fault::{Fault, Kind};
use super::random::Random;

/// Runs of at least this long have the long shapes of faults.
const LONG: Duration = Duration::from_secs(600);
/// Seconds before the first fault, so that all streams run.
const FIRST: u64 = 4;
/// Seconds between the end of a fault and the next one, from and to.
const PAUSE: (u64, u64) = (1, 5);

/// The faults of a run, one after the other, in the order of their times. Every kind that fits comes once before any comes again, and none more often than
/// [`Kind::most`]; where one is named there is no other.
#[must_use]
pub fn schedule(seed: u64, run: Duration, only: Option<Kind>) -> Vec<Fault> {
    let mut random = Random::new(seed);
    let mut faults: Vec<Fault> = Vec::new();
    let mut deck: Vec<Kind> = Vec::new();
    let mut at = Duration::from_secs(FIRST);
    while at < run {
        if deck.is_empty() {
            deck = Kind::ALL
                .into_iter()
                .filter(|kind| {
                    let there = faults.iter().filter(|fault| fault.kind == *kind).count();
                    Duration::from_secs(kind.shape().room) <= run
                        && there < kind.most()
                        && only.is_none_or(|only| only == *kind)
                })
                .collect();
            random.shuffle(&mut deck);
        }
        let Some(kind) = deck.pop() else { break };
        let shape = kind.shape();
        let (least, most) = if run < LONG { shape.short } else { shape.long };
        let lasts = Duration::from_secs(random.between(least, most));
        let pick = random.next();
        let pause = Duration::from_secs(random.between(PAUSE.0, PAUSE.1));
        if at + lasts <= run {
            faults.push(Fault {
                at,
                lasts,
                kind,
                pick,
            });
        }
        at += lasts + pause;
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_seed_repeats_its_schedule_and_another_gives_another() {
        assert_eq!(schedule(7, MINUTE, None), schedule(7, MINUTE, None));
        assert_ne!(schedule(7, MINUTE, None), schedule(8, MINUTE, None));
    }

    #[test]
    fn faults_come_one_after_the_other_and_end_within_the_run() {
        for seed in 0..200 {
            let faults = schedule(seed, MINUTE, None);
            assert!(faults.len() >= 5, "seed {seed}: {faults:?}");
            for pair in faults.windows(2) {
                assert!(pair[0].at + pair[0].lasts < pair[1].at, "seed {seed}: {pair:?}");
            }
            assert!(faults.iter().all(|fault| fault.at + fault.lasts <= MINUTE));
        }
    }

    #[test]
    fn an_hour_has_every_kind_and_a_minute_none_that_needs_longer() {
        let hour = schedule(1, 60 * MINUTE, None);
        for kind in Kind::ALL {
            assert!(hour.iter().any(|fault| fault.kind == kind), "{kind:?}");
        }
        let minute = schedule(1, MINUTE, None);
        assert!(minute.iter().all(|fault| fault.kind != Kind::LoseNode));
        for seed in 0..50 {
            let wrong = |only| {
                let faults = schedule(seed, 60 * MINUTE, only);
                faults
                    .iter()
                    .filter(|fault| fault.kind == Kind::CorruptShard)
                    .count()
            };
            assert_eq!(
                wrong(Some(Kind::CorruptShard)),
                Kind::CorruptShard.most(),
                "seed {seed}"
            );
            assert!(
                (1..=Kind::CorruptShard.most()).contains(&wrong(None)),
                "seed {seed}"
            );
        }
        let clocks = schedule(1, MINUTE, Some(Kind::ShiftClock));
        assert!(clocks.len() > 2 && clocks.iter().all(|fault| fault.kind == Kind::ShiftClock));
    }
}
