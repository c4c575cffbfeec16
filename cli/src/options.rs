//! The command line.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use llamero_settings::limits;
use llamero_worker::config::{KvCacheDtype, within};

/// Run a Llama model on this machine: a chat in the terminal, or an OpenAI-compatible server
#[derive(Debug, Parser)]
#[command(name = "llamero", version, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Show the log, and the speed after each answer
    #[arg(long, short, global = true)]
    pub verbose: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Chat with a model in the terminal, answer one prompt, or serve it over HTTP
    Run(Box<RunArgs>),
    /// Download a repository, or look for a newer state of one that is there
    Pull(PullArgs),
    /// List what is in the cache
    List(ListArgs),
    /// Remove a model from the cache
    Rm(RmArgs),
}

/// Which model, and where it comes from.
#[derive(Debug, Clone, Args)]
pub struct ModelArgs {
    /// A folder in Hugging Face's layout, a GGUF file, or a repository ORG/NAME[@REVISION]
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// Take this GGUF file of the repository
    #[arg(long, value_name = "NAME.gguf")]
    pub file: Option<String>,
    /// The Hub that repositories come from
    #[arg(
        long,
        value_name = "URL",
        env = "HF_ENDPOINT",
        default_value = "https://huggingface.co"
    )]
    pub endpoint: String,
    /// A file with the access token for the Hub; without it the variable HF_TOKEN is used
    #[arg(long, value_name = "PATH")]
    pub token_file: Option<PathBuf>,
    /// Where models are kept.
    #[command(flatten)]
    pub cache: CacheArgs,
    /// Make an FP8 copy in the cache and use that: half the memory
    #[arg(long, value_enum, value_name = "SCHEME")]
    pub quantize: Option<Quantize>,
}

/// Where models are kept.
#[derive(Debug, Clone, Args)]
pub struct CacheArgs {
    /// Folder for downloads and conversions; $XDG_CACHE_HOME/llamero or ~/.cache/llamero when absent
    #[arg(long, value_name = "DIR", env = "LLAMERO_CACHE")]
    pub cache_dir: Option<PathBuf>,
}

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Quantize {
    /// Row-wise FP8 of every matrix but the head
    Fp8,
}

/// `llamero run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The engine.
    #[command(flatten)]
    pub engine: EngineOptions,
    /// How answers are made.
    #[command(flatten)]
    pub answers: AnswerArgs,
    /// Answer this and exit; `-` reads it from standard input
    #[arg(long, short, value_name = "TEXT", conflicts_with = "serve")]
    pub prompt: Option<String>,
    /// Serve the OpenAI API and a chat page instead of a chat here; PORT and :PORT mean the loopback interface
    #[arg(long, value_name = "ADDR", num_args = 0..=1, default_missing_value = "8000", value_parser = serve_address)]
    pub serve: Option<SocketAddr>,
    /// Serve only clients with one of the keys in this YAML file (docs/gateway-keys.md)
    #[arg(long, value_name = "FILE", requires = "serve")]
    pub api_keys: Option<PathBuf>,
}

/// The engine.
#[derive(Debug, Clone, Args)]
pub struct EngineOptions {
    /// Threads that compute; the cores that this process may use when absent
    #[arg(long, value_name = "N", value_parser = within(limits::THREADS))]
    pub threads: Option<u32>,
    /// Longest prompt and answer together in tokens; the model's own limit, at most 8192, when absent
    #[arg(long, value_name = "TOKENS", value_parser = within(limits::MAX_CONTEXT_LENGTH))]
    pub max_context_length: Option<u32>,
    /// Type in which keys and values are kept: the model's own (bf16), or fp8, which takes half the memory and changes answers a
    /// little
    #[arg(long, value_enum, value_name = "TYPE", default_value_t = KvCacheDtype::Auto)]
    pub kv_cache_dtype: KvCacheDtype,
    /// Name that clients of the server ask for; the repository, or the name of folder or file, when absent
    #[arg(long, value_name = "NAME", requires = "serve")]
    pub model_name: Option<String>,
}

