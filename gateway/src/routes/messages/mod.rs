//! `POST /v1/messages` and `POST /v1/messages/count_tokens`: Anthropic's Messages API.
//!
//! | module | what it is |
//! |---|---|
//! | [`fields`] | every field of a request |
//! | [`request`] | a request as it is read |
//! | [`blocks`] | turns made of blocks |
//! | [`check`] | from what was read to what is ordered |
//! | [`output`] | an answer as blocks, whole and as events |
//! | [`failure`] | errors in Anthropic's form |
//! | [`count`] | counting the tokens of a prompt |

pub mod blocks;
pub mod check;
pub mod count;
pub mod failure;
pub mod fields;
pub mod output;
pub mod request;

use crate::error::ApiError;
use crate::routes::completion::api::Api;
use crate::routes::completion::check::Checked;
use crate::routes::completion::order::Envelope;
use crate::routes::completion::route::Route;

/// The API.
#[derive(Debug, Clone, Copy)]
pub struct Messages;

impl Api for Messages {
    type Request = request::Request;
    type Form = ();
    type Output = output::Output;

    fn route(&self) -> Route {
        Route::Messages
    }

    fn check(&self, request: request::Request) -> Result<(Checked, ()), ApiError> {
        Ok((check::check(request)?, ()))
    }

    fn output(&self, (): (), envelope: Envelope) -> output::Output {
        output::Output::new(envelope)
    }
}
