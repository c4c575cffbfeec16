//! How long the leader takes where the group is large. Measures and checks nothing; run it on a quiet machine by
//! `cargo test --release -p llamero-engine --lib speed -- --ignored --nocapture`.

use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use llamero_checkpoint::Runs;

use super::group::greedy;
use crate::mesh::{ControlLink, EraAbort, Message, Topology};
use crate::runtime::executor::{Executor, LeaderLink};
use crate::runtime::member::link::Incoming;
use crate::runtime::planner::Planner;
use crate::runtime::queue::QueueGauge;
use crate::runtime::{GenerationRequest, RankConfig};
use crate::sampling::SamplingParams;
use crate::sampling::candidates::{ShardLogits, candidates};
use crate::schedule::SequenceId;
use crate::step::{Era, StepOutput, VOCAB_TILE};

const ROWS: u64 = 64;
const VOCAB: u32 = 128_256;
const RANKS: u32 = 8;
const STEPS: u64 = 300;
const ERA: Era = Era {
    generation: 1,
    epoch: 1,
};

/// A link over loopback, and its other end, which nobody waits at: members on other hosts take no time here.
fn link(rank: u32) -> (ControlLink, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let here = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (there, _) = listener.accept().unwrap();
    here.set_nodelay(true).unwrap();
    here.set_nonblocking(true).unwrap();
    there.set_nonblocking(true).unwrap();
    let link = ControlLink::new(here, rank, ERA, Arc::new(EraAbort::default()));
    (link, there)
}

/// Read and forget all that has come.
fn empty(mut stream: &TcpStream) {
    let mut bytes = [0; 1 << 16];
    while stream.read(&mut bytes).is_ok_and(|count| count > 0) {}
}

/// The answer of every rank to a step in which every row samples as `request` does.
fn answers(request: &GenerationRequest) -> Vec<StepOutput> {
    let tiles = VOCAB / VOCAB_TILE as u32;
    let key = request.sampling.key();
    (0..RANKS)
        .map(|rank| {
            let owned = Runs::from(rank * tiles / RANKS..(rank + 1) * tiles / RANKS);
            let logits: Vec<f32> = owned
                .scaled(VOCAB_TILE as u32, VOCAB)
                .iter()
                // A few likely tokens and a long tail, as a language model has.
                .map(|token| {
                    let noise = (token.wrapping_mul(0x9e37_79b9) >> 16) as f32 / 16_384.0;
                    if token % 4000 == 0 { noise + 12.0 } else { noise }
                })
                .collect();
            let shard = ShardLogits {
                tiles: &owned,
                logits: &logits,
            };
            StepOutput {
                candidates: (0..ROWS as u32)
                    .map(|row| candidates((row, 0), shard, &key, 1000))
                    .collect(),
                hidden: Vec::new(),
            }
        })
        .collect()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// The way to all members, which have formed, and the members' ends of it.
fn formed(config: &RankConfig) -> (Executor, Receiver<Incoming>, Vec<TcpStream>) {
    let (local, own) = std::sync::mpsc::channel();
    let (links, ends): (Vec<_>, Vec<_>) = (1..RANKS).map(link).unzip();
    let remote = links.into_iter().map(|link| LeaderLink::Remote(Arc::new(link)));
    let links = std::iter::once(LeaderLink::Local(local)).chain(remote).collect();
    let mut executor = Executor::new(ERA, &config.members, links, config.patience(), Instant::now());
    for rank in 0..RANKS {
        let ready = Message::Ready {
            blocks: 20_000,
            kept: None,
        };
        executor.receive(rank, 0, ready, Instant::now()).unwrap();
    }
    (executor, own, ends)
}

/// Decode steps of `ROWS` requests, with one in flight while another is merged. Prints the medians of all that the planner
/// does in a step, and of the part of it until the members have the next step's tokens.
fn measure(name: &str, sampling: &SamplingParams) {
    let config = RankConfig {
        kv_bytes: 1,
        ..RankConfig::new(0, Topology::tensor(RANKS).into(), 131_072, "bench", "bench")
    };
    let queue = Arc::new(QueueGauge::new(1000, 1 << 30));
    let limits = config.limits(20_000);
    let mut planner = Planner::new(
        limits,
        2,
        config.step_target,
        Arc::default(),
        queue.clone(),
        config.prefix(),
    );
    let (mut executor, own, ends) = formed(&config);
    planner.enter(ERA, limits, None);
    let request = GenerationRequest {
        sampling: sampling.clone(),
        ..greedy(&[7; 16], 4000)
    };
    // One thread streams all answers.
    let (tokens, received) = std::sync::mpsc::channel();
    std::thread::spawn(move || received.iter().count());
    for id in 0..ROWS {
        queue.enter(16).unwrap();
        let tokens = tokens.clone();
        let sink = Box::new(move |event| tokens.send(event).is_ok());
        planner.submit(SequenceId(id), request.clone(), None, sink, Instant::now());
    }
    let answers = answers(&request);
    let (mut work, mut late) = (Vec::new(), Vec::new());
    planner.advance(&mut executor, Instant::now).unwrap();
    for step in 1..=STEPS {
        ends.iter().for_each(empty);
        own.try_iter().for_each(drop);
        let rows = planner.sampled_rows();
        for (rank, answer) in (0..).zip(&answers) {
            let mut answer = answer.clone();
            answer
                .candidates
                .retain(|candidates| rows.contains(&candidates.row));
            executor
                .receive(rank, step, Message::Output(answer), Instant::now())
                .unwrap();
        }
        let begin = Instant::now();
        planner.advance(&mut executor, Instant::now).unwrap();
        if rows.len() as u64 == ROWS {
            work.push(begin.elapsed());
            late.push(planner.late_sent_at().unwrap().saturating_duration_since(begin));
        }
    }
    println!(
        "{name}: {} steps of {ROWS} rows, {RANKS} ranks, {VOCAB} tokens: the planner's work {:?} a step (limit 1 ms), from the last answer \
         until late values were sent {:?} (limit 100 µs); medians",
        work.len(),
        median(work),
        median(late)
    );
}

#[test]
#[ignore = "measures, and needs a quiet machine"]
fn speed() {
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
    measure("greedy", &greedy);
    measure("temperature", &warm);
    measure("top-p", &nucleus);
    measure("penalties", &penalised);
}
