//! `vllm.Control`: what the server and its model are, and aborting requests. The rest of the contract (LoRA, weight
//! updates, sleep, pausing) answers UNIMPLEMENTED.

use tonic::{Request, Response, Status};
use vllm_proto::{
    AbortRequest, AbortResponse, GetModelInfoRequest, GetServerInfoRequest, ModelInfo, ParallelismInfo,
    ServerInfo,
};

use crate::inference::Services;

/// Version of the contract's behaviour that this server follows.
const API_VERSION: &str = "v1";

llamero_proto::vllm_control! { Services {
    async fn get_server_info(&self, _: Request<GetServerInfoRequest>) -> Result<Response<ServerInfo>, Status> {
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
}}

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
