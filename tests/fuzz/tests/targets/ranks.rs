//! What ranks say to each other: handshakes, messages, and plans up to what checks them.

use llamero_checkpoint::{ContentIdentity, Runs};
use llamero_engine::kv_state::{KvState, answers, resolve};
use llamero_engine::late_values::LateValues;
use llamero_engine::mesh::frame::{HEADER, Header, Kind};
use llamero_engine::mesh::hello::{Answer, Challenge, Hello, Opening, SignedAnswer, SignedHello};
use llamero_engine::mesh::{Failure, Identity, LinkKind, Members, MeshError, Message, Topology};
use llamero_engine::sampling::{Noise, RowAnswers, SamplingParams, join_shards, merge};
use llamero_engine::step::{BlockDeltas, SampleKey};
use llamero_engine::{
    AdapterSource, BlockTables, Era, FormLimits, KvDtype, Late, LogitShard, Plan, PlanRow, RowCandidates,
    RowOutput, StepOutput, TokenRef,
};
use llamero_fuzz::{Shape, Target, drive};

use crate::outcome;

pub(crate) const ERA: Era = Era {
    generation: 3,
    epoch: 1,
};
const VOCABULARY: usize = 512;
const BLOCKS: u32 = 16;
/// Messages of one input that are taken.
const MOST: usize = 16;
const LIMITS: FormLimits = FormLimits {
    max_sequences: 4,
    max_batched_tokens: 64,
    max_context: 128,
    block_size: 16,
    steps_in_flight: 2,
    kv_dtype: KvDtype::Bf16,
    max_adapters: 1,
    max_adapter_rank: 8,
};

fn identity() -> Identity {
    Identity {
        group_uid: "uid".to_owned(),
        rank: 0,
        members: Members::new(Topology::tensor(2), &[]).unwrap(),
        numerics: "class".to_owned(),
        content: "content".to_owned(),
    }
}

#[test]
fn handshakes() {
    let identity = identity();
    let hello = identity.hello(ERA, 1, LinkKind::Data);
    let seeds = vec![
        postcard::to_stdvec(&hello).unwrap(),
        Header::of(Kind::Control, ERA, 1).encode().to_vec(),
    ];
    let target = Target {
        name: "handshake",
        shape: Shape::Bytes,
        factor: 200,
        constant: 64 << 10,
        threads: false,
    };
    drive(target, || {
        (seeds, move |input: &[u8]| {
            let mut words = Vec::new();
            if let Some(header) = input.first_chunk::<HEADER>() {
                words.push(outcome(Header::decode(header)));
            }
            let hello = postcard::from_bytes::<Hello>(input);
            if let Ok(hello) = &hello {
                words.push(outcome(identity.check(hello).map_err(|(_, sentence)| sentence)));
            }
            words.push(outcome(postcard::from_bytes::<Opening>(input)));
            words.push(outcome(postcard::from_bytes::<Challenge>(input)));
            words.push(outcome(postcard::from_bytes::<SignedHello>(input)));
            words.push(outcome(postcard::from_bytes::<SignedAnswer>(input)));
            words.push(outcome(postcard::from_bytes::<Answer>(input)));
            words.join(" ")
        })
    });
}

fn row(slot: u32, start: u32, tokens: Vec<TokenRef>, output: RowOutput) -> PlanRow {
    PlanRow {
        slot,
        start,
        tokens,
        adapter: None,
        output,
    }
}

