//! What is used on every node, kept as pods come and go.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use llamero_core::resources::Resources;

use super::{SeenPod, seen_pod::Taken};
use crate::watch::Change;

/// What is used on a node, by priority of who uses it.
pub type Used = BTreeMap<i32, Resources>;

/// What is used on every node.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    nodes: HashMap<Arc<str>, Used>,
    touched: HashSet<Arc<str>>,
}

impl Usage {
    /// Takes in what became of a pod.
    pub fn change(&mut self, change: &Change<SeenPod>) {
        let (before, after) = (
            change.before.as_ref().and_then(SeenPod::taken),
            change.after.as_ref().and_then(SeenPod::taken),
        );
        if before == after {
            return;
        }
        if let Some(taken) = before {
            self.subtract(taken);
        }
        if let Some(taken) = after {
            let used = self.nodes.entry(Arc::clone(&taken.node)).or_default();
            used.entry(taken.priority).or_default().add(&taken.request);
            self.touched.insert(Arc::clone(&taken.node));
        }
    }

    fn subtract(&mut self, taken: &Taken) {
        let Some(used) = self.nodes.get_mut(&taken.node) else {
            return;
        };
        if let Some(amounts) = used.get_mut(&taken.priority) {
            amounts.subtract(&taken.request);
            *amounts = std::mem::take(amounts).without_zeros();
            if *amounts == Resources::new() {
                used.remove(&taken.priority);
            }
        }
        if used.is_empty() {
            self.nodes.remove(&taken.node);
        }
        self.touched.insert(Arc::clone(&taken.node));
    }

    /// What is used on a node.
    #[must_use]
    pub fn of(&self, node: &str) -> Used {
        self.nodes.get(node).cloned().unwrap_or_default()
    }

    /// Nodes on which that changed since this was asked last.
    pub fn take_touched(&mut self) -> HashSet<Arc<str>> {
        std::mem::take(&mut self.touched)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pod() -> impl Strategy<Value = Option<SeenPod>> {
        let taken = (0u8..3, -1i32..2, 0i64..3, 0i64..3).prop_map(|(node, priority, cpu, gpus)| Taken {
            node: format!("n{node}").into(),
            priority,
            request: Arc::new(
                Resources::new()
                    .with("cpu", cpu)
                    .with("gpu", gpus)
                    .with("pods", 1),
            ),
        });
        prop::option::weighted(
            0.8,
            prop::option::weighted(0.8, taken).prop_map(|taken| SeenPod::Other { taken }),
        )
    }

    /// From all pods, one after another.
    fn recount(pods: &HashMap<usize, SeenPod>) -> HashMap<Arc<str>, Used> {
        let mut nodes: HashMap<Arc<str>, Used> = HashMap::new();
        for taken in pods.values().filter_map(SeenPod::taken) {
            let used = nodes.entry(Arc::clone(&taken.node)).or_default();
            used.entry(taken.priority).or_default().add(&taken.request);
        }
        for amounts in nodes.values_mut().flat_map(BTreeMap::values_mut) {
            *amounts = std::mem::take(amounts).without_zeros();
        }
        nodes
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// What is kept is what a recount finds, whatever came and went and in which order.
        #[test]
        fn kept_usage_equals_a_recount(events in prop::collection::vec((0usize..6, pod()), 0..80)) {
            let (mut usage, mut pods) = (Usage::default(), HashMap::new());
            for (name, after) in events {
                let before = match &after {
                    Some(pod) => pods.insert(name, pod.clone()),
                    None => pods.remove(&name),
                };
                let told = usage.nodes.clone();
                usage.change(&Change { before, after });
                for node in usage.take_touched() {
                    prop_assert!(told.contains_key(&node) || usage.nodes.contains_key(&node));
                }
                let mut kept = usage.nodes.clone();
                for amounts in kept.values_mut().flat_map(BTreeMap::values_mut) {
                    *amounts = std::mem::take(amounts).without_zeros();
                }
                prop_assert_eq!(kept, recount(&pods));
            }
        }
    }
}
