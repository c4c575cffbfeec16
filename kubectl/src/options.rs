//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// Llama models on Kubernetes: what goes where, how far it is, and why it is not further
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-llamero",
    bin_name = "kubectl llamero",
    version,
    max_term_width = 110,
    after_help = "Exit codes: 0 done, 1 could not be done, 2 wrong command line, 3 `plan` found no room or `explain` something that is not ready."
)]
pub struct Cli {
    /// Which cluster.
    #[command(flatten)]
    pub connection: Connection,
    /// When to colour the output
    #[arg(long, global = true, value_enum, default_value_t = Colour::Auto, value_name = "WHEN", help_heading = "Options of all commands")]
    pub color: Colour,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Which cluster, user and namespace, by the flags that kubectl has for it.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Options of all commands")]
pub struct Connection {
    /// Namespace; the context's own when absent
    #[arg(long, short = 'n', global = true, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Context of the kubeconfig
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Cluster of the kubeconfig
    #[arg(long, global = true, value_name = "NAME")]
    pub cluster: Option<String>,
    /// User of the kubeconfig
    #[arg(long, global = true, value_name = "NAME")]
    pub user: Option<String>,
    /// The kubeconfig; $KUBECONFIG, else ~/.kube/config, else the pod's service account when absent
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// User to impersonate
    #[arg(long = "as", global = true, value_name = "USER")]
    pub impersonate: Option<String>,
    /// Seconds to wait for an answer of the API server
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub request_timeout: u64,
}

/// When to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Colour {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// How to write what was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say which nodes a LlamaDeployment would get, before it is applied; and what would fit where it does not
    #[command(after_help = PLAN_EXAMPLES)]
    Plan(PlanArgs),
    /// Show deployments, their groups and ranks as a tree, with what is loaded
    #[command(after_help = STATUS_EXAMPLES)]
    Status(StatusArgs),
    /// Say why a deployment is not ready: the one condition, object and number, and the way out
    #[command(after_help = EXPLAIN_EXAMPLES)]
    Explain(ExplainArgs),
    /// List the kept revisions of a deployment, or go back to one
    #[command(after_help = ROLLBACK_EXAMPLES)]
    Rollback(RollbackArgs),
    /// Read the weights again and replace all groups, one after another
    #[command(after_help = RESTART_EXAMPLES)]
    Restart(RestartArgs),
    /// Talk with a model in the terminal, through the gateway
    #[command(after_help = CHAT_EXAMPLES)]
    Chat(ChatArgs),
    /// Write a completion script for a shell
    #[command(after_help = COMPLETION_EXAMPLES)]
    Completion {
        /// The shell
        shell: CompletionShell,
    },
}

const PLAN_EXAMPLES: &str = "Examples:
  # Where would this go, if it were applied now?
  kubectl llamero plan -f llama-70b.yaml
  # The same with a checkpoint that no cluster has read yet
  llamero-worker inspect --json /models/llama-70b > summary.json
  kubectl llamero plan -f llama-70b.yaml --checkpoint-summary summary.json
  # Where will the groups go that a deployment lacks?
  kubectl llamero plan llama-70b -n chat";
const STATUS_EXAMPLES: &str = "Examples:
  # Everything in the namespace, and again when it changes
  kubectl llamero status -w
  # One deployment, for a program
  kubectl llamero status llama-70b -o json
  # All namespaces
  kubectl llamero status -A";
const EXPLAIN_EXAMPLES: &str = "Examples:
  # Why is it not ready? Exits with 3 while it is not.
  kubectl llamero explain llama-70b
  # Everything in the cluster that is not ready
  kubectl llamero explain -A";
const ROLLBACK_EXAMPLES: &str = "Examples:
  # Which revisions are kept?
  kubectl llamero rollback llama-70b
  # Back to the one before, to number 3, or to the one whose digest begins so
  kubectl llamero rollback llama-70b --to previous
  kubectl llamero rollback llama-70b --to 3
  kubectl llamero rollback llama-70b --to 8f2c
  # Follow the specification again
  kubectl llamero rollback llama-70b --forward";
const RESTART_EXAMPLES: &str = "Examples:
  # The files of the checkpoint were replaced in place
  kubectl llamero restart llama-70b";
const CHAT_EXAMPLES: &str = "Examples:
  # Through the API server to the gateway, with the rights of your kubeconfig
  kubectl llamero chat llama-70b
  # One question, at a gateway with an address of its own
  kubectl llamero chat llama-70b --url https://llm.example.com -p 'What is a llama?'";
const COMPLETION_EXAMPLES: &str = "Examples:
  source <(kubectl llamero completion bash)
  kubectl llamero completion zsh > \"${fpath[1]}/_kubectl-llamero\"
  kubectl llamero completion fish > ~/.config/fish/completions/kubectl-llamero.fish
  kubectl llamero completion powershell | Out-String | Invoke-Expression";

/// The shells that completion scripts are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CompletionShell {
    /// GNU Bash
    Bash,
    /// Z shell
    Zsh,
    /// fish
    Fish,
    /// PowerShell
    #[value(name = "powershell")]
    PowerShell,
}

