//! Files beside the weights that mean harm, read by the built program as it reads honest ones.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use llamero_tests::paths;
use serde_json::{Value, json};

use super::attempts::Section;

/// Bytes of address space in units of 1,024: a rank of the small model has room in it.
const SPACE: &str = "2097152";
/// How long somebody who serves on may take to say why.
const PATIENCE: Duration = Duration::from_secs(60);
/// What `llamero-worker` ends with when somebody must change something.
const UNUSABLE: i32 = 2;

/// What reads the folder.
#[derive(Clone, Copy)]
enum Reader {
    Inspect,
    Convert,
    Serve,
    /// It serves, and says why without chat.
    ServeWithoutChat,
    /// Beside an adapter at that path.
    ServeAdapter(&'static str),
}

impl Reader {
    fn name(self) -> &'static str {
        match self {
            Self::Inspect => "`llamero-worker inspect`",
            Self::Convert => "`llamero-worker convert`",
            Self::Serve | Self::ServeWithoutChat => "`llamero-worker serve`",
            Self::ServeAdapter(_) => "`llamero-worker serve --adapter`",
        }
    }
}

/// Makes the folder of an honest checkpoint what it is called.
type Make = fn(&Path) -> Result<()>;

/// What it is, who reads it, words of the refusal, and how it is made.
const HOSTILE: [(&str, Reader, &str, Make); 15] = [
    (
        "a tokenizer.json that is nested 100,000 times",
        Reader::Serve,
        "recursion limit exceeded",
        |folder| {
            let nested = format!("{}1{}", "{\"model\":".repeat(100_000), "}".repeat(100_000));
            Ok(fs::write(folder.join("tokenizer.json"), nested)?)
        },
    ),
    (
        "a token with the id 2^32 − 1",
        Reader::Serve,
        "one with the id 4294967295",
        |folder| {
            change(&folder.join("tokenizer.json"), |tokenizer| {
                tokenizer["model"]["vocab"]["llamero"] = json!(u32::MAX);
            })
        },
    ),
    (
        "a chat template with 100,000 nested brackets",
        Reader::ServeWithoutChat,
        "brackets are nested more than",
        |folder| {
            let template = format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000));
            template_is(folder, &template)
        },
    ),
    (
        "a chat template that includes a file of the system",
        Reader::ServeWithoutChat,
        "unknown statement include",
        |folder| template_is(folder, "{% include '/etc/passwd' %}"),
    ),
    (
        "a GGUF that claims 2^64 − 1 tensors",
        Reader::Convert,
        "it claims 18446744073709551615 items",
        |folder| gguf(folder, u64::MAX, &[]),
    ),
    (
        "a GGUF with a name of 2^63 bytes",
        Reader::Convert,
        "it claims 9223372036854775808 items",
        |folder| gguf(folder, 1, &[&(1_u64 << 63).to_le_bytes()[..], &[0; 64]].concat()),
    ),
    (
        "a GGUF whose tensor has 2^80 elements",
        Reader::Convert,
        "ends beyond the end of the file",
        |folder| gguf(folder, 1, &gguf_tensor([1 << 40, 1 << 40], 0)),
    ),
    (
        "a GGUF whose tensor lies behind the end of the file",
        Reader::Convert,
        "ends beyond the end of the file",
        |folder| gguf(folder, 1, &gguf_tensor([16, 2], 1 << 40)),
    ),
    (
        "an adapter whose header is said to have 2^64 − 1 bytes",
        Reader::ServeAdapter("adapters/a"),
        "a header of 18446744073709551615 bytes",
        |folder| adapter(folder, 4, &u64::MAX.to_le_bytes()),
    ),
    (
        "an adapter with a rank of 2^32 − 1",
        Reader::ServeAdapter("adapters/a"),
        "has rank 4294967295",
        |folder| adapter(folder, u32::MAX, &small_factors()),
    ),
    (
        "a way out of the folder for adapters",
        Reader::ServeAdapter("../../../etc"),
        "relative, without ..",
        |_| Ok(()),
    ),
    (
        "a manifest of shards that names a file outside",
        Reader::Inspect,
        "leads out of the folder",
        |folder| {
            shards(folder, |manifest| {
                manifest["files"][0]["name"] = json!("../../../etc/passwd")
            })
        },
    ),
    (
        "a manifest of shards whose shape overflows",
        Reader::Inspect,
        "has an impossible shape",
        |folder| {
            shards(folder, |manifest| {
                manifest["tensors"]["model.norm.weight"]["shape"] = json!([u64::MAX, u64::MAX]);
            })
        },
    ),
    (
        "a manifest of shards with blocks of 2^64 − 1 bytes",
        Reader::Inspect,
        "blocks of 18446744073709551615 bytes",
        |folder| shards(folder, |manifest| manifest["blockBytes"] = json!(u64::MAX)),
    ),
    (
        "a manifest of shards for 2^32 − 1 ranks",
        Reader::Inspect,
        "2 files for tensor 4294967295",
        |folder| {
            shards(folder, |manifest| {
                manifest["topology"]["tensor"] = json!(u32::MAX)
            })
        },
    ),
];

