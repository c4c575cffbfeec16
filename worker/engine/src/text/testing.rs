//! A small byte-level tokenizer for tests: 256 bytes, some pieces of characters and words, two special tokens.

use super::byte_level;
use super::tokenizer::Tokenizer;

/// The special token `<|end|>`.
pub(crate) const SPECIAL: u32 = 261;
/// The special token `<|start|>`.
pub(crate) const START: u32 = 262;

pub(crate) fn tokenizer() -> Tokenizer {
    let letters = byte_level::letters();
    let letter = |byte: u8| letters[usize::from(byte)].to_string();
    let mut vocab = serde_json::Map::new();
    for (byte, character) in letters.iter().enumerate() {
        vocab.insert(character.to_string(), serde_json::json!(byte));
    }
    // Merges within characters of two, three and four bytes, and of letters.
    let pairs: [&[u8]; 5] = [
        &[0xc3, 0xa9],
        &[0xe2, 0x82],
        &[0xf0, 0x9f],
        &[0x68, 0x65],
        &[0x20, 0x61],
    ];
    let mut merges = Vec::new();
    for (index, pair) in pairs.iter().enumerate() {
        let (a, b) = (letter(pair[0]), letter(pair[1]));
        vocab.insert(format!("{a}{b}"), serde_json::json!(256 + index));
        merges.push(format!("{a} {b}"));
    }
    let special = |id: u32, content: &str| {
        serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let json = serde_json::json!({
        "version": "1.0",
        "added_tokens": [special(SPECIAL, "<|end|>"), special(START, "<|start|>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    });
    Tokenizer::new(tokenizers::Tokenizer::from_bytes(json.to_string()).unwrap()).unwrap()
}
