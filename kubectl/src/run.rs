//! From the command line to the commands.

use std::io::{self, Write as _};

use anyhow::Result;
use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::{
    chat,
    cluster::Cluster,
    exit::Code,
    explain,
    options::{Cli, Command},
    paint::Paint,
    plan, restart, revisions, status,
};

/// Runs a command.
///
/// # Errors
/// It could not be done: why, and what to do about it.
pub fn run(cli: &Cli) -> Result<Code> {
    if let Command::Completion { shell } = &cli.command {
        return completion((*shell).into());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let paint = Paint::of(cli.color);
    let streams = match &cli.command {
        Command::Status(args) => args.watch,
        Command::Chat(_) => true,
        _ => false,
    };
    let cluster = || runtime.block_on(Cluster::connect(&cli.connection, streams));
    match &cli.command {
        Command::Plan(args) => runtime.block_on(plan::run(&cluster()?, args, paint)),
        Command::Status(args) => runtime.block_on(status::run(&cluster()?, args, paint)),
        Command::Explain(args) => runtime.block_on(explain::run(&cluster()?, args, paint)),
        Command::Rollback(args) => runtime.block_on(revisions::run(&cluster()?, args, paint)),
        Command::Restart(args) => runtime.block_on(restart::run(&cluster()?, args)),
        Command::Chat(args) => chat::run(&runtime, &cluster()?, args),
        Command::Completion { .. } => Ok(Code::Done),
    }
}

/// The script is for the program's own name: that is what shells complete, and what kubectl calls.
fn completion(shell: Shell) -> Result<Code> {
    let mut command = Cli::command().bin_name("kubectl-llamero");
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "kubectl-llamero", &mut script);
    io::stdout().lock().write_all(&script)?;
    Ok(Code::Done)
}
