//! What the servers of `vllm.Control` have in common: the methods that none of them serves.

use tonic::Status;

/// The answer to a method that is not served.
#[must_use]
pub fn not_served(method: &str) -> Status {
    Status::unimplemented(format!(
        "vllm.Control/{method} is not served by Llamero; weights and life cycle are steered by the \
         LlamaDeployment resource"
    ))
}

/// Implements `vllm.Control` for a type: the methods that are given, and [`not_served`] for all others of the contract.
/// The caller's crate depends on `tonic` and `vllm-proto`.
#[macro_export]
macro_rules! vllm_control {
    ($server:ident { $($served:tt)* }) => {
        $crate::vllm_control! {
            @all $server { $($served)* }
            shutdown(ShutdownRequest) -> ShutdownResponse = "Shutdown",
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
    };
    (@all $server:ident { $($served:tt)* } $($method:ident($request:ident) -> $response:ident = $name:literal),* $(,)?) => {
        #[tonic::async_trait]
        impl vllm_proto::control_server::Control for $server {
            $($served)*
            $(async fn $method(
                &self,
                _: tonic::Request<vllm_proto::$request>,
            ) -> Result<tonic::Response<vllm_proto::$response>, tonic::Status> {
                Err($crate::vllm::not_served($name))
            })*
        }
    };
}
