use std::path::Path;

use super::super::shared_model::text_encoder;
use super::super::testing;
use super::*;

/// A generator of pseudo-random numbers (Vigna's `splitmix64`), so that a seed replays a failure.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    fn of<'a, T: ?Sized>(&mut self, choices: &[&'a T]) -> &'a T {
        choices[usize::try_from(self.below(choices.len() as u64)).unwrap()]
    }

    fn character(&mut self) -> char {
        let end = self.of(&[&0x80, &0x250, &0x3000, &0x1_0000, &0x11_0000]);
        let code = u32::try_from(self.below(*end)).unwrap();
        char::from_u32(code).unwrap_or('\u{fffd}')
    }
}

const WORDS: &[&str] = &[
    "llama",
    " llama",
    "The",
    " it's",
    "WE'LL",
    "I'\u{17f}",
    "'",
    " don't",
    "\r\n",
    "\n\n",
    "\n",
    "\r",
    "\t",
    " ",
    "  ",
    "    ",
    "\u{a0}",
    "\u{3000}",
    "0",
    "12",
    "345",
    " 6789",
    "1.5e-3",
    "\u{0663}\u{0664}",
    "\u{b2}",
    "\u{216b}",
    "fn main() {",
    "};",
    "    return x + 1;\r\n",
    "\t\tif (a && !b) {\n",
    "<|eot_id|>",
    "<|eot_id|",
    "|eot_id|>",
    "<|begin_of_text|>",
    "<|im_start|>",
    "<|im_end",
    "<|endoftext|><|endoftext|>",
    "<|end|>",
    "<|start|>",
    "<|reserved_special_token_1|>",
    "<|",
    "|>",
    "\u{e9}",
    "e\u{301}",
    "\u{7f8a}\u{99dd}",
    "\u{3002}",
    "\u{1f999}",
    "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}",
    "\u{0e01}\u{0e33}",
    "\u{5d0}\u{5b4}",
    "\u{915}\u{94d}\u{937}",
    "\u{ac00}\u{b098}",
    "===",
    "-----",
    "...",
    "!?",
    "#!/",
    "\\",
    "\"",
    "`",
    "\0",
    "\u{feff}",
    "\u{fffd}",
    "\u{10ffff}",
    "https://a.b/c?d=e&f=%20",
    "aGVsbG8gd29ybGQ=",
    "0xdeadbeef",
];

/// A text of many kinds of text: words, runs of one or two of them, characters from everywhere.
fn text(random: &mut Random, length: usize) -> String {
    let mut text = String::new();
    while text.len() < length {
        match random.below(12) {
            0 => {
                let run = random.of(&[&3, &40, &700, &9_000]);
                let (word, other) = (random.of(WORDS), random.of(WORDS));
                for _ in 0..random.below(*run) {
                    text.push_str(word);
                    if random.below(50) == 0 {
                        text.push_str(other);
                    }
                }
            }
            1 => (0..random.below(30)).for_each(|_| text.push(random.character())),
            2 => {
                let end = *random.of(&[&20, &500, &4_000]);
                for _ in 0..random.below(end) {
                    text.push(char::from(b'a' + u8::try_from(random.below(26)).unwrap()));
                }
            }
            _ => text.push_str(random.of(WORDS)),
        }
    }
    text
}

fn assert_same(tokenizer: &tokenizers::Tokenizer, longest: usize, texts: usize) {
    let tokenizer = Arc::new(tokenizer.clone());
    let as_text = text_encoder(&tokenizer);
    let windows = [longest, longest + 1, longest + 100, 3_000, merges::WINDOW];
    let encoders = windows.map(|window| PieceEncoder::with_window(&tokenizer, window).unwrap());
    for seed in 0..texts as u64 {
        let text = text(&mut Random(seed), 1 << (seed % 16));
        for add_special in [false, true] {
            let whole = tokenizer.encode_fast(text.as_str(), add_special).unwrap();
            for (encoder, window) in encoders.iter().zip(windows) {
                let mut sink = Sink::new(Keep::AtMost(usize::MAX));
                encoder.encode(&text, add_special, &mut sink).unwrap();
                assert_eq!(sink.finish(), whole.get_ids(), "seed {seed}, window {window}");
            }
        }
        let whole = as_text.encode_fast(text.as_str(), false).unwrap();
        for (encoder, window) in encoders.iter().zip(windows) {
            let mut sink = Sink::new(Keep::AtMost(usize::MAX));
            encoder.encode_as_text(&text, &mut sink).unwrap();
            assert_eq!(
                sink.finish(),
                whole.get_ids(),
                "as text, seed {seed}, window {window}"
            );
        }
    }
}

