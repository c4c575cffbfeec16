//! Embeddings of the real model: the same bits on any number of ranks, in any company, in chunks of any size.

use std::path::Path;

use futures::TryStreamExt;
use llamero_checkpoint::dtype::extend_f32;
use llamero_checkpoint::safetensors::SafetensorsFile;
use llamero_checkpoint::{Checkpoint, Dtype};
use llamero_proto::v1::embed_input::Input;
use llamero_proto::v1::{EmbedInput, EmbedRequest, Embedding, Pooling, TokenIds};
use tonic::{Code, Status};

use crate::harness::{Worker, begin, finish, model_dir, story, turn};

const CAT: &str = "A cat sleeps on the warm sofa.";
const KITTEN: &str = "The kitten naps on a cosy couch.";
const TAXES: &str = "Quarterly tax filings are due in April.";

fn text(text: &str) -> EmbedInput {
    EmbedInput {
        input: Some(Input::Text(text.to_owned())),
    }
}

fn tokens(count: u32) -> EmbedInput {
    let ids = (0..count).map(|at| 100 + at * 37 % 20_000).collect();
    EmbedInput {
        input: Some(Input::TokenIds(TokenIds { ids })),
    }
}

async fn embed(worker: &Worker, inputs: Vec<EmbedInput>, pooling: Pooling) -> Result<Vec<Embedding>, Status> {
    let request = EmbedRequest {
        model: "smol".to_owned(),
        inputs,
        pooling: pooling.into(),
        ..EmbedRequest::default()
    };
    let stream = worker.completion().embed(request).await?.into_inner();
    stream.try_collect().await
}

fn inputs() -> Vec<EmbedInput> {
    vec![
        text(CAT),
        text(KITTEN),
        text(TAXES),
        tokens(150),
        tokens(1),
        tokens(400),
    ]
}

fn similarity(a: &Embedding, b: &Embedding) -> f32 {
    a.values.iter().zip(&b.values).map(|(a, b)| a * b).sum()
}

#[tokio::test]
async fn embeddings_have_the_same_bits_in_every_group_and_company() {
    let _turn = turn().await;
    let mut all = Vec::new();
    for (tensor, more) in [
        (1, &[][..]),
        (3, &["--max-batched-tokens", "96"][..]),
        (2, &["--pipeline", "2"][..]),
    ] {
        let worker = Worker::alone(tensor, more).await;
        let mut found = Vec::new();
        for pooling in [Pooling::LastToken, Pooling::Mean] {
            // Beside an answer that is being written; then from what is cached of the same texts.
            let (head, mut stream) = begin(&worker, story(60), 3).await;
            let embeddings = embed(&worker, inputs(), pooling).await.unwrap();
            finish(head, &mut stream).await.unwrap();
            assert_eq!(embed(&worker, inputs(), pooling).await.unwrap(), embeddings);
            let alone = embed(&worker, vec![text(TAXES)], pooling).await.unwrap();
            assert_eq!(alone[0], embeddings[2]);
            found.push(embeddings);
        }
        all.push(found);
    }
    assert_eq!(all[0], all[1]);
    assert_eq!(all[0], all[2]);

    let [last, mean] = all[0].as_slice() else { panic!() };
    let counts: Vec<u32> = last.iter().map(|embedding| embedding.prompt_tokens).collect();
    assert_eq!(counts[3..], [150, 1, 400]);
    for embedding in last.iter().chain(mean) {
        assert_eq!(embedding.values.len(), 576);
        assert!((similarity(embedding, embedding) - 1.0).abs() < 1e-5);
    }
    assert!(last[4].values == mean[4].values, "one token is its own mean");
    assert_ne!(last[0].values, mean[0].values);
    let (near, far) = (similarity(&mean[0], &mean[1]), similarity(&mean[0], &mean[2]));
    assert!(
        near > far,
        "cats are nearer to kittens ({near}) than to taxes ({far})"
    );
    refusals().await;
}

async fn refusals() {
    let worker = Worker::alone(1, &[]).await;
    let refused = async |inputs: Vec<EmbedInput>| {
        let refused = embed(&worker, inputs, Pooling::LastToken).await.unwrap_err();
        let parameter = refused
            .metadata()
            .get("parameter")
            .map(|name| name.to_str().unwrap().to_owned());
        (refused.code(), parameter)
    };
    let blamed = (Code::InvalidArgument, Some("input".to_owned()));
    let unknown = EmbedInput {
        input: Some(Input::TokenIds(TokenIds { ids: vec![1, 49_152] })),
    };
    for wrong in [
        vec![],
        vec![EmbedInput::default()],
        vec![tokens(0)],
        vec![unknown],
        vec![tokens(1); 2049],
    ] {
        assert_eq!(refused(wrong).await, blamed);
    }
    // The whole context, and one more.
    let whole = embed(&worker, vec![tokens(1024)], Pooling::LastToken)
        .await
        .unwrap();
    assert_eq!(whole[0].prompt_tokens, 1024);
    assert_eq!(refused(vec![tokens(3), tokens(1025)]).await.0, Code::OutOfRange);
}

