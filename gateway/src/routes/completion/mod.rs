//! Answers: what all APIs share, and `POST /v1/chat/completions` and `POST /v1/completions` themselves, which differ only
//! in how the prompt comes and how the text is wrapped.
//!
//! | module | what it is |
//! |---|---|
//! | [`route`] | what differs |
//! | [`fields`] | every field of a request: used, accepted, or refused by name |
//! | [`request`] | a request as it is read |
//! | [`asked`] | what the value of a refused field asks for |
//! | [`messages`] | a conversation |
//! | [`prompt`] | prompts of text completion |
//! | [`sampling`] | how to sample and when to stop |
//! | [`kept`] | a value that is passed on as it came |
//! | [`structure`] | what the answer must look like |
//! | [`tools`] | `tools` and `tool_choice` |
//! | [`template`] | what a chat template is told beside the messages |
//! | [`logprobs`] | log-probabilities as they are sent |
//! | [`bounded`] | lists and ignored values that a client cannot make too large |
//! | [`check`] | from what was read to what is ordered |
//! | [`order`] | the answers, from the model's groups |
//! | [`objects`] | the objects that are sent |
//! | [`answer`] | one answer, as far as it has come |
//! | [`output`] | the answers of these two routes, in chunks and whole |
//! | [`sse`] | answers as server-sent events |
//! | [`patience`] | how long a client waits for a group |
//! | [`api`] | what differs between the APIs, and what happens to a request of any |

pub mod answer;
pub mod api;
pub mod asked;
pub mod bounded;
pub mod check;
pub mod fields;
pub mod kept;
pub mod logprobs;
pub mod messages;
pub mod objects;
pub mod order;
pub mod output;
pub mod patience;
pub mod prompt;
pub mod request;
pub mod route;
pub mod sampling;
pub mod sse;
pub mod structure;
pub mod template;
pub mod tools;

use api::Api;
use check::{Checked, Form};
use order::Envelope;
use output::Output;
use request::Request;
use route::Route;

use crate::error::ApiError;

/// Chat or text completion.
#[derive(Debug, Clone, Copy)]
pub struct Completion(pub Route);

impl Api for Completion {
    type Request = Request;
    type Form = Form;
    type Output = Output;

    fn route(&self) -> Route {
        self.0
    }

    fn check(&self, request: Request) -> Result<(Checked, Form), ApiError> {
        let checked = check::check(self.0, request)?;
        let form = checked.form;
        Ok((checked, form))
    }

    fn output(&self, form: Form, envelope: Envelope) -> Output {
        Output::new(self.0, form, envelope)
    }
}