fn model(name: &str) -> tokenizers::Tokenizer {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../.local/models")
        .join(name);
    assert!(path.exists(), "{} is not there: run `make model`", path.display());
    let json = std::fs::read(path.join("tokenizer.json")).unwrap();
    tokenizers::Tokenizer::from_bytes(json).unwrap()
}

#[test]
fn the_ids_are_those_of_encoding_whole_with_llama_3() {
    assert_same(&model("Llama-3.1-tokenizer"), 128, 96);
}

#[test]
fn the_ids_are_those_of_encoding_whole_with_smollm2() {
    assert_same(&model("SmolLM2-135M-Instruct"), 64, 96);
}

/// Steps and added tokens of other families: several patterns, runs of digits, tokens that take white space, and ones that
/// are found in a second pass.
#[test]
fn the_ids_are_those_of_encoding_whole_with_other_steps() {
    let json = testing::tokenizer().inner().to_string(false).unwrap();
    let mut other: serde_json::Value = serde_json::from_str(&json).unwrap();
    let split = |regex: &str| serde_json::json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    other["normalizer"] = serde_json::json!({"type": "Sequence", "normalizers": []});
    other["pre_tokenizer"] = serde_json::json!({"type": "Sequence", "pretokenizers": [
        split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), {"type": "Digits", "individual_digits": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
    ]});
    other["added_tokens"][0]["lstrip"] = true.into();
    other["added_tokens"][0]["rstrip"] = true.into();
    other["added_tokens"][1]["normalized"] = true.into();
    other["added_tokens"][1]["special"] = false.into();
    let other = tokenizers::Tokenizer::from_bytes(other.to_string()).unwrap();
    assert_same(&other, 9, 64);
    assert_same(testing::tokenizer().inner(), 9, 64);
}

#[test]
fn what_needs_all_of_a_text_at_once_is_named() {
    let json = testing::tokenizer().inner().to_string(false).unwrap();
    let refusal = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut other: serde_json::Value = serde_json::from_str(&json).unwrap();
        change(&mut other);
        let tokenizer = Arc::new(tokenizers::Tokenizer::from_bytes(other.to_string()).unwrap());
        let whole = super::super::Tokenizer::new((*tokenizer).clone()).unwrap();
        assert!(!whole.encode("he said", false).unwrap().is_empty());
        let error = whole
            .encode(&"a".repeat(300 << 10), false)
            .unwrap_err()
            .to_string();
        assert!(error.contains("at most 262144"), "{error}");
        PieceEncoder::new(&tokenizer, 9).unwrap_err()
    };
    let normalizer = refusal(&|json| json["normalizer"] = serde_json::json!({"type": "NFC"}));
    assert!(normalizer.contains("normalizer"), "{normalizer}");
    let space = refusal(&|json| json["pre_tokenizer"]["add_prefix_space"] = true.into());
    assert!(space.contains("space in front"), "{space}");
    let words = refusal(&|json| json["added_tokens"][0]["single_word"] = true.into());
    assert!(words.contains("words of their own"), "{words}");
}

#[test]
fn a_long_text_is_refused_as_soon_as_that_is_known() {
    let tokenizer = testing::tokenizer();
    let text = format!("{}<|end|>", "he ".repeat(1000));
    let all = tokenizer.encode(&text, true).unwrap();
    assert_eq!(tokenizer.encode_at_most(all.len(), &text, true).unwrap(), all);
    let refused = tokenizer.encode_at_most(all.len() - 1, &text, true);
    assert!(matches!(refused, Err(TokenizerError::TooMany { most }) if most == all.len() - 1));
    assert_eq!(
        tokenizer.encode_last(5, &text, true).unwrap(),
        all[all.len() - 5..]
    );
    let error = tokenizer
        .encode(&" ".repeat(runs::MAX_RUN + 1), false)
        .unwrap_err()
        .to_string();
    assert!(error.contains("in a row"), "{error}");
}
