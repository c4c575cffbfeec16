//! Which gateway keeps the books of a key.

use std::collections::BTreeMap;
use std::time::Duration;

use llamero_identity::connect::Link;
use llamero_proto::v1::quota_client::QuotaClient;
use sha2::{Digest as _, Sha256};
use tonic::transport::{Channel, Endpoint};

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// All gateways that are ready, by `ip:port` of their gRPC.
#[derive(Debug, Clone, Default)]
pub struct Peers {
    own: String,
    others: BTreeMap<String, QuotaClient<Channel>>,
}

/// Who keeps a key's books.
#[derive(Debug, Clone)]
pub enum Keeper {
    /// This gateway.
    Here,
    /// Another.
    There(QuotaClient<Channel>),
}

impl Peers {
    /// This gateway and others, reached by `link`. Connections of `before` stay; an address that cannot be dialled is left out with a
    /// warning.
    #[must_use]
    pub fn new(own: &str, addresses: &[String], before: &Self, link: &Link) -> Self {
        let others = addresses.iter().filter(|address| *address != own);
        let client = |address: &String| match before.others.get(address) {
            Some(client) => Some((address.clone(), client.clone())),
            None => match Endpoint::from_shared(format!("http://{address}")) {
                Ok(endpoint) => {
                    let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true);
                    Some((address.clone(), QuotaClient::new(link.channel(&endpoint))))
                }
                Err(error) => {
                    tracing::warn!(%address, %error, "a gateway has an address that cannot be dialled");
                    None
                }
            },
        };
        Self {
            own: own.to_owned(),
            others: others.filter_map(client).collect(),
        }
    }

    /// The address of this gateway.
    #[must_use]
    pub fn own(&self) -> &str {
        &self.own
    }

    /// How many gateways there are, this one included.
    #[must_use]
    pub fn count(&self) -> usize {
        self.others.len() + 1
    }

    /// Whether the same gateways are there.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        self.own == other.own && self.others.keys().eq(other.others.keys())
    }

    /// Who keeps the books of a key: the gateway whose hash with the key is the largest. When a gateway comes or goes,
    /// only keys that it takes or had change hands.
    #[must_use]
    pub fn keeper(&self, key: &str) -> Keeper {
        let here = (weight(key, &self.own), self.own.as_str());
        let others = self.others.iter();
        let best = others.max_by_key(|(address, _)| (weight(key, address), address.as_str()));
        match best {
            Some((address, client)) if (weight(key, address), address.as_str()) > here => {
                Keeper::There(client.clone())
            }
            _ => Keeper::Here,
        }
    }
}

fn weight(key: &str, address: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(key.as_bytes());
    hash.update([0]);
    hash.update(address.as_bytes());
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn gateways_agree_and_few_keys_change_hands() {
        let all: Vec<String> = (1..=3).map(|host| format!("10.0.0.{host}:18053")).collect();
        let views: Vec<Peers> = all
            .iter()
            .map(|own| Peers::new(own, &all, &Peers::default(), &Link::Plain))
            .collect();
        let keeps = |peers: &Peers, key: &str| matches!(peers.keeper(key), Keeper::Here);
        let keys: Vec<String> = (0..300).map(|index| format!("team-{index}")).collect();
        for view in &views {
            let count = keys.iter().filter(|key| keeps(view, key)).count();
            assert!((60..140).contains(&count), "{count}");
        }
        for key in &keys {
            assert_eq!(views.iter().filter(|view| keeps(view, key)).count(), 1, "{key}");
        }
        let fewer = Peers::new(&all[0], &all[..2], &views[0], &Link::Plain);
        assert!(
            keys.iter()
                .all(|key| !keeps(&views[0], key) || keeps(&fewer, key))
        );
        assert!(keeps(&Peers::default(), "a") && fewer.count() == 2 && !fewer.same(&views[0]));
    }
}
