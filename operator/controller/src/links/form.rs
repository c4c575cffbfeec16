//! Calls to worker pods that change something.

use std::time::Duration;

use llamero_proto::v1::{self, rank_control_client::RankControlClient};
use tonic::{Code, Status, transport::Channel};

/// Tests that look at a call that hangs have their time for it on any machine.
const TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 60 } else { 3 });

/// Why a worker pod did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No answer, or not now: another pass tries again.
    #[error("{call} got no answer: {message}")]
    Unreachable {
        /// Name of the call.
        call: &'static str,
        /// What the transport says.
        message: String,
    },
    /// The pod answered no: its state is another than we thought; the next report tells.
    #[error("{call} was refused: {message}")]
    Refused {
        /// Name of the call.
        call: &'static str,
        /// What the pod says.
        message: String,
    },
}

impl CallError {
    fn new(call: &'static str, status: &Status) -> Self {
        let message = status.message().to_owned();
        match status.code() {
            Code::FailedPrecondition | Code::InvalidArgument | Code::Unimplemented => {
                Self::Refused { call, message }
            }
            _ => Self::Unreachable { call, message },
        }
    }
}

/// Tells a pod who the members of its group are; the generation that the pod holds afterwards.
///
/// # Errors
/// When the pod cannot be reached or refuses.
pub async fn form(channel: Channel, request: v1::FormRequest) -> Result<u64, CallError> {
    let mut client = RankControlClient::new(channel);
    limit("Form", client.form(request))
        .await
        .map(|response| response.generation)
}

/// Asks a group's leader to finish what runs and to go.
///
/// # Errors
/// When the pod cannot be reached or refuses.
pub async fn drain(channel: Channel) -> Result<(), CallError> {
    let mut client = RankControlClient::new(channel);
    limit("Drain", client.drain(v1::DrainRequest {})).await.map(drop)
}

async fn limit<T>(
    call: &'static str,
    answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, CallError> {
    match tokio::time::timeout(TIMEOUT, answer).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(CallError::new(call, &status)),
        Err(_) => Err(CallError::new(
            call,
            &Status::deadline_exceeded("no answer in time"),
        )),
    }
}
