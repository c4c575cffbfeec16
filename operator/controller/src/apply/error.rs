//! Why an effect did not happen, and whose turn it is.

use crate::{build::bind::BindError, links::form::CallError};

/// Why an effect did not happen.
#[derive(Debug, thiserror::Error)]
pub enum EffectError {
    /// The lease is not surely ours any more.
    #[error("this process does not hold the leader lease any more")]
    NotLeading,
    /// The state is another than the decision was made from; the next pass decides from the new one.
    #[error("{0}")]
    Dropped(String),
    /// An object of this name belongs to somebody else.
    #[error("{kind} {name} exists and belongs to something else; rename or remove it")]
    Foreign {
        /// Kind of the object.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The API server did not answer in time; what was asked may have happened.
    #[error("the API server did not answer in time")]
    TimedOut,
    /// The API server said no, or could not be reached.
    #[error("{}", describe(.0))]
    Api(#[source] kube::Error),
    /// The pod's links are to be authenticated, and there is no certificate for it until somebody does something.
    #[error("links of the pod {0} are to be authenticated, and {1}")]
    NoAuthority(String, String),
    /// A worker pod did not do as asked.
    #[error(transparent)]
    Call(#[from] CallError),
    /// A patch could not be built.
    #[error(transparent)]
    Bind(#[from] BindError),
}

/// Who must act before a failed effect can succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Nobody: trying again is enough.
    Retry,
    /// The state must be looked at again.
    Decide,
    /// The user or an administrator must change something.
    User,
}

impl EffectError {
    /// Who must act.
    #[must_use]
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::NotLeading | Self::TimedOut | Self::Call(CallError::Unreachable { .. }) => Remedy::Retry,
            Self::Dropped(_) | Self::Call(CallError::Refused { .. }) | Self::Bind(_) => Remedy::Decide,
            Self::Foreign { .. } | Self::NoAuthority(..) => Remedy::User,
            Self::Api(kube::Error::Api(status)) => match status.code {
                // Not found: the object, or the namespace with it, has gone meanwhile.
                404 | 409 => Remedy::Decide,
                // Pod Security, quota, admission, missing permission; or a field that the API server refuses.
                400 | 403 | 422 => Remedy::User,
                _ => Remedy::Retry,
            },
            Self::Api(_) => Remedy::Retry,
        }
    }

    /// For metrics.
    #[must_use]
    pub fn class(&self) -> &'static str {
        match self.remedy() {
            Remedy::Retry => "retry",
            Remedy::Decide => "dropped",
            Remedy::User => "refused",
        }
    }
}

impl From<kube::Error> for EffectError {
    fn from(error: kube::Error) -> Self {
        Self::Api(error)
    }
}

/// The server's own sentence where there is one; for refusals the next thing to do.
fn describe(error: &kube::Error) -> String {
    let kube::Error::Api(status) = error else {
        return format!("the API server cannot be reached: {error}");
    };
    let said = &status.message;
    if said.contains("violates PodSecurity") {
        format!("{said}. Use another model.source, or a namespace whose Pod Security level allows this one")
    } else if said.contains("exceeded quota") {
        format!("{said}. Raise the quota or scale down")
    } else {
        said.clone()
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn api(code: u16, message: &str) -> EffectError {
        EffectError::Api(kube::Error::Api(
            Status::failure(message, "").with_code(code).boxed(),
        ))
    }

    #[test]
    fn refusals_are_for_the_user_and_say_what_to_do() {
        let error = api(
            403,
            "pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\": hostPath",
        );
        assert_eq!(error.remedy(), Remedy::User);
        assert!(error.to_string().contains("another model.source"));
        assert!(
            api(403, "exceeded quota: q")
                .to_string()
                .contains("Raise the quota")
        );
    }

    #[test]
    fn conflicts_are_decided_again_and_outages_retried() {
        assert_eq!(api(409, "").remedy(), Remedy::Decide);
        assert_eq!(api(404, "").remedy(), Remedy::Decide);
        assert_eq!(api(500, "").remedy(), Remedy::Retry);
        assert_eq!(api(429, "").remedy(), Remedy::Retry);
        assert_eq!(EffectError::TimedOut.remedy(), Remedy::Retry);
    }
}
