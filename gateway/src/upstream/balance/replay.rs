//! Traces replayed on leaders with caches: what affinity brings beside the least loaded and beside taking turns.
//!
//! Conversations of many turns under a few long system prompts arrive at random; each leader caches the conversations
//! that it saw last. The same seed makes the same trace for all.

use std::collections::VecDeque;

use llamero_proto::v1::{ChatMessage, ChatPrompt, completion_request::Prompt};

use super::{Affinity, Candidate, choose};

const LEADERS: usize = 4;
const CONVERSATIONS: usize = 160;
const TURNS: usize = 8;
/// Conversations that a leader's cache holds: together a little more than are under way.
const CACHED: usize = 48;
/// Requests that run at once.
const RUNNING: usize = 32;

/// Numbers that look random, the same for the same seed (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    Affinity,
    LeastLoaded,
    Turns,
}

#[derive(Default)]
struct SimulatedLeader {
    running: u32,
    /// Conversations, the one used last behind.
    cache: VecDeque<usize>,
}

/// The share of requests whose conversation was in the leader's cache, and the most requests that a leader had at once.
fn replay(policy: Policy, seed: u64) -> (f64, u32) {
    let mut random = Random(seed);
    let addresses: Vec<String> = (0..LEADERS)
        .map(|leader| format!("10.0.0.{leader}:18051"))
        .collect();
    let mut leaders: Vec<SimulatedLeader> = (0..LEADERS).map(|_| SimulatedLeader::default()).collect();
    let mut left: Vec<(usize, usize)> = (0..CONVERSATIONS)
        .map(|conversation| (conversation, TURNS))
        .collect();
    let mut running: VecDeque<usize> = VecDeque::new();
    let (mut hits, mut later, mut most, mut turn) = (0_u32, 0_u32, 0, 0);
    while !left.is_empty() {
        let at = random.below(left.len());
        let (conversation, turns) = left[at];
        if running.len() == RUNNING {
            let ended = running.remove(random.below(RUNNING)).unwrap();
            leaders[ended].running -= 1;
        }
        let candidates: Vec<Candidate<'_>> = leaders
            .iter()
            .zip(&addresses)
            .map(|(leader, address)| Candidate {
                address,
                load: leader.running,
                queue: false,
                cache: 0,
                draining: false,
            })
            .collect();
        turn += 1;
        let chosen = match policy {
            Policy::Affinity => choose(&candidates, affinity(conversation)).unwrap(),
            Policy::LeastLoaded => choose(&candidates, None).unwrap(),
            Policy::Turns => turn % LEADERS,
        };
        let leader = &mut leaders[chosen];
        let known = leader.cache.iter().position(|&cached| cached == conversation);
        if turns < TURNS {
            later += 1;
            hits += u32::from(known.is_some());
        }
        if let Some(known) = known {
            leader.cache.remove(known);
        } else if leader.cache.len() == CACHED {
            leader.cache.pop_front();
        }
        leader.cache.push_back(conversation);
        leader.running += 1;
        most = most.max(leader.running);
        running.push_back(chosen);
        if turns == 1 {
            left.swap_remove(at);
        } else {
            left[at].1 -= 1;
        }
    }
    (f64::from(hits) / f64::from(later), most)
}

/// Of a conversation under one of three system prompts.
fn affinity(conversation: usize) -> Option<Affinity> {
    let message = |role: &str, content: String| ChatMessage {
        role: role.to_owned(),
        content,
        ..ChatMessage::default()
    };
    let system = format!(
        "You are assistant {}. {}",
        conversation % 3,
        "Be kind. ".repeat(400)
    );
    Affinity::of_prompt(&Prompt::Chat(ChatPrompt {
        messages: vec![
            message("system", system),
            message("user", format!("This is conversation {conversation}.")),
        ],
        ..ChatPrompt::default()
    }))
}

#[test]
fn affinity_finds_caches_and_keeps_the_load_even() {
    for seed in 1..=5 {
        let (hits, most) = replay(Policy::Affinity, seed);
        let (least, _) = replay(Policy::LeastLoaded, seed);
        let (turns, _) = replay(Policy::Turns, seed);
        println!(
            "seed {seed}: affinity {hits:.2} (at most {most} at once), least loaded {least:.2}, turns {turns:.2}"
        );
        assert!(
            hits > 2.0 * least && hits > 2.0 * turns,
            "seed {seed}: {hits} {least} {turns}"
        );
        assert!(hits > 0.6, "seed {seed}: {hits}");
        // 1.25 times the fair share of 32 requests, rounded up.
        assert!(most <= 11, "seed {seed}: {most}");
    }
}
