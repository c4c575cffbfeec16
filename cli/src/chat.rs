//! The engine of this process as who answers in a chat.

use std::net::SocketAddr;

use futures::{StreamExt as _, stream};
use llamero_chat::answer::{Finish, Piece};
use llamero_chat::{ChatError, Message, Pieces, Talk};
use llamero_proto::v1::completion_client::CompletionClient;
use llamero_proto::v1::completion_request::Prompt;
use llamero_proto::v1::{ChatMessage, ChatPrompt, CompletionChunk, CompletionRequest, FinishReason};
use llamero_settings::limits::MAX_ANSWER_BYTES;
use tonic::transport::{Channel, Endpoint};

use crate::options::AnswerArgs;

/// The way to the engine, and how it is to answer.
#[derive(Debug, Clone)]
pub struct EngineTalk {
    client: CompletionClient<Channel>,
    args: AnswerArgs,
}

impl EngineTalk {
    /// Talk with the engine at `address`. Must be called in a runtime.
    ///
    /// # Errors
    /// Only if the address does not make a URI.
    pub fn new(address: SocketAddr, args: AnswerArgs) -> anyhow::Result<Self> {
        let channel = Endpoint::from_shared(format!("http://{address}"))?
            .tcp_nodelay(true)
            .connect_lazy();
        let client = CompletionClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
        Ok(Self { client, args })
    }
}

impl Talk for EngineTalk {
    fn system(&self) -> Option<&str> {
        self.args.system.as_deref()
    }

    async fn ask(&self, messages: Vec<Message>) -> Result<Pieces, ChatError> {
        let args = &self.args;
        let request = CompletionRequest {
            prompt: Some(Prompt::Chat(ChatPrompt {
                messages: messages.into_iter().map(message).collect(),
                ..ChatPrompt::default()
            })),
            max_tokens: args.max_tokens,
            temperature: args.temperature,
            top_p: args.top_p,
            seed: args.seed,
            ..CompletionRequest::default()
        };
        let mut client = self.client.clone();
        let chunks = client.complete(request).await.map_err(refused)?.into_inner();
        let pieces = chunks.map(|chunk| chunk.map_err(refused).and_then(piece));
        // The connection stays open after the last chunk; the answer ends with it.
        let whole =
            |piece: &Result<Piece, ChatError>| piece.as_ref().is_ok_and(|piece| piece.finish.is_some());
        Ok(stream::unfold(Some(pieces.boxed()), move |pieces| async move {
            let mut pieces = pieces?;
            let piece = pieces.next().await?;
            let rest = (!whole(&piece)).then_some(pieces);
            Some((piece, rest))
        })
        .boxed())
    }
}

fn refused(status: tonic::Status) -> ChatError {
    ChatError::Refused(status.message().to_owned())
}

fn message(message: Message) -> ChatMessage {
    ChatMessage {
        role: message.role.to_owned(),
        content: message.content,
        ..ChatMessage::default()
    }
}

fn piece(chunk: CompletionChunk) -> Result<Piece, ChatError> {
    let finish = match chunk.finish.map(|finish| finish.reason()) {
        None => None,
        Some(FinishReason::Stop) => Some(Finish::Stop),
        Some(FinishReason::Length) => Some(Finish::Length),
        Some(FinishReason::Abort | FinishReason::Unspecified) => {
            return Err(ChatError::Refused("the engine has aborted the answer".to_owned()));
        }
    };
    Ok(Piece {
        text: chunk.text,
        prompt_tokens: Some(chunk.prompt_tokens),
        output_tokens: Some(chunk.output_tokens),
        finish,
    })
}
