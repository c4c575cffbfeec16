//! How long the leader's planner takes where the group is large: real plans, answers and links, with members that compute
//! nothing, so that the figures are the leader's own.

use std::fmt;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use llamero_checkpoint::Runs;

use super::executor::{Executor, LeaderLink};
use super::member::link::Incoming;
use super::planner::Planner;
use super::queue::QueueGauge;
use super::request::{GenerationRequest, Sharing};
use super::{EventSink, RankConfig};
use crate::mesh::{Connection, ControlLink, EraAbort, LinkKind, Message, Outbox, Topology};
use crate::sampling::SamplingParams;
use crate::sampling::candidates::{ShardLogits, candidates};
use crate::schedule::SequenceId;
use crate::step::{Era, StepOutput, VOCAB_TILE};

/// KV blocks, more than the rows ever fill.
const BLOCKS: u32 = 20_000;
/// Longest answer.
const TOKENS: u32 = 4000;
const ERA: Era = Era {
    generation: 1,
    epoch: 1,
};

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannerBench {
    /// Sequences that decode.
    pub rows: u32,
    /// Tokens of the vocabulary.
    pub vocab: u32,
    /// Ranks, each of which answers every row from its share of the vocabulary.
    pub ranks: u32,
    /// Decode steps that are measured for each way of sampling.
    pub steps: u32,
}

impl Default for PlannerBench {
    /// Llama 3's vocabulary on the eight GPUs of one host.
    fn default() -> Self {
        Self {
            rows: 64,
            vocab: 128_256,
            ranks: 8,
            steps: 300,
        }
    }
}

/// Medians over the steps of one way of sampling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannerSpeed {
    /// How the rows sample.
    pub sampling: &'static str,
    /// All that the planner does in a step, from the first answer to the publication of the tokens.
    pub work: Duration,
    /// From the last rank's answer until every member has been sent the next step's tokens.
    pub late: Duration,
    /// The same from the first answer, when all come at once.
    pub late_at_once: Duration,
}

impl fmt::Display for PlannerSpeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        write!(
            f,
            "{:<11} {:4.0} µs a step; next tokens are sent {:3.0} µs after the last answer, {:3.0} µs after the first when all come at once",
            self.sampling,
            micros(self.work),
            micros(self.late),
            micros(self.late_at_once)
        )
    }
}

/// Measure decode steps with one in flight while another is merged, for each way of sampling.
///
/// # Errors
/// No sockets or threads can be had.
pub fn planner(bench: PlannerBench) -> io::Result<Vec<PlannerSpeed>> {
    let greedy = SamplingParams::greedy();
    let warm = SamplingParams {
        temperature: 0.8,
        seed: 1,
        ..greedy.clone()
    };
    let nucleus = SamplingParams {
        top_p: 0.95,
        ..warm.clone()
    };
    let penalised = SamplingParams {
        presence_penalty: 0.5,
        ..greedy.clone()
    };
    let ways = [
        ("greedy", greedy),
        ("temperature", warm),
        ("top-p", nucleus),
        ("penalties", penalised),
    ];
    ways.into_iter()
        .map(|(name, sampling)| Group::new(bench, sampling)?.measure(name))
        .collect()
}

/// A link over loopback, and its other end, which nobody waits at: members on other hosts take no time here.
fn link(rank: u32) -> io::Result<(Arc<ControlLink>, Connection)> {
    let (here, there) = Connection::pair((0, rank), ERA, LinkKind::Plan)?;
    let link = ControlLink::new(here, rank, ERA, Arc::new(EraAbort::default()));
    Ok((Arc::new(link), there))
}

/// A leader whose members answer at once.
struct Group {
    bench: PlannerBench,
    planner: Planner,
    executor: Executor,
    /// The members' ends, and this rank's own.
    ends: Vec<Connection>,
    own: Receiver<Incoming>,
    /// Every rank's answer to a step in which all rows are sampled.
    answers: Vec<StepOutput>,
}

