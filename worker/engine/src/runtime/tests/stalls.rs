//! The leader's clock: who hears that it is there, and who is found to stand still.

use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use super::group::config;
use crate::mesh::{MeshError, Message};
use crate::runtime::executor::{Executor, LeaderLink};
use crate::runtime::member::link::Incoming;
use crate::step::{BlockDeltas, Era, Plan, StepOutput};

const ERA: Era = Era {
    generation: 1,
    epoch: 1,
};
/// A member says that it moves every two seconds, and has stalled after eight.
const STALL: Duration = Duration::from_secs(8);

struct Clock {
    executor: Executor,
    members: Vec<Receiver<Incoming>>,
    start: Instant,
}

impl Clock {
    /// Two members that have formed.
    fn formed() -> Self {
        let config = config(0, 2, STALL);
        let start = Instant::now();
        let (links, members) = config
            .members
            .ranks()
            .iter()
            .map(|_| mpsc::channel())
            .map(|(sender, receiver)| (LeaderLink::Local(sender), receiver))
            .unzip();
        let mut executor = Executor::new(ERA, &config.members, links, config.patience(), start);
        for rank in 0..2 {
            let ready = Message::Ready {
                blocks: 9,
                kept: None,
                missing: Vec::new(),
            };
            executor.receive(rank, 0, ready, start).unwrap();
        }
        Self {
            executor,
            members,
            start,
        }
    }

    fn at(&self, seconds: u64) -> Instant {
        self.start + Duration::from_secs(seconds)
    }

    fn submit(&mut self, step: u64, seconds: u64) {
        let plan = Plan {
            era: ERA,
            step,
            rows: Vec::new(),
            blocks: BlockDeltas::default(),
            late_tokens: 0,
            late_sampling: false,
            state_hash: 0,
        };
        let at = self.at(seconds);
        self.executor.submit(plan, at).unwrap();
    }

    fn check(&mut self, seconds: u64) -> Result<(), MeshError> {
        let at = self.at(seconds);
        self.executor.check(at)
    }

    fn says(&mut self, rank: u32, step: u64, message: Message, seconds: u64) {
        let at = self.at(seconds);
        self.executor.receive(rank, step, message, at).unwrap();
    }

    /// What a member has heard since it was asked last.
    fn heard(&self, rank: usize) -> Vec<&'static str> {
        let messages = self.members[rank].try_iter();
        messages.map(|message| message.unwrap().1.name()).collect()
    }
}

#[test]
fn members_hear_often_enough_that_the_leader_is_there() {
    let mut clock = Clock::formed();
    clock.submit(1, 0);
    assert_eq!(clock.heard(1), ["Plan"]);
    assert_eq!(clock.executor.check_at(), clock.at(2));
    for seconds in 1..8 {
        clock.check(seconds).unwrap();
    }
    // Four times as often as a member loses its patience, and no more often.
    assert_eq!(clock.heard(0), ["Plan", "Alive", "Alive", "Alive"]);
    assert_eq!(clock.heard(1), ["Alive", "Alive", "Alive"]);
    // Whatever else it says tells the same.
    clock.submit(2, 7);
    clock.check(8).unwrap();
    assert_eq!(clock.heard(1), ["Plan"]);
}

#[test]
fn a_member_that_makes_no_progress_is_found_and_named() {
    let mut clock = Clock::formed();
    clock.submit(1, 100);
    // Hours of one step are no stall while somebody moves.
    for minute in 0..60 {
        let seconds = 100 + minute * 9;
        clock.says(0, 0, Message::Progress { layers: minute }, seconds);
        clock.check(seconds + 8).unwrap();
    }
    let last = 100 + 59 * 9;
    assert_eq!(
        clock.check(last + 9),
        Ok(()),
        "as long as a member may wait itself"
    );
    let stalled = Err(MeshError::Deadline {
        rank: 1,
        millis: 8000,
    });
    assert_eq!(clock.check(last + 10), stalled, "it has computed least");
}

#[test]
fn who_has_answered_is_not_blamed_and_an_idle_group_owes_nothing() {
    let mut clock = Clock::formed();
    clock.submit(1, 0);
    clock.says(1, 0, Message::Progress { layers: 1 }, 1);
    clock.says(0, 1, Message::Output(StepOutput::default()), 2);
    assert!(matches!(
        clock.check(12),
        Err(MeshError::Deadline { rank: 1, .. })
    ));
    clock.says(1, 1, Message::Output(StepOutput::default()), 13);
    assert_eq!(clock.check(10_000), Ok(()));
    // The rest before a step does not count.
    clock.submit(2, 20_000);
    assert_eq!(clock.check(20_009), Ok(()));
    assert!(clock.check(20_010).is_err());
}

#[test]
fn a_member_that_does_not_form_is_found() {
    let config = config(0, 2, STALL);
    let start = Instant::now();
    let (sender, _own) = mpsc::channel();
    let (other, _others) = mpsc::channel();
    let links = vec![LeaderLink::Local(sender), LeaderLink::Local(other)];
    let mut executor = Executor::new(ERA, &config.members, links, config.patience(), start);
    let ready = Message::Ready {
        blocks: 9,
        kept: None,
        missing: Vec::new(),
    };
    executor.receive(0, 0, ready, start).unwrap();
    let late = start + config.form_timeout;
    assert_eq!(executor.check(late - Duration::from_millis(1)), Ok(()));
    assert!(matches!(
        executor.check(late),
        Err(MeshError::Deadline { rank: 1, .. })
    ));
}
