//! Answers with a form: JSON by a schema, a regular expression, one of several texts, a grammar. The crate `llguidance` tells which
//! tokens may come next; ranks mask the others.
//!
//! | module | what it is |
//! |---|---|
//! | [`allowed`] | a list of tokens that an answer may have |
//! | [`form`] | what an answer must look like |
//! | [`formats`] | formats of strings that the compiler knows only roughly |
//! | [`grammars`] | forms compiled for a tokenizer |

pub mod allowed;
pub mod form;
mod formats;
pub mod grammars;
#[cfg(test)]
mod suite;
#[cfg(test)]
mod testing;

pub use allowed::AllowedTokens;
pub use form::{CallOr, Form, FormError};
pub use grammars::{Grammars, TokenConstraint};
