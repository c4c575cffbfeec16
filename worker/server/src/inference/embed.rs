//! Embeddings: texts become vectors, a few at a time.

use futures::StreamExt;
use futures::stream::BoxStream;
use llamero_engine::pooling::Pooling;
use llamero_engine::runtime::{EngineHandle, Event, GenerationRequest, Sharing};
use llamero_proto::v1::embed_input::Input;
use llamero_proto::v1::{EmbedInput, EmbedRequest, Embedding, Pooling as Asked};
use llamero_settings::limits::MAX_EMBED_INPUTS;
use tokio::sync::mpsc::unbounded_channel;
use tonic::Status;

use super::answer::{failed, refused};
use super::model::{Model, blame};
use super::running::Entry;

/// How many inputs of one request are in the engine's queue at once: enough to fill its steps, and few enough that others have
/// their turn.
const AT_ONCE: usize = 16;

/// The requests to the engine, one for each input.
///
/// # Errors
/// INVALID_ARGUMENT; OUT_OF_RANGE for an input that is longer than the context.
pub fn prepare(model: &Model, request: EmbedRequest) -> Result<Vec<GenerationRequest>, Status> {
    let pooling = match request.pooling() {
        Asked::LastToken => Pooling::Last,
        Asked::Mean => Pooling::Mean,
    };
    if request.inputs.is_empty() || request.inputs.len() > MAX_EMBED_INPUTS {
        let message = format!(
            "there are {} inputs; send 1 to {MAX_EMBED_INPUTS}",
            request.inputs.len()
        );
        return Err(blame("input", &message));
    }
    let sharing = Sharing::With(request.cache_salt);
    let embedding = |input: EmbedInput| {
        let tokens = tokens(model, input, !request.no_special_tokens)?;
        let (sharing, priority) = (sharing.clone(), request.priority);
        Ok(GenerationRequest::embedding(tokens, pooling, sharing, priority))
    };
    request.inputs.into_iter().map(embedding).collect()
}

fn tokens(model: &Model, input: EmbedInput, add_special: bool) -> Result<Vec<u32>, Status> {
    let tokens = match input.input {
        Some(Input::Text(text)) => model.tokens_of_text(&text, add_special)?,
        Some(Input::TokenIds(tokens)) => tokens.ids,
        None => Vec::new(),
    };
    let (size, context) = (model.limits.vocab_size, model.limits.max_context);
    if tokens.is_empty() {
        return Err(blame("input", "an input is empty; send at least one token"));
    }
    if let Some(token) = tokens.iter().find(|&&token| token >= size) {
        let message = format!(
            "there is no token {token}; the model has the tokens 0 to {}",
            size.saturating_sub(1)
        );
        return Err(blame("input", &message));
    }
    if tokens.len() > context as usize {
        return Err(Status::out_of_range(format!(
            "an input has {} tokens, and the context has {context}; shorten it",
            tokens.len()
        )));
    }
    Ok(tokens)
}

/// The embeddings, in order. Dropping the stream cancels what is under way.
pub fn embeddings(
    engine: EngineHandle,
    requests: Vec<GenerationRequest>,
    entry: Entry,
) -> BoxStream<'static, Result<Embedding, Status>> {
    let abort = entry.abort.clone();
    let one = move |request| {
        let engine = engine.clone();
        async move { embedding(&engine, request).await }
    };
    let all = futures::stream::iter(requests).map(one).buffered(AT_ONCE);
    let aborted = futures::stream::once(async move {
        abort.cancelled().await;
        // The id stays taken as long as the stream lives.
        drop(entry);
        Err(Status::aborted("the request was aborted"))
    });
    // Ends behind the first error, and when all embeddings have come.
    let both = futures::stream::select(
        all.map(Some).chain(futures::stream::iter([None])),
        aborted.map(Some),
    );
    let until_end = both.take_while(|next| futures::future::ready(next.is_some()));
    let found = until_end.filter_map(futures::future::ready);
    found.boxed()
}

async fn embedding(engine: &EngineHandle, request: GenerationRequest) -> Result<Embedding, Status> {
    let (sender, mut events) = unbounded_channel();
    let sink = Box::new(move |event| sender.send(event).is_ok());
    let prompt_tokens = u32::try_from(request.prompt.len()).unwrap_or(u32::MAX);
    // Dropped, it cancels the request.
    let _submission = engine.submit(request, sink).map_err(refused)?;
    while let Some(event) = events.recv().await {
        match event {
            Event::Embedding(values) => {
                return Ok(Embedding {
                    values,
                    prompt_tokens,
                });
            }
            Event::Failed { kind, message } => return Err(failed(kind, message)),
            Event::Accepted { .. } | Event::Started { .. } => {}
            Event::Scored(_) | Event::Token { .. } | Event::Finished { .. } => break,
        }
    }
    Err(Status::unavailable(
        "the engine ended before the embedding was there",
    ))
}
