//! Traces replayed on simulated leaders with caches: what affinity brings beside the least loaded and beside taking turns, in hits and in time to the
//! first token.
//!
//! Conversations of many turns under a few long system prompts begin at random, and each goes on a while after its last answer. A leader computes one
//! prompt at a time, without what its cache holds of it, and caches the conversations that it saw last. The same seed makes the same trace for all.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use llamero_proto::v1::{ChatMessage, ChatPrompt, completion_request::Prompt};
use llamero_settings::hash::{GOLDEN, mix};

use super::{Affinity, Candidate, choose};

const LEADERS: usize = 4;
const CONVERSATIONS: usize = 600;
const SYSTEM_PROMPTS: usize = 3;
/// Tokens of a system prompt.
const SYSTEM: u64 = 1_000;
/// Tokens that a leader's cache holds: together a little more than the conversations that are under way.
const CACHED: u64 = 160_000;
/// Microseconds to compute a token of a prompt, and to begin with it.
const PREFILL: u64 = 125;
const BEGIN: u64 = 20_000;
/// Microseconds a token of an answer.
const DECODE: u64 = 20_000;
/// Mean microseconds between two conversations, and between an answer and the next question.
const BETWEEN: u64 = 800_000;
const THINKING: u64 = 15_000_000;
/// A prompt that would wait so many microseconds counts as queued.
const QUEUED: u64 = 500_000;

/// Numbers that look random, the same for the same seed (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0) % bound
    }

    /// Exponentially distributed.
    fn pause(&mut self, mean: u64) -> u64 {
        let share = (self.below(1 << 32) + 1) as f64 / (1_u64 << 32) as f64;
        (-share.ln() * mean as f64) as u64
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    Affinity,
    LeastLoaded,
    Turns,
}

/// What a user says in each turn, and how long the answers are, in tokens; the pause before the next turn.
struct Turn {
    question: u64,
    answer: u64,
    pause: u64,
}

struct Conversation {
    begins: u64,
    affinity: Option<Affinity>,
    turns: Vec<Turn>,
}

fn trace(seed: u64) -> Vec<Conversation> {
    let mut random = Random(seed);
    let mut begins = 0;
    let conversations = (0..CONVERSATIONS).map(|number| {
        begins += random.pause(BETWEEN);
        let count = 2 + random.below(9);
        let turns = (0..count).map(|turn| Turn {
            question: if turn == 0 {
                200 + random.below(1_800)
            } else {
                50 + random.below(450)
            },
            answer: 50 + random.below(350),
            pause: random.pause(THINKING),
        });
        Conversation {
            turns: turns.collect(),
            begins,
            affinity: affinity(number),
        }
    });
    conversations.collect()
}

