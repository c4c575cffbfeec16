//! What the API server's refusals mean for the user.

use anyhow::{Error, anyhow};
use kube::Error as KubeError;

/// An error in words, with what to do.
#[must_use]
pub fn refused(error: KubeError, verb: &str, what: &str) -> Error {
    match &error {
        KubeError::Api(status) if status.code == 403 => anyhow!(
            "you may not {verb} {what}: {}; ask for a role that allows it (kubectl auth can-i {verb} {what})",
            status.message
        ),
        KubeError::Api(status) if status.code == 401 => {
            anyhow!(
                "the API server does not know you: log in again ({})",
                status.message
            )
        }
        KubeError::Api(status) if status.code == 404 && verb == "list" => anyhow!(
            "the cluster knows no {what}: is Llamero installed there? (kubectl get crd llamadeployments.llamero.dev)"
        ),
        KubeError::Api(status) if status.code == 404 => anyhow!("there is no {what}: {}", status.message),
        KubeError::Api(status) => anyhow!("cannot {verb} {what}: {}", status.message),
        _ => Error::new(error).context(format!("cannot {verb} {what}: the API server does not answer")),
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn said(code: u16, verb: &str) -> String {
        let status = Status::failure("in its words", "Reason").with_code(code);
        refused(KubeError::Api(status.boxed()), verb, "llamadeployments").to_string()
    }

    #[test]
    fn refusals_name_the_way_out() {
        assert!(said(403, "list").contains("kubectl auth can-i list llamadeployments"));
        assert!(said(404, "list").contains("is Llamero installed"));
        assert!(said(404, "get").contains("there is no llamadeployments: in its words"));
        assert!(said(409, "patch").contains("cannot patch llamadeployments: in its words"));
    }
}
