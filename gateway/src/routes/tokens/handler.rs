//! The handlers.

use std::marker::PhantomData;

use axum::Json;
use axum::body::Body;
use llamero_proto::v1::{CompletionRequest, Detokenized, TokenIds, Tokenized};
use prost::Message as _;

use super::types::{Detokenize, Text, Tokenize, Tokens};
use crate::error::ApiError;
use crate::routes::body::read_json;
use crate::routes::completion::api::Front;
use crate::routes::completion::request::Reader;
use crate::routes::completion::route::Route;
use crate::routes::leader::{Asked, Question, ask};
use crate::upstream::Leader;

/// `POST /tokenize`.
///
/// # Errors
/// 400 for a prompt that is not as expected, and whatever keeps a leader from answering.
pub async fn tokenize(front: Front, body: Body) -> Result<Json<Tokens>, ApiError> {
    let asked = read_json(&front.gateway, Reader::<Tokenize>::new(Route::Tokenize), body).await?;
    let (model, strings) = (asked.model.clone(), asked.return_token_strs == Some(true));
    let tokenized = tokens(front, Route::Tokenize.name(), &model, asked.request()?).await?;
    let spelled = |piece: &Vec<u8>| String::from_utf8_lossy(piece).into_owned();
    Ok(Json(Tokens {
        count: tokenized.ids.len(),
        max_model_len: tokenized.max_context,
        token_strs: strings.then(|| tokenized.pieces.iter().map(spelled).collect()),
        tokens: tokenized.ids,
    }))
}

/// The tokens of a request's prompt.
///
/// # Errors
/// As [`ask`].
pub async fn tokens(
    front: Front,
    route: &'static str,
    model: &str,
    request: CompletionRequest,
) -> Result<Tokenized, ApiError> {
    let question = Question {
        route,
        model,
        bytes: request.encoded_len(),
        tokens: 0,
        adapters: true,
        adapter: "",
        affinity: None,
    };
    let call = |leader: &Leader| {
        let model = leader.model().to_owned();
        let request = CompletionRequest {
            model,
            ..request.clone()
        };
        let mut client = leader.completion();
        Box::pin(async move { client.tokenize(request).await.map(tonic::Response::into_inner) }) as _
    };
    Ok(finished(ask(front, question, call).await?))
}

/// `POST /detokenize`.
///
/// # Errors
/// 400 for tokens that the model does not have, and whatever keeps a leader from answering.
pub async fn detokenize(front: Front, body: Body) -> Result<Json<Text>, ApiError> {
    let asked = read_json(&front.gateway, PhantomData::<Detokenize>, body).await?;
    let tokens = TokenIds { ids: asked.tokens.0 };
    let question = Question {
        route: "detokenize",
        model: &asked.model,
        bytes: tokens.encoded_len(),
        tokens: 0,
        adapters: true,
        adapter: "",
        affinity: None,
    };
    let call = |leader: &Leader| {
        let (mut client, tokens) = (leader.completion(), tokens.clone());
        Box::pin(async move { client.detokenize(tokens).await.map(tonic::Response::into_inner) }) as _
    };
    let answer: Detokenized = finished(ask(front, question, call).await?);
    Ok(Json(Text { prompt: answer.text }))
}

fn finished<T>(mut asked: Asked<T>) -> T {
    asked.record.finished();
    asked.answer
}