/// How answers are made; clients of the server say so themselves.
#[derive(Debug, Clone, Default, Args)]
pub struct AnswerArgs {
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT", conflicts_with = "serve")]
    pub system: Option<String>,
    /// 0 always takes the likeliest token; the model's own advice when absent
    #[arg(long, value_name = "NUMBER", conflicts_with = "serve")]
    pub temperature: Option<f32>,
    /// Sample among the likeliest tokens with this share of the probability
    #[arg(long, value_name = "SHARE", conflicts_with = "serve")]
    pub top_p: Option<f32>,
    /// The same seed gives the same answer
    #[arg(long, value_name = "NUMBER", conflicts_with = "serve")]
    pub seed: Option<u64>,
    /// Longest answer in tokens; what is left of the context when absent
    #[arg(long, value_name = "TOKENS", conflicts_with = "serve", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: Option<u32>,
}

/// `llamero pull`.
#[derive(Debug, Clone, Args)]
pub struct PullArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
}

/// `llamero list`.
#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// Where models are kept.
    #[command(flatten)]
    pub cache: CacheArgs,
}

/// `llamero rm`.
#[derive(Debug, Clone, Args)]
pub struct RmArgs {
    /// The name as `llamero list` shows it
    pub name: String,
    /// Where models are kept.
    #[command(flatten)]
    pub cache: CacheArgs,
}

/// `8000`, `:8000` (both on the loopback interface), or `IP:PORT`.
fn serve_address(text: &str) -> Result<SocketAddr, String> {
    let port = text.strip_prefix(':').unwrap_or(text);
    if let Ok(port) = port.parse() {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    text.parse().map_err(|_| {
        "write a port such as 8000 for this machine only, or an address such as 0.0.0.0:8000 for all; \
         and the model before --serve"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str) -> Result<RunArgs, clap::Error> {
        let words = ["llamero", "run"]
            .into_iter()
            .chain(line.split_ascii_whitespace());
        match Cli::try_parse_from(words)?.command {
            Command::Run(args) => Ok(*args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn a_bare_port_is_open_on_this_machine_only() {
        let serve = |line: &str| run(line).unwrap().serve.map(|address| address.to_string());
        assert_eq!(serve("m").as_deref(), None);
        assert_eq!(serve("m --serve").as_deref(), Some("127.0.0.1:8000"));
        assert_eq!(serve("m --serve :9").as_deref(), Some("127.0.0.1:9"));
        assert_eq!(serve("m --serve 0.0.0.0:9").as_deref(), Some("0.0.0.0:9"));
        let error = run("--serve m").unwrap_err().to_string();
        assert!(error.contains("the model before --serve"), "{error}");
    }

    #[test]
    fn types_of_the_kv_cache_have_their_usual_names() {
        let dtype = |line: &str| run(line).map(|args| args.engine.kv_cache_dtype);
        assert_eq!(dtype("m").unwrap(), KvCacheDtype::Auto);
        assert_eq!(dtype("m --kv-cache-dtype auto").unwrap(), KvCacheDtype::Auto);
        assert_eq!(dtype("m --kv-cache-dtype fp8").unwrap(), KvCacheDtype::Fp8);
        let error = dtype("m --kv-cache-dtype int4").unwrap_err().to_string();
        assert!(error.contains("[possible values: auto, fp8]"), "{error}");
    }

    #[test]
    fn options_that_a_server_would_ignore_are_refused() {
        for option in [
            "--prompt x",
            "--system x",
            "--temperature 0",
            "--seed 1",
            "--max-tokens 1",
        ] {
            let error = run(&format!("m --serve 9 {option}")).unwrap_err().to_string();
            assert!(error.contains("--serve"), "{error}");
        }
    }
}
