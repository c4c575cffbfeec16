//! `llamero-chaos`: faults on a schedule, on the running cluster, under 64 streams. Needs the chart and the claim of `tests/install.sh`.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use llamero_tests::chaos::fault::Kind;
use llamero_tests::chaos::{Options, Outcome, page, picture, run, schedule};
use llamero_tests::paths;

/// Disturbs Llamero on the running cluster and says what did not hold.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Gives the schedule; the same one gives the same again
    #[arg(long)]
    seed: u64,
    /// From the first to the last fault
    #[arg(long, value_parser = clap::value_parser!(u64).range(20..=86_400))]
    seconds: u64,
    /// Tokens of each answer
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(8..=512))]
    tokens: u32,
    /// Faults of this kind only, by its name in schedules
    #[arg(long, value_parser = kind)]
    only: Option<Kind>,
    /// Only print the schedule
    #[arg(long)]
    schedule: bool,
}

fn kind(name: &str) -> Result<Kind> {
    let found = Kind::ALL.into_iter().find(|kind| kind.name() == name);
    found.with_context(|| {
        let names = Kind::ALL.map(Kind::name);
        format!("there is none of that name; there are: {}", names.join("; "))
    })
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let options = Options {
        seed: arguments.seed,
        length: Duration::from_secs(arguments.seconds),
        tokens: arguments.tokens,
        only: arguments.only,
    };
    let mut out = std::io::stdout().lock();
    if arguments.schedule {
        for fault in schedule(options.seed, options.length, options.only) {
            let (at, lasts) = (fault.at.as_secs(), fault.lasts.as_secs());
            writeln!(out, "{at:5} s  for {lasts:3} s  {}", fault.kind.name())?;
        }
        return Ok(());
    }
    ensure!(
        rustix::process::geteuid().is_root(),
        "the suite signals processes of pods: run this as root"
    );
    let outcome = run(options)?;
    let place = write(&outcome)?;
    writeln!(out, "{} streams; the page is {place}", outcome.streams.len())?;
    if outcome.findings.is_empty() {
        return Ok(());
    }
    for finding in &outcome.findings {
        writeln!(out, "- {finding}")?;
    }
    bail!("{} findings with seed {}", outcome.findings.len(), options.seed)
}

fn write(outcome: &Outcome) -> Result<String> {
    let folder = paths::local().join("chaos");
    std::fs::create_dir_all(&folder).context("cannot make the folder of reports")?;
    let file = |kind: &str| folder.join(format!("seed-{}.{kind}", outcome.options.seed));
    for (file, text) in [(file("svg"), picture(outcome)), (file("html"), page(outcome))] {
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(file("html").display().to_string())
}
