//! The handler.

use axum::Json;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use llamero_proto::v1::completion_client::CompletionClient;
use llamero_proto::v1::{EmbedInput, EmbedRequest, Embedding, embed_input::Input};
use prost::Message as _;
use tonic::Status;
use tonic::transport::Channel;

use super::objects::EmbeddingList;
use super::request::{Checked, Request};
use crate::error::ApiError;
use crate::quota::headers::tell;
use crate::routes::body::read_json;
use crate::routes::completion::api::Front;
use crate::routes::completion::request::Reader;
use crate::routes::completion::route::Route;
use crate::routes::leader::{Question, ask};
use crate::upstream::{Affinity, Leader};

/// Most values of one answer: 16 MiB, and some 50 MiB as JSON.
const MAX_VALUES: usize = 4 << 20;

/// Inputs that begin alike go to the same leader; of several the first one decides.
fn affinity(input: &EmbedInput) -> Option<Affinity> {
    match input.input.as_ref()? {
        Input::Text(text) => Affinity::of_text(text),
        Input::TokenIds(tokens) => Affinity::of_tokens(&tokens.ids),
    }
}

/// `POST /v1/embeddings`.
///
/// # Errors
/// 400 naming the parameter, and whatever keeps a leader from answering.
pub async fn embed(front: Front, body: Body) -> Result<Response, ApiError> {
    let reader = Reader::<Request>::new(Route::Embeddings);
    let checked = read_json(&front.gateway, reader, body).await?.checked()?;
    let Checked {
        question: request,
        model,
        likely_tokens,
        format,
        dimensions,
    } = checked;
    let question = Question {
        route: Route::Embeddings.name(),
        model: &model,
        bytes: request.encoded_len(),
        tokens: likely_tokens,
        adapters: false,
        adapter: "",
        affinity: request.inputs.first().and_then(affinity),
    };
    let call = |leader: &Leader| {
        let model = leader.model().to_owned();
        let request = EmbedRequest {
            model,
            ..request.clone()
        };
        Box::pin(embeddings(leader.channel(), request, dimensions)) as _
    };
    let asked = ask(front, question, call).await;
    let mut asked = asked.map_err(|unanswered| ApiError::from(unanswered).on(Route::Embeddings))?;
    let list = match asked.answer {
        Ok(embeddings) => EmbeddingList::new(model, format, embeddings),
        Err(error) => {
            asked.record.failed(&error);
            return Err(error);
        }
    };
    asked.record.used(list.usage.prompt_tokens, 0);
    let limits = asked.record.limits();
    asked.record.finished();
    let mut response = Json(list).into_response();
    if let Some(limits) = limits {
        tell(response.headers_mut(), &limits);
    }
    Ok(response)
}

/// All embeddings from one leader. They do not depend on which, so that another can be asked for all when one is lost.
async fn embeddings(
    channel: Channel,
    request: EmbedRequest,
    dimensions: Option<u32>,
) -> Result<Result<Vec<Embedding>, ApiError>, Status> {
    let inputs = request.inputs.len();
    let mut stream = CompletionClient::new(channel).embed(request).await?.into_inner();
    let mut embeddings = Vec::new();
    while let Some(embedding) = stream.message().await? {
        if embeddings.is_empty()
            && let Err(error) = check_width(embedding.values.len(), inputs, dimensions)
        {
            return Ok(Err(error));
        }
        embeddings.push(embedding);
    }
    if embeddings.len() == inputs {
        return Ok(Ok(embeddings));
    }
    let come = embeddings.len();
    Err(Status::internal(format!(
        "{come} embeddings came for {inputs} inputs"
    )))
}

/// What can be checked once it is known how wide the model is.
fn check_width(width: usize, inputs: usize, dimensions: Option<u32>) -> Result<(), ApiError> {
    if let Some(asked) = dimensions.filter(|asked| *asked as usize != width) {
        let message = format!(
            "'dimensions' is {asked}, and this model's embeddings have {width} values; leave it out: a part of a hidden \
             state is no embedding."
        );
        return Err(ApiError::unsupported("dimensions", message));
    }
    let most = MAX_VALUES / width.max(1);
    if inputs > most {
        let message = format!(
            "'input' has {inputs} entries, and an answer holds {most} embeddings of {width} values; send several requests."
        );
        return Err(ApiError::invalid(Some("input"), message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_width_of_the_model_decides_what_an_answer_holds() {
        check_width(576, 2048, Some(576)).unwrap();
        check_width(16_384, 256, None).unwrap();
        let many = check_width(16_384, 257, None).unwrap_err();
        assert!(
            many.param.as_deref() == Some("input") && many.message.contains("256"),
            "{many:?}"
        );
        let cut = check_width(576, 1, Some(64)).unwrap_err();
        assert_eq!(
            (cut.param.as_deref(), cut.code),
            (Some("dimensions"), Some("unsupported_parameter"))
        );
    }
}
