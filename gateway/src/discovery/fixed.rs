//! Leaders named on the command line, for tests and for running without Kubernetes.

use std::net::SocketAddr;
use std::str::FromStr;

use super::{DeploymentKey, Found};

/// Namespace of deployments from the command line.
pub const NAMESPACE: &str = "static";

/// `model=ip:port[,ip:port…]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FixedModel {
    /// The name clients ask for.
    pub model: String,
    /// Its leaders.
    pub leaders: Vec<SocketAddr>,
}

/// Why the text is not usable.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not MODEL=IP:PORT[,IP:PORT…], for example smollm2=127.0.0.1:18051")]
pub struct FixedModelError(String);

impl FromStr for FixedModel {
    type Err = FixedModelError;

    fn from_str(text: &str) -> Result<Self, FixedModelError> {
        let error = || FixedModelError(text.to_owned());
        let (model, leaders) = text.split_once('=').ok_or_else(error)?;
        let leaders = leaders
            .split(',')
            .filter(|address| !address.is_empty())
            .map(str::parse);
        let leaders: Vec<SocketAddr> = leaders.collect::<Result<_, _>>().map_err(|_| error())?;
        if model.is_empty() {
            return Err(error());
        }
        Ok(Self {
            model: model.to_owned(),
            leaders,
        })
    }
}

impl FixedModel {
    /// As discovery finds it.
    #[must_use]
    pub fn found(&self) -> Found {
        Found {
            key: DeploymentKey {
                namespace: NAMESPACE.to_owned(),
                name: self.model.clone(),
            },
            model: self.model.clone(),
            former: std::collections::BTreeSet::new(),
            created: 0,
            max_context: None,
            problem: None,
            canary: None,
            adapters: Vec::new(),
            authenticated: std::collections::BTreeMap::new(),
            leaders: self
                .leaders
                .iter()
                .map(|address| (address.to_string(), self.model.clone()))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_it_says() {
        let model: FixedModel = "org/m=127.0.0.1:1,[::1]:2".parse().unwrap();
        assert_eq!((model.model.as_str(), model.leaders.len()), ("org/m", 2));
        for wrong in ["m", "=127.0.0.1:1", "m=localhost", "m=1.2.3.4"] {
            let error = wrong.parse::<FixedModel>().unwrap_err().to_string();
            assert!(error.contains("for example"), "{error}");
        }
    }
}
