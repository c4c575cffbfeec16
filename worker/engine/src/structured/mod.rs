//! Answers with a form: JSON by a schema, a regular expression, one of several texts, a grammar. The crate `llguidance` tells which
//! tokens may come next; ranks mask the others.
//!
//! | module | what it is |
//! |---|---|
//! | [`allowed`] | a list of tokens that an answer may have |
//! | [`calls`] | calls of tools as grammars |
//! | [`form`] | what an answer must look like |
//! | [`formats`] | formats of strings that the compiler knows only roughly |
//! | [`free_text`] | where an answer is free text that no form restricts |
//! | [`grammars`] | forms compiled for a tokenizer |

pub mod allowed;
mod calls;
pub mod form;
mod formats;
mod free_text;
pub mod grammars;
#[cfg(test)]
mod suite;
#[cfg(test)]
mod testing;

pub use allowed::AllowedTokens;
pub use calls::{CallOr, Callable};
pub use form::{Calls, Form, FormError};
pub use grammars::{Grammars, TokenConstraint};
