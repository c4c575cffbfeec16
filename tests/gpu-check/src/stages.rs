//! What the check runs, one stage after the other, each in a process of its own: a fault of one does not reach the next.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use llamero_cpu::{CpuBackend, CpuOptions, Kernel};
use llamero_cuda::device::count;
use llamero_cuda::probe::driver;
use llamero_cuda::source::Source;
use llamero_cuda::{CudaBackend, CudaOptions};
use serde_json::{Value, json};

use crate::agree::compare;
use crate::drive;
use crate::model::{LLAMA_8B, LLAMA_70B, LLAMA_405B, Model};
use crate::processes;
use crate::speed::{self, Rank, SHAPES, Speed};

/// Names the test whose body a process runs: see the emulator's harness.
const INSIDE: &str = "LLAMERO_GPU_EMULATOR_TEST";
/// Where tests look for compiled kernels.
const KERNELS: &str = "LLAMERO_GPU_CHECK_KERNELS";

/// "What is the capital of France?" in SmolLM2's tokens, as far as the cut model has them.
const QUESTION: [u32; 12] = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198];

/// What is checked and where results go.
#[derive(Debug, Clone)]
pub struct Check {
    /// The folder of the check: `tests/`, `kernels/`, `results.jsonl`.
    pub folder: PathBuf,
    /// Sizes of an emulated device: only that everything runs is shown.
    pub small: bool,
}

/// The stages in their order.
pub const STAGES: [&str; 13] = [
    "device",
    "read",
    "kernels",
    "backend",
    "smollm2",
    "processes",
    "peers",
    "products",
    "exchange",
    "decode-8b",
    "prefill-8b",
    "decode-405b",
    "decode-70b",
];

impl Check {
    /// Run one stage.
    ///
    /// # Errors
    /// What does not hold.
    pub fn run(&self, stage: &str) -> anyhow::Result<()> {
        match stage {
            "device" => self.device(),
            "read" => self.read(),
            "kernels" => self.tests(&["product", "layer", "attention", "candidates"]),
            "backend" => self.tests(&["backend"]),
            "smollm2" => self.smollm2(),
            "processes" => self.processes(),
            "peers" => self.peers(),
            "products" => self.products(),
            "exchange" => self.exchange("405B, a rank of 8", LLAMA_405B, 8),
            "decode-8b" => self.decode("8B", LLAMA_8B, 1, &[(1, 300), (16, 300), (64, 300), (1, 8000)]),
            "prefill-8b" => self.prefill("8B", LLAMA_8B, 4096),
            "decode-405b" => self.decode("405B, a rank of 8", LLAMA_405B, 8, &[(1, 300), (16, 300)]),
            "decode-70b" => self.decode("70B, a rank of 2", LLAMA_70B, 2, &[(1, 300), (16, 300)]),
            other => bail!("there is no stage {other}: {}", STAGES.join(", ")),
        }
    }

    /// Where compiled kernels are.
    #[must_use]
    pub fn kernels(&self) -> PathBuf {
        self.folder.join("kernels")
    }

    /// Print a result, and keep it for the table.
    fn tell(&self, text: &str, result: &Value) -> anyhow::Result<()> {
        println!("  {text}");
        let path = self.folder.join("results.jsonl");
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let mut file = file.with_context(|| path.display().to_string())?;
        writeln!(file, "{result}")?;
        Ok(())
    }

    fn device(&self) -> anyhow::Result<()> {
        let ops = speed::ops(Some(&self.kernels()))?;
        let device = ops.device();
        let (major, minor) = device.capability;
        let cuda = llamero_cuda::probe::driver()?.cuda_version()?;
        let text = format!(
            "{} {}, compute capability {major}.{minor}, {:.1} GiB, driver for CUDA {cuda}",
            device.name,
            device.uuid,
            device.memory as f64 / (1u64 << 30) as f64
        );
        let result = json!({"stage": "device", "name": device.name, "capability": format!("{major}.{minor}"),
            "memory": device.memory, "cuda": cuda, "kernels": Source::digest()});
        self.tell(&text, &result)
    }

    fn read(&self) -> anyhow::Result<()> {
        let mut ops = speed::ops(Some(&self.kernels()))?;
        let bandwidth = speed::read_bandwidth(&mut ops, self.most())?;
        let text = format!(
            "reads {:.0} GB/s: the measure of all shares below",
            bandwidth / 1e9
        );
        self.tell(&text, &json!({"stage": "read", "bytes_per_second": bandwidth}))
    }

    /// Bytes that a measurement may touch.
    fn most(&self) -> usize {
        if self.small { 64 << 10 } else { usize::MAX }
    }

