//! `llamero run`.

use std::io::{IsTerminal as _, Read as _};

use anyhow::Context as _;
use llamero_checkpoint::LlamaConfig;
use llamero_settings::listen::listen;
use llamero_worker::cli::progress::ProgressLine;
use llamero_worker::config::EngineArgs;
use llamero_worker::rank::alone::Alone;

use crate::chat::EngineTalk;
use crate::options::RunArgs;
use crate::prepare::{Preparation, Prepared};
use crate::serve::{self, Served};

/// The longest context unless the user asks for more: KV memory grows with it, and a model of 128K tokens would not start
/// on a small machine.
const USUAL_CONTEXT: u32 = 8192;
/// Longest prompt that is read from standard input.
const PROMPT_BYTES: u64 = llamero_settings::limits::MAX_REQUEST_BYTES as u64;

/// Run `run`.
///
/// # Errors
/// The model cannot be found, loaded or served.
pub fn run(args: &RunArgs, verbose: bool) -> anyhow::Result<()> {
    // What can fail at once does so before anything is downloaded.
    let listener = args.serve.map(|address| {
        let listener = listen(address);
        listener.with_context(|| format!("cannot listen on {address}; is another program using the port?"))
    });
    let listener = listener.transpose()?;
    let keys = args.api_keys.as_deref().map(serve::keys).transpose()?;
    let prompt = args.prompt.as_deref().map(prompt).transpose()?;
    let prepared = Preparation::new(&args.model)?.prepare(false)?;
    let engine = engine(args, &prepared)?;
    let (name, context) = (engine.served_name(), engine.max_context_length);
    let mut line = ProgressLine::new(format!("loading {name}"));
    let alone = Alone::start(engine)?.wait(&mut |progress| line.report(progress))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let outcome = match (listener, prompt) {
        (Some(listener), _) => {
            let served = Served {
                model: name,
                max_context: context,
                leader: alone.address(),
            };
            runtime.block_on(serve::serve(listener, served, keys))
        }
        (None, prompt) => {
            let talk = runtime.block_on(async { EngineTalk::new(alone.address(), args.answers.clone()) })?;
            match prompt {
                Some(prompt) => llamero_chat::once(&runtime, &talk, &prompt, verbose).map_err(Into::into),
                None => llamero_chat::converse(&runtime, &talk, verbose).map_err(Into::into),
            }
        }
    };
    // Connections of clients end with the runtime, so that the engine need not wait for them.
    runtime.shutdown_background();
    alone.finish()?;
    outcome
}

fn engine(args: &RunArgs, prepared: &Prepared) -> anyhow::Result<EngineArgs> {
    let config =
        LlamaConfig::read(&prepared.folder.join("config.json")).map_err(llamero_checkpoint::Error::from)?;
    let context = config.max_position_embeddings.min(USUAL_CONTEXT);
    let options = &args.engine;
    Ok(EngineArgs {
        model_name: options
            .model_name
            .clone()
            .unwrap_or_else(|| prepared.name.clone()),
        threads: options.threads,
        kv_cache_dtype: options.kv_cache_dtype,
        max_context_length: Some(options.max_context_length.unwrap_or(context)),
        ..EngineArgs::of(prepared.folder.clone())?
    })
}

/// The text, or standard input for `-`.
fn prompt(text: &str) -> anyhow::Result<String> {
    if text != "-" {
        return Ok(text.to_owned());
    }
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        eprintln!("write the prompt, then Ctrl-D");
    }
    let mut text = String::new();
    stdin
        .take(PROMPT_BYTES + 1)
        .read_to_string(&mut text)
        .context("the prompt on standard input is not text in UTF-8")?;
    anyhow::ensure!(
        text.len() as u64 <= PROMPT_BYTES,
        "the prompt on standard input is longer than {PROMPT_BYTES} bytes"
    );
    anyhow::ensure!(!text.trim().is_empty(), "the prompt on standard input is empty");
    Ok(text)
}
