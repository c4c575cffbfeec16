//! `POST /v1/responses`: OpenAI's Responses API, without anything that would have to be stored.
//!
//! | module | what it is |
//! |---|---|
//! | [`fields`] | every field of a request |
//! | [`request`] | a request as it is read |
//! | [`input`] | items of a conversation |
//! | [`check`] | from what was read to what is ordered |
//! | [`objects`] | the objects that are sent |
//! | [`output`] | an answer as items, whole and as events |

pub mod check;
pub mod fields;
pub mod input;
pub mod objects;
pub mod output;
pub mod request;

use crate::error::ApiError;
use crate::routes::completion::api::Api;
use crate::routes::completion::check::Checked;
use crate::routes::completion::order::Envelope;
use crate::routes::completion::route::Route;

/// The API.
#[derive(Debug, Clone, Copy)]
pub struct Responses;

impl Api for Responses {
    type Request = request::Request;
    type Form = objects::Settings;
    type Output = output::Output;

    fn route(&self) -> Route {
        Route::Responses
    }

    fn check(&self, request: request::Request) -> Result<(Checked, objects::Settings), ApiError> {
        check::check(request)
    }

    fn output(&self, settings: objects::Settings, envelope: Envelope) -> output::Output {
        output::Output::new(settings, envelope)
    }
}