impl From<CompletionShell> for Shell {
    fn from(shell: CompletionShell) -> Self {
        match shell {
            CompletionShell::Bash => Self::Bash,
            CompletionShell::Zsh => Self::Zsh,
            CompletionShell::Fish => Self::Fish,
            CompletionShell::PowerShell => Self::PowerShell,
        }
    }
}

/// `plan`.
#[derive(Clone, Debug, Args)]
pub struct PlanArgs {
    /// A LlamaDeployment that is applied already
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    pub name: Option<String>,
    /// A file with LlamaDeployments that need not be applied; `-` reads standard input
    #[arg(long = "filename", short = 'f', value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// What `llamero-worker inspect --json` wrote about the checkpoint, where the cluster has not read it yet
    #[arg(long, value_name = "FILE", conflicts_with = "name")]
    pub checkpoint_summary: Option<PathBuf>,
    /// How to write the plan
    #[arg(long, short, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Output,
}

/// `status`.
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// LlamaDeployments; all of the namespace when absent
    pub names: Vec<String>,
    /// All namespaces
    #[arg(long, short = 'A', conflicts_with = "names")]
    pub all_namespaces: bool,
    /// Show it again whenever it changes
    #[arg(long, short)]
    pub watch: bool,
    /// How to write the tree
    #[arg(
        long,
        short,
        value_enum,
        default_value_t,
        value_name = "FORMAT",
        conflicts_with = "watch"
    )]
    pub output: Output,
}

/// `explain`.
#[derive(Clone, Debug, Args)]
pub struct ExplainArgs {
    /// LlamaDeployments; all of the namespace when absent
    pub names: Vec<String>,
    /// All namespaces
    #[arg(long, short = 'A', conflicts_with = "names")]
    pub all_namespaces: bool,
    /// Namespace of the operator's lease
    #[arg(long, value_name = "NAME", default_value = "llamero-system")]
    pub operator_namespace: String,
    /// How to write the reasons
    #[arg(long, short, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Output,
}

/// `rollback`.
#[derive(Clone, Debug, Args)]
pub struct RollbackArgs {
    /// The LlamaDeployment
    pub name: String,
    /// Go back to this revision: its number, the beginning of its digest, or `previous`
    #[arg(long, value_name = "REVISION", conflicts_with = "forward")]
    pub to: Option<String>,
    /// Follow the specification again
    #[arg(long)]
    pub forward: bool,
    /// Let the API server check the change without making it
    #[arg(long)]
    pub dry_run: bool,
    /// How to write the list
    #[arg(long, short, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Output,
}

/// `restart`.
#[derive(Clone, Debug, Args)]
pub struct RestartArgs {
    /// The LlamaDeployments
    #[arg(required = true)]
    pub names: Vec<String>,
    /// Let the API server check the change without making it
    #[arg(long)]
    pub dry_run: bool,
}

/// `chat`.
#[derive(Clone, Debug, Args)]
pub struct ChatArgs {
    /// The LlamaDeployment
    pub name: String,
    /// Base URL of a gateway that can be reached directly; without it a port of the gateway's pod is forwarded through the API server
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// Namespace and name of the gateway's Service
    #[arg(long, value_name = "NAMESPACE/NAME", default_value = "llamero-system/llamero-gateway", value_parser = service_name)]
    pub gateway: ServiceName,
    /// A file with the API key; $LLAMERO_API_KEY when absent
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// A file with certificates in PEM form that are trusted beside the usual ones
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Answer this and exit
    #[arg(long, short, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// 0 always takes the likeliest token; the model's own advice when absent
    #[arg(long, value_name = "NUMBER")]
    pub temperature: Option<f32>,
    /// Sample among the likeliest tokens with this share of the probability
    #[arg(long, value_name = "SHARE")]
    pub top_p: Option<f32>,
    /// The same seed gives the same answer
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,
    /// Longest answer in tokens; what is left of the context when absent
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: Option<u32>,
    /// Show the speed after each answer
    #[arg(long, short)]
    pub verbose: bool,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

fn service_name(text: &str) -> Result<ServiceName, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(ServiceName {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            })
        }
        _ => Err("write namespace and name, for example llamero-system/llamero-gateway".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(
            ["kubectl-llamero"]
                .into_iter()
                .chain(line.split_ascii_whitespace()),
        )
    }

    #[test]
    fn the_command_line_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn flags_of_kubectl_are_understood_before_and_after_the_command() {
        for line in ["-n chat --context c status", "status -n chat --context c"] {
            let cli = parse(line).unwrap();
            assert_eq!(cli.connection.namespace.as_deref(), Some("chat"));
            assert_eq!(cli.connection.context.as_deref(), Some("c"));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "plan",
            "plan a -f b",
            "plan a --checkpoint-summary s",
            "status a -A",
            "status -w -o json",
            "rollback a --to 1 --forward",
            "chat a --gateway gateway",
            "restart",
        ] {
            assert!(parse(line).is_err(), "{line} is accepted");
        }
    }
}