/// Plans that follow each other: two prompts, of which one is scored; then a token each, of which one is late; then a rewind
/// over a copied block.
fn plans() -> [Plan; 3] {
    let known = |count: u32| (0..count).map(TokenRef::Known).collect::<Vec<_>>();
    let sample = RowOutput::Sample {
        last: 1,
        key: SampleKey {
            seed: 1,
            temperature: 0.5,
            top: 8,
            mass: true,
            logprobs: true,
        },
    };
    let score = RowOutput::Score {
        ids: vec![1, 2, 3],
        top: 2,
    };
    let steps = [
        (
            vec![row(0, 0, known(20), sample.clone()), row(1, 0, known(4), score)],
            BlockDeltas {
                appends: vec![(0, vec![3, 4]), (1, vec![5])],
                ..BlockDeltas::default()
            },
        ),
        (
            vec![
                row(0, 20, vec![TokenRef::Late(0)], sample.clone()),
                row(1, 4, known(1), RowOutput::Hidden),
            ],
            BlockDeltas::default(),
        ),
        (
            vec![row(0, 18, known(2), sample)],
            BlockDeltas {
                frees: vec![1],
                truncates: vec![(0, 2)],
                replaces: vec![(0, 1, 6)],
                copies: vec![(4, 6)],
                appends: Vec::new(),
            },
        ),
    ];
    let mut tables = BlockTables::new(LIMITS.max_sequences, BLOCKS);
    let mut step = 0;
    steps.map(|(rows, blocks)| {
        tables.apply(&blocks).unwrap();
        step += 1;
        Plan {
            era: ERA,
            step,
            late_tokens: u32::from(step == 2),
            late_sampling: step == 2,
            rows,
            blocks,
            state_hash: tables.hash(),
        }
    })
}

/// One of each kind, in an order in which they may come.
pub(crate) fn messages() -> Vec<Message> {
    let adapter = AdapterSource {
        number: 1,
        name: "a".to_owned(),
        path: "a".to_owned(),
        identity: None,
    };
    let candidates = RowCandidates {
        row: 0,
        offset: 0,
        top: vec![(7, 2.0), (9, 1.0)],
        gumbel: Some((7, 2.5, 2.0)),
        scored: Some(1.0),
        ..RowCandidates::default()
    };
    let shard = LogitShard {
        tokens: Runs::from(0..4),
        logits: vec![0.5, 1.0, -1.0, f32::NAN],
    };
    let [first, second, third] = plans();
    let sampling = Late::Sampling {
        biases: vec![((0, 0), vec![(3, 1.5)])],
        masks: vec![((0, 0), vec![0xff; VOCABULARY / 8])],
        repetitions: vec![((0, 0), 1.2, vec![1, 2])],
    };
    vec![
        Message::Setup {
            limits: LIMITS,
            adapters: vec![adapter.clone()],
        },
        Message::Forming("it warms up".to_owned()),
        Message::Ready {
            blocks: 7,
            kept: Some(ERA),
            missing: vec![(1, "it is gone".to_owned())],
        },
        Message::LoadAdapter(adapter),
        Message::Adapter {
            number: 1,
            outcome: "0f"
                .repeat(32)
                .parse::<ContentIdentity>()
                .map_err(|error| error.to_string()),
        },
        Message::Plan(first),
        Message::Output(StepOutput {
            candidates: vec![candidates],
            hidden: vec![(1, vec![0.5; 4])],
        }),
        Message::Plan(second),
        Message::Late(Late::Tokens(vec![7])),
        Message::Late(sampling),
        Message::Late(Late::Cancel(vec![1])),
        Message::Plan(third),
        Message::Fetch { row: 0, offset: 0 },
        Message::Row {
            row: 0,
            offset: 0,
            shard,
        },
        Message::Progress { layers: 5 },
        Message::UnloadAdapter(1),
        Message::Release,
        Message::Alive,
        Message::Failed(Failure::Lost(MeshError::PeerLost {
            rank: 1,
            reason: "it left".to_owned(),
        })),
        Message::Leave,
    ]
}

/// A rank that takes what comes, and what its tables must be.
struct Rank {
    state: KvState,
    tables: BlockTables,
    step: Option<(Plan, LateValues)>,
}

impl Rank {
    fn new() -> Self {
        Self {
            state: KvState::new(&LIMITS, vec![0; BLOCKS as usize]),
            tables: BlockTables::new(LIMITS.max_sequences, BLOCKS),
            step: None,
        }
    }

    fn take(&mut self, message: Message) -> String {
        match message {
            Message::Plan(plan) => self.plan(plan),
            Message::Late(late) => self.late(&late),
            Message::Row { shard, .. } => outcome(join_shards(&[shard])),
            Message::Output(output) => merged(output),
            message => message.name().to_owned(),
        }
    }