impl Group {
    fn new(bench: PlannerBench, sampling: SamplingParams) -> io::Result<Self> {
        let config = RankConfig {
            max_sequences: bench.rows,
            ..RankConfig::new(0, Topology::tensor(bench.ranks).into(), 131_072, "bench", "bench")
        };
        let queue = Arc::new(QueueGauge::new(bench.rows, u64::MAX));
        let limits = config.limits(BLOCKS);
        let mut planner = Planner::new(
            limits,
            2,
            config.step_target,
            Arc::default(),
            queue.clone(),
            config.prefix(),
        );
        let (local, own) = channel();
        let (mut links, mut ends) = (vec![LeaderLink::Local(local)], Vec::new());
        for rank in 1..bench.ranks {
            let (link, end) = link(rank)?;
            // No member fails to read here.
            let outbox = Outbox::new(link, Duration::from_secs(60), |_| ());
            links.push(LeaderLink::Remote(outbox));
            ends.push(end);
        }
        let mut executor = Executor::new(ERA, &config.members, links, config.patience(), Instant::now());
        for rank in 0..bench.ranks {
            let ready = Message::Ready {
                blocks: BLOCKS,
                kept: None,
                missing: Vec::new(),
            };
            executor
                .receive(rank, 0, ready, Instant::now())
                .map_err(io::Error::other)?;
        }
        planner.enter(ERA, limits, None);
        let answers = (0..bench.ranks)
            .map(|rank| answer(bench, rank, &sampling))
            .collect();
        let request = GenerationRequest {
            prompt: vec![7; 16],
            resume: Vec::new(),
            max_tokens: TOKENS,
            open_ended: false,
            stop_tokens: Vec::new(),
            sampling,
            sharing: Sharing::default(),
            prompt_logprobs: None,
            priority: 0,
            pooling: None,
            adapter: None,
        };
        // One thread streams all answers.
        let (tokens, received) = channel();
        std::thread::Builder::new().spawn(move || received.iter().for_each(drop))?;
        for id in 0..bench.rows {
            queue
                .enter(request.queued_tokens())
                .map_err(|full| io::Error::other(full.message))?;
            let tokens = tokens.clone();
            let sink: EventSink = Box::new(move |event| tokens.send(event).is_ok());
            planner.submit(SequenceId(id.into()), request.clone(), None, sink, Instant::now());
        }
        Ok(Self {
            bench,
            planner,
            executor,
            ends,
            own,
            answers,
        })
    }

    fn measure(mut self, sampling: &'static str) -> io::Result<PlannerSpeed> {
        let [mut work, mut late, mut late_at_once] = [(); 3].map(|()| Vec::new());
        self.planner
            .advance(&mut self.executor, Instant::now)
            .map_err(io::Error::other)?;
        for step in 1..=u64::from(self.bench.steps) {
            // Read and forget what the members were sent.
            for mut end in self.ends.iter().map(Connection::stream) {
                let mut bytes = [0; 1 << 16];
                while end.read(&mut bytes).is_ok_and(|count| count > 0) {}
            }
            self.own.try_iter().for_each(drop);
            let rows = self.planner.sampled_rows();
            let (first, last, end) = self.step(step, &rows).map_err(io::Error::other)?;
            // Prompts are computed before.
            if rows.len() == self.bench.rows as usize
                && let Some(sent) = self.planner.late_sent_at()
            {
                work.push(end - first);
                late.push(sent.saturating_duration_since(last));
                late_at_once.push(sent.saturating_duration_since(first));
            }
        }
        Ok(PlannerSpeed {
            sampling,
            work: median(work),
            late: median(late),
            late_at_once: median(late_at_once),
        })
    }

    /// Every rank answers these rows of a step. When the first answer and the last one came, and when all was done.
    fn step(
        &mut self,
        step: u64,
        rows: &[u32],
    ) -> Result<(Instant, Instant, Instant), crate::mesh::MeshError> {
        let mut outputs = self.answers.clone();
        for output in &mut outputs {
            output
                .candidates
                .retain(|candidates| rows.contains(&candidates.row));
        }
        let first = Instant::now();
        let mut last = first;
        for (rank, output) in (0..).zip(outputs) {
            last = Instant::now();
            self.executor.receive(rank, step, Message::Output(output), last)?;
            self.planner.advance(&mut self.executor, Instant::now)?;
        }
        Ok((first, last, Instant::now()))
    }
}

/// The answer of one rank: a few likely tokens and a long tail, as a language model has, and other noise for every row.
fn answer(bench: PlannerBench, rank: u32, sampling: &SamplingParams) -> StepOutput {
    let tile = u32::try_from(VOCAB_TILE).unwrap_or(u32::MAX);
    let tiles = bench.vocab.div_ceil(tile);
    let share = |rank: u32| rank * tiles / bench.ranks;
    let owned = Runs::from(Range {
        start: share(rank),
        end: share(rank + 1),
    });
    let logits: Vec<f32> = owned
        .scaled(tile, bench.vocab)
        .iter()
        .map(|token| {
            let noise = (token.wrapping_mul(0x9e37_79b9) >> 16) as f32 / 16_384.0;
            if token % 4000 == 0 { noise + 12.0 } else { noise }
        })
        .collect();
    let shard = ShardLogits {
        tiles: &owned,
        logits: &logits,
    };
    let rows = 0..bench.rows;
    StepOutput {
        candidates: rows
            .map(|row| candidates((row, 0), shard, &sampling.key(), 1000 + row))
            .collect(),
        hidden: Vec::new(),
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
