//! `POST /v1/chat/completions` and `POST /v1/completions`: one body of code, since they differ only in how the prompt
//! comes and how the text is wrapped.
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
//! | [`logprobs`] | log-probabilities as they are sent |
//! | [`bounded`] | lists and ignored values that a client cannot make too large |
//! | [`check`] | from what was read to what is ordered |
//! | [`order`] | the answers, from the model's groups |
//! | [`objects`] | the objects that are sent |
//! | [`whole`] | an answer as a whole |
//! | [`sse`] | an answer as server-sent events |
//! | [`handler`] | the handlers |

pub mod asked;
pub mod bounded;
pub mod check;
pub mod fields;
pub mod handler;
pub mod kept;
pub mod logprobs;
pub mod messages;
pub mod objects;
pub mod order;
pub mod prompt;
pub mod request;
pub mod route;
pub mod sampling;
pub mod sse;
pub mod structure;
pub mod tools;
pub mod whole;