/// Of a conversation under one of the system prompts.
fn affinity(conversation: usize) -> Option<Affinity> {
    let message = |role: &str, content: String| ChatMessage {
        role: role.to_owned(),
        content,
        ..ChatMessage::default()
    };
    let system = format!(
        "You are assistant {}. {}",
        conversation % SYSTEM_PROMPTS,
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

#[derive(Default)]
struct SimulatedLeader {
    running: u32,
    /// When the prompts that it has are computed.
    busy_until: u64,
    /// Conversations and their tokens, the one used last behind.
    cache: VecDeque<(usize, u64)>,
}

impl SimulatedLeader {
    /// Tokens of the prompt that need not be computed. The whole of it is cached from now on.
    fn look_up(&mut self, conversation: usize, tokens: u64) -> u64 {
        let alike = |(other, _): &(usize, u64)| other % SYSTEM_PROMPTS == conversation % SYSTEM_PROMPTS;
        let shared = if self.cache.iter().any(alike) { SYSTEM } else { 0 };
        let known = self.cache.iter().position(|(other, _)| *other == conversation);
        let known = known
            .and_then(|at| self.cache.remove(at))
            .map_or(shared, |(_, tokens)| tokens);
        self.cache.push_back((conversation, tokens));
        while self.cache.iter().map(|(_, tokens)| tokens).sum::<u64>() > CACHED {
            self.cache.pop_front();
        }
        known
    }
}

/// What a policy made of a trace.
#[derive(Debug)]
struct Figures {
    /// Share of the prompts' tokens that were cached.
    hits: f64,
    /// Milliseconds to the first token: mean, median and 99th percentile.
    mean: f64,
    median: f64,
    p99: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The next turn of a conversation.
    Ask { conversation: usize, turn: usize },
    /// An answer of a leader has ended.
    Ended { leader: usize },
}

fn replay(policy: Policy, trace: &[Conversation]) -> Figures {
    let addresses: Vec<String> = (0..LEADERS)
        .map(|leader| format!("10.0.0.{leader}:18051"))
        .collect();
    let mut leaders: Vec<SimulatedLeader> = (0..LEADERS).map(|_| SimulatedLeader::default()).collect();
    let first = trace.iter().enumerate();
    let first = first.map(|(conversation, it)| {
        Reverse((
            it.begins,
            Event::Ask {
                conversation,
                turn: 0,
            },
        ))
    });
    let mut events: BinaryHeap<Reverse<(u64, Event)>> = first.collect();
    let (mut cached, mut tokens, mut first_tokens, mut turns) = (0, 0, Vec::new(), 0);
    while let Some(Reverse((now, event))) = events.pop() {
        let (conversation, turn) = match event {
            Event::Ask { conversation, turn } => (conversation, turn),
            Event::Ended { leader } => {
                leaders[leader].running -= 1;
                continue;
            }
        };
        let Conversation {
            turns: said,
            affinity,
            ..
        } = &trace[conversation];
        let prompt = SYSTEM
            + said[..turn]
                .iter()
                .map(|turn| turn.question + turn.answer)
                .sum::<u64>()
            + said[turn].question;
        turns += 1;
        let candidates = candidates(&leaders, &addresses, now);
        let chosen = match policy {
            Policy::Affinity => choose(&candidates, *affinity).unwrap(),
            Policy::LeastLoaded => choose(&candidates, None).unwrap(),
            Policy::Turns => turns % LEADERS,
        };
        let leader = &mut leaders[chosen];
        let known = leader.look_up(conversation, prompt + said[turn].answer);
        leader.running += 1;
        leader.busy_until = leader.busy_until.max(now) + BEGIN + (prompt - known) * PREFILL;
        let ends = leader.busy_until + said[turn].answer * DECODE;
        cached += known;
        tokens += prompt;
        first_tokens.push((leader.busy_until - now) as f64 / 1000.0);
        events.push(Reverse((ends, Event::Ended { leader: chosen })));
        if turn + 1 < said.len() {
            let next = Event::Ask {
                conversation,
                turn: turn + 1,
            };
            events.push(Reverse((ends + said[turn].pause, next)));
        }
    }
    first_tokens.sort_by(f64::total_cmp);
    let at = |share: usize| first_tokens[first_tokens.len() * share / 100];
    Figures {
        hits: cached as f64 / tokens as f64,
        mean: first_tokens.iter().sum::<f64>() / first_tokens.len() as f64,
        median: at(50),
        p99: at(99),
    }
}

fn candidates<'a>(leaders: &[SimulatedLeader], addresses: &'a [String], now: u64) -> Vec<Candidate<'a>> {
    let each = leaders.iter().zip(addresses);
    each.map(|(leader, address)| Candidate {
        address,
        load: leader.running,
        queue: leader.busy_until > now + QUEUED,
        cache: 0,
        draining: false,
    })
    .collect()
}

#[test]
fn affinity_finds_caches_and_shortens_the_wait_for_the_first_token() {
    for seed in 1..=5 {
        let trace = trace(seed);
        let [affinity, least, turns] =
            [Policy::Affinity, Policy::LeastLoaded, Policy::Turns].map(|policy| replay(policy, &trace));
        println!("seed {seed}\n  affinity {affinity:.2?}\n  least loaded {least:.2?}\n  turns {turns:.2?}");
        for other in [&least, &turns] {
            let better = affinity.hits > 1.5 * other.hits
                && affinity.mean < 0.7 * other.mean
                && affinity.median < 0.5 * other.median
                && affinity.p99 < other.p99;
            assert!(better, "seed {seed}: {affinity:?} {other:?}");
        }
    }
}
