//! `vllm.Control`: what the server and its model are, and aborting requests. The rest of the contract (LoRA, weight
//! updates, sleep, pausing) answers UNIMPLEMENTED.

use tonic::{Request, Response, Status};
use vllm_proto::control_server::Control;
use vllm_proto::{
    AbortRequest, AbortResponse, GetModelInfoRequest, GetServerInfoRequest, ModelInfo, ParallelismInfo,
    ServerInfo,
};

use crate::inference::Services;

/// Version of the contract's behaviour that this server follows.
const API_VERSION: &str = "v1";

macro_rules! control {
    ($($not_served:ident($request:ident) -> $response:ident = $name:literal),* $(,)?) => {
        #[tonic::async_trait]
        impl Control for Services {
            async fn get_server_info(
                &self,
                _: Request<GetServerInfoRequest>,
            ) -> Result<Response<ServerInfo>, Status> {
                Ok(Response::new(server_info(self)))
            }

            async fn get_model_info(&self, _: Request<GetModelInfoRequest>) -> Result<Response<ModelInfo>, Status> {
                Ok(Response::new(ModelInfo {
                    model_id: self.model.name.clone(),
                    served_model_name: self.model.name.clone(),
                    supports_text_input: true,
                    supports_token_ids_input: true,
                    ..ModelInfo::default()
                }))
            }

            async fn abort(&self, request: Request<AbortRequest>) -> Result<Response<AbortResponse>, Status> {
                for id in request.into_inner().request_ids {
                    self.running.abort(&id);
                }
                Ok(Response::new(AbortResponse {}))
            }

            $(async fn $not_served(
                &self,
                _: Request<vllm_proto::$request>,
            ) -> Result<Response<vllm_proto::$response>, Status> {
                Err(not_served($name))
            })*
        }
    };
}

control! {
    shutdown(ShutdownRequest) -> ShutdownResponse = "Shutdown",
    load_lora(LoadLoraRequest) -> LoadLoraResponse = "LoadLora",
    unload_lora(UnloadLoraRequest) -> UnloadLoraResponse = "UnloadLora",
    list_loras(ListLorasRequest) -> ListLorasResponse = "ListLoras",
    get_kv_event_sources(GetKvEventSourcesRequest) -> GetKvEventSourcesResponse = "GetKvEventSources",
    pause_generation(PauseGenerationRequest) -> PauseGenerationResponse = "PauseGeneration",
    resume_generation(ResumeGenerationRequest) -> ResumeGenerationResponse = "ResumeGeneration",
    is_paused(IsPausedRequest) -> IsPausedResponse = "IsPaused",
    sleep(SleepRequest) -> SleepResponse = "Sleep",
    wake_up(WakeUpRequest) -> WakeUpResponse = "WakeUp",
    is_sleeping(IsSleepingRequest) -> IsSleepingResponse = "IsSleeping",
    init_weight_transfer_engine(InitWeightTransferEngineRequest) -> InitWeightTransferEngineResponse = "InitWeightTransferEngine",
    start_weight_update(StartWeightUpdateRequest) -> StartWeightUpdateResponse = "StartWeightUpdate",
    start_draft_weight_update(StartDraftWeightUpdateRequest) -> StartDraftWeightUpdateResponse = "StartDraftWeightUpdate",
    update_weights(UpdateWeightsRequest) -> UpdateWeightsResponse = "UpdateWeights",
    finish_weight_update(FinishWeightUpdateRequest) -> FinishWeightUpdateResponse = "FinishWeightUpdate",
    update_weight_version(UpdateWeightVersionRequest) -> UpdateWeightVersionResponse = "UpdateWeightVersion",
    get_weight_version(GetWeightVersionRequest) -> GetWeightVersionResponse = "GetWeightVersion",
}

fn not_served(method: &str) -> Status {
    Status::unimplemented(format!(
        "vllm.Control/{method} is not served by Llamero; weights, adapters and life cycle are steered by the \
         LlamaDeployment resource"
    ))
}

fn server_info(services: &Services) -> ServerInfo {
    let model = &services.model;
    ServerInfo {
        engine_version: concat!("llamero ", env!("CARGO_PKG_VERSION")).to_owned(),
        api_version: API_VERSION.to_owned(),
        instance_id: model.instance_id.clone(),
        parallelism: Some(ParallelismInfo {
            tensor_parallel_size: model.tensor,
            pipeline_parallel_size: model.pipeline,
            data_parallel_size: 1,
            data_parallel_rank: 0,
            decode_context_parallel_size: 1,
            world_size: u64::from(model.tensor) * u64::from(model.pipeline),
            data_parallel_size_local: 1,
        }),
        max_model_len: model.limits.max_context,
        kv_block_size: model.block_size,
        total_kv_blocks: services.engine.load().kv_blocks_total.into(),
        max_running_requests: model.max_sequences.into(),
        max_batched_tokens: model.max_batched_tokens.into(),
        max_loras: 0,
        rl_capabilities: None,
        proto_version: vllm_proto::VERSION.to_owned(),
        effective_attention_block_size: Some(model.block_size.into()),
    }
}