/// Each is refused with a sentence.
pub(super) fn all() -> Result<Section> {
    let mut section = Section::new(
        "Other files of a checkpoint",
        "Read by the programs that read them in service, with 2 GiB of address space and twenty seconds, or a minute where it serves on. `DIR` is the checkpoint's folder.",
    );
    for (what, reader, words, make) in HOSTILE {
        let folder = tempfile::tempdir()?;
        honest(folder.path())?;
        make(folder.path())?;
        let said = match reader {
            Reader::ServeWithoutChat => warned(folder.path()),
            _ => refused(reader, folder.path()),
        };
        let said = said.with_context(|| what.to_owned())?;
        ensure!(
            said.contains(words),
            "{what} is refused for something else: {said}"
        );
        section.add(what, reader.name(), said);
    }
    Ok(section)
}

/// The small model; what is changed is a copy.
fn honest(folder: &Path) -> Result<()> {
    let from = paths::local().join("models/SmolLM2-135M-Instruct-FP8");
    for name in [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    ] {
        fs::copy(from.join(name), folder.join(name))?;
    }
    Ok(symlink(
        from.join("model.safetensors"),
        folder.join("model.safetensors"),
    )?)
}

fn change(path: &Path, change: impl FnOnce(&mut Value)) -> Result<()> {
    let mut value: Value = serde_json::from_slice(&fs::read(path)?)?;
    change(&mut value);
    Ok(fs::write(path, value.to_string())?)
}

fn template_is(folder: &Path, template: &str) -> Result<()> {
    change(&folder.join("tokenizer_config.json"), |config| {
        config["chat_template"] = json!(template);
    })
}

/// A GGUF file of version 3 without values, and what is said of its tensors.
fn gguf(folder: &Path, tensors: u64, said: &[u8]) -> Result<()> {
    let mut file = b"GGUF".to_vec();
    file.extend(3_u32.to_le_bytes());
    file.extend(tensors.to_le_bytes());
    file.extend(0_u64.to_le_bytes());
    file.extend(said);
    Ok(fs::write(folder.join("model.gguf"), file)?)
}

fn gguf_tensor(sizes: [u64; 2], offset: u64) -> Vec<u8> {
    const NAME: &[u8] = b"token_embd.weight";
    const F32: u32 = 0;
    let mut said = (NAME.len() as u64).to_le_bytes().to_vec();
    said.extend(NAME);
    said.extend(2_u32.to_le_bytes());
    said.extend(sizes.iter().flat_map(|size| size.to_le_bytes()));
    said.extend(F32.to_le_bytes());
    said.extend(offset.to_le_bytes());
    said
}

fn adapter(folder: &Path, rank: u32, weights: &[u8]) -> Result<()> {
    let folder = folder.join("adapters/a");
    fs::create_dir_all(&folder)?;
    let config = json!({"peft_type": "LORA", "r": rank, "lora_alpha": 1});
    fs::write(folder.join("adapter_config.json"), config.to_string())?;
    Ok(fs::write(folder.join("adapter_model.safetensors"), weights)?)
}