    /// The bandwidth that the read stage found; none where it did not run.
    fn measured(&self) -> Option<f64> {
        let text = std::fs::read_to_string(self.folder.join("results.jsonl")).ok()?;
        let mut results = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let read = results.rfind(|result| result["stage"] == "read")?;
        read["bytes_per_second"].as_f64()
    }

    fn share(&self, bandwidth: f64) -> String {
        match self.measured() {
            Some(all) => format!("{:.0} GB/s, {:.0} %", bandwidth / 1e9, 100.0 * bandwidth / all),
            None => format!("{:.0} GB/s", bandwidth / 1e9),
        }
    }

    /// Every test of these binaries, each in a process of its own.
    fn tests(&self, binaries: &[&str]) -> anyhow::Result<()> {
        let mut failed = 0;
        for binary in binaries {
            let program = self.folder.join("tests").join(binary);
            // That the emulator passes each of them is shown elsewhere.
            let most = if self.small { 1 } else { usize::MAX };
            for test in list(&program)?.into_iter().take(most) {
                let started = std::time::Instant::now();
                let output = Command::new(&program)
                    .args([&test, "--exact", "--nocapture", "--include-ignored"])
                    .env(INSIDE, &test)
                    .env(KERNELS, self.kernels())
                    .output()?;
                let passed =
                    output.status.success() && String::from_utf8_lossy(&output.stdout).contains("1 passed");
                failed += usize::from(!passed);
                let seconds = started.elapsed().as_secs_f64();
                let said = if passed { "ok" } else { "FAILED" };
                let result = json!({"stage": binary, "test": test, "passed": passed});
                self.tell(&format!("{said:6} {seconds:5.1} s  {binary} {test}"), &result)?;
                if !passed {
                    for line in last_lines(&output.stdout, 25)
                        .iter()
                        .chain(&last_lines(&output.stderr, 25))
                    {
                        println!("         {line}");
                    }
                }
            }
        }
        if failed > 0 {
            bail!("{failed} tests failed");
        }
        Ok(())
    }

    /// The first layers of SmolLM2 against the CPU backend: weights that were trained and not drawn.
    fn smollm2(&self) -> anyhow::Result<()> {
        let model = self.folder.join("smollm2");
        let options = CudaOptions {
            kernels: Some(self.kernels()),
            ..CudaOptions::alone()
        };
        let mut gpu = CudaBackend::new(&model, options)?;
        let mut cpu = CpuBackend::new(&model, CpuOptions::alone(1, Kernel::detect()))?;
        let (question, steps) = if self.small {
            (&QUESTION[..3], 1)
        } else {
            (&QUESTION[..], 64)
        };
        let spec = drive::spec(1, 64, 128);
        let all = compare(&mut cpu, &mut gpu, &spec, question, steps)?;
        let text = format!(
            "{} positions, {} other best tokens, where the two best are {:.4} apart at most; divergence {:.1e}, logits {:.4} apart",
            all.positions, all.different, all.gap, all.divergence, all.error
        );
        let result = json!({"stage": "smollm2", "test": "the CPU backend's tokens", "passed": all.holds(),
            "positions": all.positions, "different": all.different, "divergence": all.divergence});
        self.tell(&text, &result)?;
        ensure!(all.holds(), "that is too far from the CPU backend");
        Ok(())
    }

    fn processes(&self) -> anyhow::Result<()> {
        let checks = [
            (
                "a killed process leaves another its context",
                processes::check as fn() -> _,
            ),
            (
                "two ranks of a tensor group have the bits of one, and form again after a kill",
                || processes::check_group(0, processes::TOKENS, 1),
            ),
        ];
        let mut all = Ok(());
        for (test, check) in checks {
            let outcome = check();
            let result = json!({"stage": "processes", "test": test, "passed": outcome.is_ok()});
            let said = if outcome.is_ok() { "ok" } else { "FAILED" };
            self.tell(&format!("{said:6} {test}"), &result)?;
            all = all.and(outcome);
        }
        all
    }

    /// Exchanges between two GPUs, where there are two.
    fn peers(&self) -> anyhow::Result<()> {
        let test = "two GPUs have the bits of one, over many exchanges and kills";
        let gpus = count(driver()?)?;
        if gpus < 2 {
            let result = json!({"stage": "peers", "test": test, "gpus": gpus});
            return self.tell("one GPU is seen: exchanges between GPUs are not tried", &result);
        }
        // As many tokens as a small group has context for.
        let (tokens, kills) = if self.small { (2, 1) } else { (60, 5) };
        let outcome = processes::check_group(1, tokens, kills);
        let result = json!({"stage": "peers", "test": test, "gpus": gpus, "passed": outcome.is_ok()});
        let said = if outcome.is_ok() { "ok" } else { "FAILED" };
        self.tell(&format!("{said:6} {test}"), &result)?;
        outcome
    }

