//! `vllm.Control`. Its requests name no model, so the metadata `model` do; without it there must be one model only. Questions go to any leader of the
//! model, an abort to all of them, since no gateway knows what runs through the others.

use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use vllm_proto::control_client::ControlClient;
use vllm_proto::{
    AbortRequest, AbortResponse, GetModelInfoRequest, GetServerInfoRequest, ListLorasRequest,
    ListLorasResponse, LoadLoraRequest, LoadLoraResponse, ModelInfo, ServerInfo, UnloadLoraRequest,
    UnloadLoraResponse,
};

use super::{Service, own_id, status, unanswered};
use crate::keys::Caller;
use crate::routes::completion::order::deployment;
use crate::routes::leader::{Question, ask};
use crate::routes::models::convert;

/// The metadata that name the model.
const MODEL: &str = "model";
/// How long a leader may take to abort requests.
const ABORT_TIMEOUT: Duration = Duration::from_secs(5);

/// What a leader will answer.
type Answer<A> = BoxFuture<'static, Result<Response<A>, Status>>;

llamero_proto::vllm_control! { Service {
    async fn get_server_info(&self, request: Request<GetServerInfoRequest>) -> Result<Response<ServerInfo>, Status> {
        self.question(request, |mut client, request| {
            Box::pin(async move { client.get_server_info(request).await })
        })
        .await
    }

    async fn get_model_info(&self, request: Request<GetModelInfoRequest>) -> Result<Response<ModelInfo>, Status> {
        self.question(request, |mut client, request| {
            Box::pin(async move { client.get_model_info(request).await })
        })
        .await
    }

    async fn abort(&self, request: Request<AbortRequest>) -> Result<Response<AbortResponse>, Status> {
        let (metadata, extensions, request) = request.into_parts();
        let caller = extensions.get::<Caller>().cloned().unwrap_or_default();
        let model = self.model(&metadata, &caller)?;
        let deployment = deployment(&self.gateway, caller.scope(), &model).map_err(status)?;
        let ids = request.request_ids.iter().map(|id| own_id(&caller, id));
        let request = AbortRequest {
            request_ids: ids.collect(),
        };
        let aborts = deployment.leaders.iter().map(|leader| {
            let (mut client, request) = (ControlClient::new(leader.channel()), request.clone());
            async move {
                let answer = tokio::time::timeout(ABORT_TIMEOUT, client.abort(request)).await;
                answer.unwrap_or_else(|_| Err(Status::unavailable("a group of the model does not answer; send the abort again")))
            }
        });
        // All are told before the first failure is.
        for answer in join_all(aborts).await {
            answer?;
        }
        Ok(Response::new(AbortResponse {}))
    }

    async fn list_loras(&self, request: Request<ListLorasRequest>) -> Result<Response<ListLorasResponse>, Status> {
        let caller = request.extensions().get::<Caller>().cloned().unwrap_or_default();
        let mut answer = self
            .question(request, |mut client, request| {
                Box::pin(async move { client.list_loras(request).await })
            })
            .await?;
        let loras = &mut answer.get_mut().adapters;
        loras.retain(|lora| caller.scope().has_model(&lora.lora_name));
        // Where they lie is nothing to clients.
        loras.iter_mut().for_each(|lora| lora.source_path.clear());
        Ok(answer)
    }

    async fn load_lora(&self, _: Request<LoadLoraRequest>) -> Result<Response<LoadLoraResponse>, Status> {
        Err(not_served("LoadLora"))
    }

    async fn unload_lora(&self, _: Request<UnloadLoraRequest>) -> Result<Response<UnloadLoraResponse>, Status> {
        Err(not_served("UnloadLora"))
    }
}}

fn not_served(method: &str) -> Status {
    Status::unimplemented(format!(
        "vllm.Control/{method} is not served by the gateway, which does not know the groups that are yet to come; call the leaders of the \
         deployment's groups"
    ))
}

impl Service {
    async fn question<Q: Clone + prost::Message + 'static, A: 'static>(
        &self,
        request: Request<Q>,
        call: fn(ControlClient<Channel>, Q) -> Answer<A>,
    ) -> Result<Response<A>, Status> {
        let (metadata, extensions, request) = request.into_parts();
        let front = self.front(&extensions, None);
        let model = self.model(&metadata, &front.caller)?;
        let question = Question {
            route: "vllm_control",
            model: &model,
            bytes: request.encoded_len(),
            tokens: 0,
            adapters: true,
            adapter: "",
            affinity: None,
        };
        let asked = ask(front, question, |leader| {
            call(ControlClient::new(leader.channel()), request.clone())
        });
        let mut asked = asked.await.map_err(unanswered)?;
        asked.record.finished();
        Ok(asked.answer)
    }

    /// The model that is meant.
    fn model(&self, metadata: &MetadataMap, caller: &Caller) -> Result<String, Status> {
        if let Some(model) = metadata.get(MODEL) {
            let model = model.to_str();
            return Ok(model
                .map_err(|_| Status::invalid_argument("the metadata 'model' are not readable as a name"))?
                .to_owned());
        }
        let snapshot = self.gateway.directory.snapshot();
        let mut models = convert::list(&snapshot, caller.scope()).data;
        models.retain(|model| model.parent.is_none());
        match models.as_slice() {
            [only] => Ok(only.id.clone()),
            _ if !snapshot.complete => Err(Status::unavailable(
                "the gateway has not yet read which models there are",
            )),
            _ => Err(Status::invalid_argument(format!(
                "there are {} models here; name one of them in the metadata 'model'",
                models.len()
            ))),
        }
    }
}