/// The head of this model is its embedding table, so that a hidden state can be told by the logits that it gives: those of
/// transformers in f32 stand in `tests/fixtures` for positions of several prompts and a random part of the vocabulary.
#[tokio::test]
async fn the_last_hidden_state_gives_the_logits_of_transformers() {
    let _turn = turn().await;
    let folder = model_dir().with_file_name("SmolLM2-135M-Instruct");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/logits-bf16.safetensors");
    let fixture = SafetensorsFile::open(&fixture).unwrap();
    let integers = |name: &str| -> Vec<u32> {
        let (bytes, _) = bytes(&fixture, name);
        bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|value| u32::from_le_bytes(*value))
            .collect()
    };
    let (tokens, lengths) = (integers("tokens"), integers("prompt_lengths"));
    let starts: Vec<u32> = lengths
        .iter()
        .scan(0, |end, length| Some(std::mem::replace(end, *end + length)))
        .collect();
    let (prompts, positions, ids) = (
        integers("row_prompt"),
        integers("row_position"),
        integers("subset_ids"),
    );
    let wanted = floats(&fixture, "subset_logits");
    let peers = floats(&fixture, "peer_rms_subset");
    // Where transformers in bf16 is far off itself, a comparison says nothing (see worker/cpu's test of the logits).
    let mut sorted = peers.clone();
    sorted.sort_by(f32::total_cmp);
    let rows: Vec<usize> = (0..prompts.len())
        .filter(|row| peers[*row] <= 2.0 * sorted[sorted.len() / 2])
        .step_by(9)
        .collect();
    let inputs = rows.iter().map(|row| {
        let start = starts[prompts[*row] as usize] as usize;
        let ids = tokens[start..=start + positions[*row] as usize].to_vec();
        EmbedInput {
            input: Some(Input::TokenIds(TokenIds { ids })),
        }
    });
    let worker = Worker::start_with(&folder, &["--tensor", "2"], &[]).await;
    worker.wait_for_health(true).await;
    let embeddings = embed(&worker, inputs.collect(), Pooling::LastToken)
        .await
        .unwrap();
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let name = "model.embed_tokens.weight";
    let tensor = checkpoint.tensor(name).unwrap();
    let (mut bytes, mut table) = (vec![0; tensor.bytes() as usize], Vec::new());
    checkpoint.read_at(name, 0, &mut bytes).unwrap();
    assert!(extend_f32(tensor.dtype, &bytes, &mut table));
    assert!(embeddings.len() > 15, "{}", embeddings.len());
    for (row, embedding) in rows.iter().zip(&embeddings) {
        let width = embedding.values.len();
        let logits = ids.iter().map(|id| {
            let weights = &table[*id as usize * width..][..width];
            weights
                .iter()
                .zip(&embedding.values)
                .map(|(a, b)| f64::from(a * b))
                .sum::<f64>()
        });
        let cosine = cosine(
            &logits.collect::<Vec<_>>(),
            &wanted[row * ids.len()..][..ids.len()],
        );
        assert!(
            cosine > 0.9995,
            "row {row} at position {}: {cosine}",
            positions[*row]
        );
    }
}

fn bytes(file: &SafetensorsFile, name: &str) -> (Vec<u8>, Dtype) {
    let tensor = file.tensor(name).unwrap();
    let mut bytes = vec![0; tensor.bytes() as usize];
    file.read_at(name, 0, &mut bytes).unwrap();
    (bytes, tensor.dtype)
}

fn floats(file: &SafetensorsFile, name: &str) -> Vec<f32> {
    let (bytes, dtype) = bytes(file, name);
    let mut values = Vec::new();
    assert!(extend_f32(dtype, &bytes, &mut values), "{name}");
    values
}

fn cosine(a: &[f64], b: &[f32]) -> f64 {
    let dot: f64 = a.iter().zip(b).map(|(a, b)| a * f64::from(*b)).sum();
    let squares: f64 = a.iter().map(|a| a * a).sum();
    let others: f64 = b.iter().map(|b| f64::from(*b) * f64::from(*b)).sum();
    dot / (squares * others).sqrt()
}
