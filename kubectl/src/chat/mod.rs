//! `chat`: a model in the terminal, through the gateway.
//!
//! | module | what it is |
//! |---|---|
//! | [`forward`] | a port of the gateway's pod, through the API server |
//! | [`talk`] | the gateway as who answers |
//! | [`events`] | server-sent events of an answer |

pub mod events;
pub mod forward;
pub mod talk;

use anyhow::{Context as _, Result, ensure};
use kube::ResourceExt as _;
use llamero_api::LlamaDeployment;
use tokio::runtime::Runtime;

use crate::{
    cluster::{Cluster, say},
    exit::Code,
    options::ChatArgs,
};

use forward::Forward;
use talk::{GatewayTalk, Way};

/// Longest file with a key.
const MOST_KEY_BYTES: usize = 4096;

/// Runs `chat`.
///
/// # Errors
/// There is no such deployment, the gateway cannot be reached, or the terminal cannot be used.
pub fn run(runtime: &Runtime, cluster: &Cluster, args: &ChatArgs) -> Result<Code> {
    let model = runtime.block_on(model(cluster, args))?;
    let way = match &args.url {
        Some(url) => Way::direct(url),
        None => {
            let forward = runtime.block_on(Forward::open(cluster, &args.gateway))?;
            Way::forwarded(&forward)
        }
    };
    let talk = GatewayTalk::new(way, model, args, key(args)?)?;
    match &args.prompt {
        Some(prompt) => llamero_chat::once(runtime, &talk, prompt, args.verbose)?,
        None => llamero_chat::converse(runtime, &talk, args.verbose)?,
    }
    Ok(Code::Done)
}

/// `namespace/model`, which is nobody else's name.
async fn model(cluster: &Cluster, args: &ChatArgs) -> Result<String> {
    let api = cluster.api::<LlamaDeployment>(false);
    let object = api.get(&args.name).await;
    let object = object.map_err(|error| say::refused(error, "get", "llamadeployment"))?;
    let namespace = object.namespace().unwrap_or_default();
    Ok(format!("{namespace}/{}", object.model_name()))
}

/// The API key of the file, else of the environment.
fn key(args: &ChatArgs) -> Result<Option<String>> {
    let Some(path) = &args.api_key_file else {
        return Ok(std::env::var("LLAMERO_API_KEY")
            .ok()
            .filter(|key| !key.is_empty()));
    };
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let key = text.trim();
    ensure!(
        !key.is_empty() && key.len() <= MOST_KEY_BYTES,
        "{} holds no API key",
        path.display()
    );
    Ok(Some(key.to_owned()))
}
