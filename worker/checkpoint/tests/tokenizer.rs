//! The tokenizer that conversion makes gives the reference's token ids on 10,000 strings of many scripts.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use common::{bytes, fixture, model};
use llamero_checkpoint::safetensors::SafetensorsFile;
use tokenizers::Tokenizer;

fn lengths(file: &SafetensorsFile, name: &str) -> Vec<usize> {
    let bytes = bytes(file, name);
    bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|bytes| u32::from_le_bytes(*bytes) as usize)
        .collect()
}

#[test]
fn token_ids_are_the_references() {
    let tokenizer = Tokenizer::from_file(model("SmolLM2-135M-Instruct").join("tokenizer.json")).unwrap();
    let file = SafetensorsFile::open(&fixture("tokenizer-smollm2.safetensors")).unwrap();
    let text = String::from_utf8(bytes(&file, "text")).unwrap();
    let ids = bytes(&file, "ids");
    let mut ids = ids
        .as_chunks::<2>()
        .0
        .iter()
        .map(|bytes| u32::from(u16::from_le_bytes(*bytes)));
    let (mut start, mut strings, mut whole) = (0, 0, 0);
    let round_trips = bytes(&file, "round_trips");
    for ((text_length, id_length), round_trips) in lengths(&file, "text_lengths")
        .into_iter()
        .zip(lengths(&file, "id_lengths"))
        .zip(round_trips)
    {
        let string = &text[start..start + text_length];
        start += text_length;
        let wanted: Vec<u32> = ids.by_ref().take(id_length).collect();
        let ours = tokenizer.encode(string, false).unwrap();
        assert_eq!(ours.get_ids(), wanted, "{string:?}");
        assert_eq!(
            tokenizer.decode(&wanted, false).unwrap() == string,
            round_trips == 1,
            "{string:?}"
        );
        strings += 1;
        whole += u32::from(round_trips);
    }
    assert_eq!((start, ids.next(), strings), (text.len(), None, 10_000));
    assert!(whole > 9_000);
}
