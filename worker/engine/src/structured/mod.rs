//! Answers with a form: JSON by a schema, a regular expression, one of several texts, a grammar. The crate `llguidance` tells which
//! tokens may come next; ranks mask the others.
//!
//! | module | what it is |
//! |---|---|
//! | [`form`] | what an answer must look like |
//! | [`grammars`] | forms compiled for a tokenizer |

pub mod form;
pub mod grammars;

pub use form::{CallOr, Form, FormError};
pub use grammars::{Grammars, TokenConstraint};
