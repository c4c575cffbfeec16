//! What loading a tokenizer and encoding prompts takes, in a process of its own.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::thread;

use llamero_engine::text::Tokenizer;
use llamero_settings::memory;

/// Long enough that what grows with a prompt is seen.
const LONGEST: usize = 3 << 20;
/// Prompts that the server encodes at once.
const AT_ONCE: usize = 3;

fn status(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

/// Let `VmHWM` start again from what is resident (proc(5), `clear_refs`).
fn forget_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

fn prompts() -> Vec<(&'static str, String)> {
    let of = |piece: &str| piece.repeat(LONGEST / piece.len());
    // No longer runs are taken.
    let runs = |piece: &str| of(&format!("{}. x", piece.repeat(250_000 / piece.chars().count())));
    let words = (0..LONGEST as u64 / 250).map(|index| {
        let letter = |place: u64| char::from(b'a' + (index.wrapping_mul(place * place + 7) % 26) as u8);
        let letters = (0..249).map(letter);
        letters.chain([' ']).collect::<String>()
    });
    vec![
        (
            "prose",
            of("The llama hums, and 42 others (of them) hum too.\r\n"),
        ),
        ("letters", runs("abcdefghijklmnopqrstuvwxyz")),
        ("one letter", runs("a")),
        ("long words", words.collect()),
        ("spaces", runs(" ")),
        ("digits", runs("0123456789")),
        ("dashes", runs("-")),
        ("Chinese", runs("\u{7f8a}\u{99dd}\u{5728}\u{54fc}\u{6b4c}")),
        ("control tokens", of("<|eot_id|>")),
    ]
}

#[test]
fn loading_and_encoding_stay_within_what_is_granted() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for model in ["SmolLM2-135M-Instruct", "Llama-3.1-tokenizer"] {
        let dir = root.join(".local/models").join(model);
        assert!(dir.exists(), "{} is not there: run `make model`", dir.display());
        let granted = memory::tokenizer(std::fs::metadata(dir.join("tokenizer.json")).unwrap().len());
        forget_peak();
        let start = status("VmRSS");
        let tokenizer = Tokenizer::from_dir(&dir).unwrap();
        let (loaded, peak) = (status("VmRSS") - start, status("VmHWM") - start);
        println!(
            "{model}: {} MiB, {} MiB while it is loaded, {} granted",
            loaded >> 20,
            peak >> 20,
            granted >> 20
        );
        assert!(peak <= granted, "{peak} of {granted} bytes");
        for (name, prompt) in prompts() {
            forget_peak();
            let before = status("VmRSS");
            thread::scope(|scope| {
                for _ in 0..AT_ONCE {
                    scope.spawn(|| tokenizer.encode_last(1 << 17, &prompt, true).unwrap());
                }
            });
            let took = status("VmHWM") - before;
            println!("{model}, {AT_ONCE} times {name}: {} MiB", took >> 20);
            assert!(
                took <= memory::ENCODING,
                "{name}: {took} of {} bytes",
                memory::ENCODING
            );
        }
    }
}
