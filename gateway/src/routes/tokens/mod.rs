//! vLLM's `POST /tokenize` and `POST /detokenize`: what a model's tokenizer makes of a prompt, and of tokens.
//!
//! | module | what it is |
//! |---|---|
//! | [`types`] | requests and answers |
//! | [`handler`] | the handlers |

pub mod handler;
pub mod types;
