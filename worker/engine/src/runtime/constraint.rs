//! What restricts the tokens of one answer.

/// What of a request restricts its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restriction {
    /// The form that the answer must have.
    Form,
    /// The list of tokens that it may have.
    TokenList,
}

/// Why a constraint goes no further, in sentences for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// No token meets this restriction any more, or it has grown too complex: another request may do.
    #[error("{1}")]
    Unmet(Restriction, String),
    /// What enforces it is broken, which no request can help.
    #[error("{0}")]
    Broken(String),
}

/// Says which tokens may come next, by those that came before. Called on the leader's thread while a step computes, so both calls must
/// be bounded in time. Whoever resumes an answer gives a constraint that has accepted the resumed tokens already.
///
/// Errors end the answer.
pub trait Constraint: Send {
    /// This token came.
    ///
    /// # Errors
    /// When it was not allowed, or the constraint has grown too complex.
    fn accept(&mut self, token: u32) -> Result<(), ConstraintError>;

    /// Allowed tokens of the next position, as a bitmap over the model's whole vocabulary, little end first; none: all of them. Asking
    /// twice gives the same answer, since steps are repeated when a rank is lost.
    ///
    /// # Errors
    /// When no token is allowed, or the constraint has grown too complex.
    fn mask(&mut self) -> Result<Option<Vec<u8>>, ConstraintError>;

    /// One that has accepted the same tokens, to see what tokens would lead to that may not come; whatever becomes of it, this one stays
    /// as it is. None: there is no such look, and nothing is drafted behind the next token.
    fn fork(&self) -> Option<Box<dyn Constraint>> {
        None
    }
}
