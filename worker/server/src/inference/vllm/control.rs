//! `vllm.Control`: what the server and its model are, aborting requests, loading and unloading LoRA adapters. The rest of the
//! contract (weight updates, sleep, pausing) answers UNIMPLEMENTED.

use llamero_engine::runtime::AdapterInfo;
use tonic::{Request, Response, Status};
use vllm_proto::{
    AbortRequest, AbortResponse, GetModelInfoRequest, GetServerInfoRequest, ListLorasRequest,
    ListLorasResponse, LoadLoraRequest, LoadLoraResponse, LoraAdapter, ModelInfo, ParallelismInfo,
    ServerInfo, UnloadLoraRequest, UnloadLoraResponse,
};

use crate::inference::{Services, adapters};

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
            supports_lora: self.model.max_adapters > 0,
            ..ModelInfo::default()
        }))
    }

    async fn abort(&self, request: Request<AbortRequest>) -> Result<Response<AbortResponse>, Status> {
        for id in request.into_inner().request_ids {
            self.running.abort(&id);
        }
        Ok(Response::new(AbortResponse {}))
    }

    async fn load_lora(&self, request: Request<LoadLoraRequest>) -> Result<Response<LoadLoraResponse>, Status> {
        let LoadLoraRequest { lora_name, source_path } = request.into_inner();
        let loaded = adapters::outcome(|reply| self.engine.load_adapter(lora_name, source_path, reply)).await?;
        Ok(Response::new(LoadLoraResponse { adapter: Some(lora(loaded)) }))
    }

    async fn unload_lora(&self, request: Request<UnloadLoraRequest>) -> Result<Response<UnloadLoraResponse>, Status> {
        let name = request.into_inner().lora_name;
        let unloaded = adapters::outcome(|reply| self.engine.unload_adapter(name, reply)).await?;
        Ok(Response::new(UnloadLoraResponse { adapter: Some(lora(unloaded)) }))
    }

    async fn list_loras(&self, _: Request<ListLorasRequest>) -> Result<Response<ListLorasResponse>, Status> {
        let adapters = self.engine.adapters().into_iter().map(lora).collect();
        Ok(Response::new(ListLorasResponse { adapters }))
    }
}}

fn lora(info: AdapterInfo) -> LoraAdapter {
    LoraAdapter {
        lora_id: info.number.into(),
        lora_name: info.name,
        source_path: info.path,
    }
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
        max_model_len: model.context_now(),
        kv_block_size: model.block_size,
        total_kv_blocks: services.engine.load().kv_blocks_total.into(),
        max_running_requests: model.max_sequences.into(),
        max_batched_tokens: model.max_batched_tokens.into(),
        max_loras: model.max_adapters,
        rl_capabilities: None,
        proto_version: vllm_proto::VERSION.to_owned(),
        effective_attention_block_size: Some(model.block_size.into()),
    }
}