    fn plan(&mut self, mut plan: Plan) -> String {
        let taken = self.advance(&plan);
        // Most changes are refused by the hash alone, so they come again with the one that they would have.
        let mut changed = self.tables.clone();
        match changed.apply(&plan.blocks) {
            Ok(()) if changed.hash() != plan.state_hash => {
                plan.state_hash = changed.hash();
                format!("{taken} {}", self.advance(&plan))
            }
            _ => taken,
        }
    }

    fn advance(&mut self, plan: &Plan) -> String {
        let taken = self.state.advance(plan, &LIMITS, VOCABULARY);
        if taken.is_ok() {
            self.tables.apply(&plan.blocks).unwrap();
            assert_eq!(self.tables.hash(), plan.state_hash);
            let tokens: usize = plan.rows.iter().map(|row| row.tokens.len()).sum();
            let wanted = answers(plan);
            assert_eq!(
                wanted.len(),
                plan.rows.iter().map(PlanRow::answered).sum::<usize>()
            );
            assert!(wanted.iter().all(|answer| answer.token < tokens));
            for row in &plan.rows {
                let end = row.start as usize + row.tokens.len();
                let blocks = self.tables.table(row.slot);
                assert!(end <= LIMITS.max_context as usize && end <= 16 * blocks.len());
                assert!(blocks.iter().all(|block| *block < BLOCKS));
            }
            self.step = Some((plan.clone(), LateValues::of(plan)));
        }
        for slot in 0..LIMITS.max_sequences {
            assert_eq!(&*self.state.table(slot), self.tables.table(slot), "slot {slot}");
        }
        outcome(taken)
    }

    fn late(&mut self, late: &Late) -> String {
        let Some((plan, values)) = &mut self.step else {
            return "late for nothing".to_owned();
        };
        let taken = values.take(plan, late, VOCABULARY);
        if let Some(tokens) = values.tokens() {
            let resolved = resolve(plan, tokens);
            assert!(resolved.iter().all(|token| (*token as usize) < VOCABULARY));
        }
        if let Some(adjustments) = values.adjustments() {
            for place in [(0, 0), (1, 2)] {
                assert!(
                    adjustments
                        .bias_sums(place)
                        .keys()
                        .all(|token| (*token as usize) < VOCABULARY)
                );
                assert!(adjustments.masks(place).all(|mask| mask.len() == VOCABULARY / 8));
            }
        }
        outcome(taken)
    }
}

/// What the leader makes of a rank's answers.
fn merged(output: StepOutput) -> String {
    let mut all = RowAnswers::of_ranks(1);
    for candidates in output.candidates {
        all.add(candidates);
    }
    let params = SamplingParams {
        temperature: 0.7,
        top_p: 0.9,
        logprobs: Some(2),
        ..SamplingParams::greedy()
    };
    let sampled = merge(&params, Noise::new(1, 7), &all);
    format!(
        "{} {} {}",
        outcome(all.mass(true, true).map(drop)),
        outcome(merge(&SamplingParams::greedy(), Noise::new(1, 7), &all)),
        outcome(sampled)
    )
}

#[test]
fn messages_between_ranks() {
    let encode = |messages: &[Message]| -> Vec<u8> {
        let all = messages
            .iter()
            .map(|message| postcard::to_stdvec(message).unwrap());
        all.collect::<Vec<_>>().concat()
    };
    let messages = messages();
    let mut seeds: Vec<Vec<u8>> = messages.chunks(1).map(encode).collect();
    // A prompt with its answer, then what comes late; and all of it.
    seeds.push(encode(messages.get(5..12).unwrap_or_default()));
    seeds.push(encode(&messages));
    let target = Target {
        name: "rank-message",
        shape: Shape::Bytes,
        factor: 300,
        constant: 128 << 10,
        threads: false,
    };
    drive(target, || {
        (seeds, move |input: &[u8]| {
            let (mut rank, mut rest) = (Rank::new(), input);
            let mut words = Vec::new();
            for _ in 0..MOST {
                match postcard::take_from_bytes::<Message>(rest) {
                    Ok((message, behind)) => {
                        words.push(rank.take(message));
                        rest = behind;
                    }
                    Err(error) => {
                        words.push(error.to_string());
                        break;
                    }
                }
            }
            words.join(" ")
        })
    });
}
