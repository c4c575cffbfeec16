//! Where to enrol, as command-line flags of worker and gateway.

use std::path::PathBuf;

use clap::Args;

use super::client::{Enrolment, Roots};

/// Where to enrol. Without `--enrolment` all links are plain text.
#[derive(Debug, Clone, Default, Args)]
pub struct EnrolmentArgs {
    /// HOST:PORT of the operator's enrolment; links are then mutually authenticated. In plain text when absent
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "LLAMERO_ENROLMENT",
        requires = "installation"
    )]
    pub enrolment: Option<String>,
    /// Namespace of the operator and the gateways
    #[arg(
        long,
        value_name = "NAMESPACE",
        env = "LLAMERO_INSTALLATION",
        requires = "enrolment"
    )]
    pub installation: Option<String>,
    /// Certificates of the authority whose identities are believed, in PEM
    #[arg(
        long,
        value_name = "PEM",
        env = "LLAMERO_ROOTS",
        conflicts_with = "roots_file"
    )]
    pub roots: Option<String>,
    /// The same as a file, which is read again at every renewal
    #[arg(long, value_name = "FILE", env = "LLAMERO_ROOTS_FILE", requires = "enrolment")]
    pub roots_file: Option<PathBuf>,
    /// File with the token of this pod's service account for the audience `llamero`
    #[arg(
        long,
        value_name = "FILE",
        env = "LLAMERO_TOKEN_FILE",
        default_value = "/var/run/secrets/llamero/token"
    )]
    pub token_file: PathBuf,
    /// Trust domain of all identities
    #[arg(
        long,
        value_name = "NAME",
        env = "LLAMERO_TRUST_DOMAIN",
        default_value = "cluster.local"
    )]
    pub trust_domain: String,
}

/// Flags that do not go together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("--enrolment needs certificates to believe: give --roots-file, or LLAMERO_ROOTS in the environment")]
pub struct NoRoots;

impl EnrolmentArgs {
    /// Where to enrol, if links are to be authenticated.
    ///
    /// # Errors
    /// [`NoRoots`].
    pub fn enrolment(&self) -> Result<Option<Enrolment>, NoRoots> {
        let Some((address, installation)) = self.enrolment.clone().zip(self.installation.clone()) else {
            return Ok(None);
        };
        let roots = match (&self.roots, &self.roots_file) {
            (Some(pem), _) => Roots::Pem(pem.clone()),
            (None, Some(file)) => Roots::File(file.clone()),
            (None, None) => return Err(NoRoots),
        };
        Ok(Some(Enrolment {
            address,
            installation,
            roots,
            token_file: self.token_file.clone(),
            trust_domain: self.trust_domain.clone(),
        }))
    }
}