    /// What the exchanges of a decode step take on one GPU: launches, waits, joins, and this rank's writes, all to itself.
    fn exchange(&self, name: &str, model: Model, tensor: u32) -> anyhow::Result<()> {
        let (model, tensor, count) = match self.small {
            true => (crate::model::TINY, 3, 2),
            false => (model, tensor, 100),
        };
        let sums = 2 * model.layers;
        let one = Model { layers: 1, ..model };
        let mut rank = Rank::new(one, tensor, Some(&self.kernels()))?;
        for rows in [1, 16, 64] {
            let seconds = rank.exchange(rows, count)?;
            let text = format!(
                "{name}, {rows:2} rows: {:.1} µs a sum, {:.2} ms for the {sums} sums of a token",
                1e6 * seconds,
                1e3 * seconds * sums as f64
            );
            let result =
                json!({"stage": "exchange", "name": name, "rows": rows, "seconds": seconds, "sums": sums});
            self.tell(&text, &result)?;
        }
        Ok(())
    }

    fn products(&self) -> anyhow::Result<()> {
        let mut ops = speed::ops(Some(&self.kernels()))?;
        let tiny = speed::Shape {
            name: "tiny",
            outputs: 64,
            leaves: (8, 64),
            element: llamero_cuda::ops::Element::E4m3,
        };
        let shapes = if self.small { vec![tiny] } else { SHAPES.to_vec() };
        for shape in shapes {
            for rows in [1, 16, 64] {
                let bandwidth = speed::product_bandwidth(&mut ops, &shape, rows, self.most())?;
                let text = format!("{:16} {rows:2} rows  {}", shape.name, self.share(bandwidth));
                let result = json!({"stage": "product", "name": shape.name, "rows": rows, "bytes_per_second": bandwidth});
                self.tell(&text, &result)?;
            }
        }
        Ok(())
    }

    fn model(&self, model: Model, tensor: u32) -> (Model, u32) {
        if self.small {
            (crate::model::TINY, 1)
        } else {
            (model, tensor)
        }
    }

    fn decode(&self, name: &str, model: Model, tensor: u32, batches: &[(u32, u32)]) -> anyhow::Result<()> {
        let (model, tensor) = self.model(model, tensor);
        let mut rank = Rank::new(model, tensor, Some(&self.kernels()))?;
        // That everything runs is all that an emulated device shows.
        let (batches, steps) = if self.small {
            (&[(2, 3)][..], 2)
        } else {
            (batches, 33)
        };
        for (batch, context) in batches.iter().copied() {
            let speed = rank.decode(batch, context, steps)?;
            self.tell_decode(name, context, speed)?;
        }
        Ok(())
    }

    fn tell_decode(&self, name: &str, context: u32, speed: Speed) -> anyhow::Result<()> {
        let bandwidth = (speed.weights + speed.kv) as f64 / speed.step;
        let tokens = f64::from(speed.batch) / speed.step;
        let text = format!(
            "{name}, batch {:2}, context {context}: {:.2} ms a step, {tokens:.0} tokens/s, {}",
            speed.batch,
            1e3 * speed.step,
            self.share(bandwidth)
        );
        let result = json!({"stage": "decode", "name": name, "batch": speed.batch, "context": context, "seconds": speed.step,
            "tokens_per_second": tokens, "bytes_per_second": bandwidth});
        self.tell(&text, &result)
    }

    fn prefill(&self, name: &str, model: Model, tokens: u32) -> anyhow::Result<()> {
        let (model, tensor) = self.model(model, 1);
        let tokens = if self.small { 70 } else { tokens };
        let mut rank = Rank::new(model, tensor, Some(&self.kernels()))?;
        let seconds = rank.prefill(tokens)?;
        let rate = f64::from(tokens) / seconds;
        let text = format!(
            "{name}: {tokens} tokens in {:.1} ms, {rate:.0} tokens/s",
            1e3 * seconds
        );
        self.tell(
            &text,
            &json!({"stage": "prefill", "name": name, "tokens": tokens, "seconds": seconds, "tokens_per_second": rate}),
        )
    }
}

/// Names of a test program's tests.
fn list(program: &Path) -> anyhow::Result<Vec<String>> {
    let output = Command::new(program)
        .args(["--list", "--format", "terse"])
        .output();
    let output = output.with_context(|| program.display().to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let names = text.lines().filter_map(|line| line.strip_suffix(": test"));
    let names: Vec<String> = names.map(str::to_owned).collect();
    if names.is_empty() {
        bail!("{} lists no tests", program.display());
    }
    Ok(names)
}

fn last_lines(bytes: &[u8], count: usize) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..]
        .iter()
        .map(|line| (*line).to_owned())
        .collect()
}