/// A pair of factors of one module, each of one element.
fn small_factors() -> Vec<u8> {
    let module = "base_model.model.model.layers.0.self_attn.q_proj";
    let factor = |from: u32| json!({"dtype": "BF16", "shape": [1, 1], "data_offsets": [from, from + 2]});
    let header = json!({
        format!("{module}.lora_A.weight"): factor(0),
        format!("{module}.lora_B.weight"): factor(2),
    })
    .to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend([0; 4]);
    file
}

/// A folder for two ranks, but for a change, and without their files.
fn shards(folder: &Path, change: impl FnOnce(&mut Value)) -> Result<()> {
    let digest = "0f".repeat(32);
    let file = |name: &str| json!({"name": name, "bytes": 9, "table": digest});
    let mut manifest = json!({
        "formatVersion": 1, "blockBytes": 1 << 20, "topology": {"tensor": 2, "pipeline": 1}, "source": digest,
        "files": [file("rank-0"), file("rank-1")], "samples": [],
        "tensors": {"model.norm.weight": {"dtype": "BF16", "shape": [4]}}
    });
    change(&mut manifest);
    Ok(fs::write(
        folder.join("llamero-shards.json"),
        manifest.to_string(),
    )?)
}

/// The program on the folder, within its bounds.
fn command(reader: Reader, folder: &Path) -> Result<Command> {
    let program = paths::built("llamero-worker").context("llamero-worker is missing: run `make images`")?;
    // Who goes on serving is ended by whoever has heard enough, and not by a signal that only `timeout` would hear.
    let timeout = match reader {
        Reader::ServeWithoutChat => "",
        _ => "timeout --signal=KILL 20",
    };
    let limited = format!("ulimit -v {SPACE}; exec {timeout} \"$0\" \"$@\"");
    let mut command = Command::new("bash");
    command.args(["-c", &limited]).arg(program);
    match reader {
        Reader::Inspect => {
            command.arg("inspect").arg(folder);
        }
        Reader::Convert => {
            command
                .arg("convert")
                .arg(folder.join("model.gguf"))
                .arg(folder.join("out"));
        }
        Reader::Serve | Reader::ServeWithoutChat | Reader::ServeAdapter(_) => {
            command.arg("serve").arg("--model-dir").arg(folder);
            command.args([
                "--listen",
                "127.0.0.1",
                "--max-context-length",
                "256",
                "--threads",
                "1",
            ]);
            for port in ["inference", "control", "http", "rank"] {
                command.args([format!("--{port}-port"), "0".to_owned()]);
            }
        }
    }
    if let Reader::ServeAdapter(path) = reader {
        command.args(["--max-adapters", "1", "--adapter", &format!("a={path}")]);
    }
    Ok(command)
}

/// The sentence with which the folder is refused.
fn refused(reader: Reader, folder: &Path) -> Result<String> {
    let output = command(reader, folder)?.output()?;
    let said = String::from_utf8_lossy(&output.stderr).replace(&folder.display().to_string(), "DIR");
    ensure!(
        output.status.code() == Some(UNUSABLE) && !said.contains("panicked"),
        "{}: {said}",
        output.status
    );
    let last = said.lines().rfind(|line| line.starts_with("error: "));
    Ok(last.with_context(|| format!("no error: {said}"))?.to_owned())
}

/// A program that ends with the attempt, however that ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The sentence with which it serves on without chat.
fn warned(folder: &Path) -> Result<String> {
    const WORDS: &str = "chat is not available: ";
    let mut command = command(Reader::ServeWithoutChat, folder)?;
    let mut program = Running(command.stderr(Stdio::piped()).spawn()?);
    let said = program.0.stderr.take().context("nothing is said")?;
    let (sender, lines) = mpsc::channel();
    // Ends with the program.
    std::thread::spawn(move || {
        let lines = BufReader::new(said).lines().map_while(Result::ok);
        lines.for_each(|line| drop(sender.send(line)));
    });
    let end = Instant::now() + PATIENCE;
    while let Ok(line) = lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
        if let Some((_, sentence)) = line.split_once(WORDS) {
            return Ok(format!("{WORDS}{sentence}"));
        }
    }
    bail!("it served for {PATIENCE:?}, or ended, without a word about the template")
}
