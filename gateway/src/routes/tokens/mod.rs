//! vLLM's `POST /tokenize` and `POST /detokenize`: what a model's tokenizer makes of a prompt, and of tokens.
//!
//! | module | what it is |
//! |---|---|
//! | [`fields`] | every field of a question for tokens |
//! | [`types`] | requests and answers |
//! | [`handler`] | the handlers |

pub mod fields;
pub mod handler;
pub mod types;
