//! Memory of the devices of nodes, from the labels of NVIDIA's GPU feature discovery:
//! <https://github.com/NVIDIA/k8s-device-plugin/blob/main/docs/gpu-feature-discovery/README.md#generated-labels>.
//!
//! Labels bear the name of the resource: a slice of a GPU (MIG, strategy mixed) has some of its own, and those of a whole GPU say nothing about it.

use std::{
    collections::BTreeSet,
    ops::Bound::{Included, Unbounded},
};

use llamero_api::deployment::Worker;

use crate::{observed::Node, placement::eligible};

/// How the device plugin ends the names of shared resources, where it is told to rename them; their labels keep the name of what is shared.
const SHARED_RESOURCE: &str = ".shared";
/// How the label of the product ends where a resource is shared and keeps its name.
const SHARED_PRODUCT: &str = "-SHARED";

/// A label of a resource: `nvidia.com/gpu.memory` is `memory` of `nvidia.com/gpu`.
fn label<'a>(node: &'a Node, resource: &str, name: &str) -> Option<&'a str> {
    let range = node.labels.range::<str, _>((Included(resource), Unbounded));
    let mut own = range.take_while(|(key, _)| key.starts_with(resource));
    let is_meant = |key: &str| {
        let rest = key.strip_prefix(resource);
        rest.and_then(|rest| rest.strip_prefix('.')) == Some(name)
    };
    own.find(|(key, _)| is_meant(key))
        .map(|(_, value)| value.as_str())
}

fn labelled(resource: &str) -> &str {
    resource.strip_suffix(SHARED_RESOURCE).unwrap_or(resource)
}

/// Bytes of the device behind the resource, whether it is shared or not; absent where no label tells them.
#[must_use]
pub fn whole(node: &Node, resource: &str) -> Option<i64> {
    let mebibytes: i64 = label(node, labelled(resource), "memory")?.parse().ok()?;
    mebibytes.checked_mul(1 << 20).filter(|bytes| *bytes > 0)
}

/// Bytes of a device that one who asks for it may count upon: of a shared one an equal part, and nothing where it is shared among nobody knows
/// how many.
#[must_use]
pub fn share(node: &Node, resource: &str) -> Option<i64> {
    let name = labelled(resource);
    let bytes = whole(node, resource)?;
    let replicas = label(node, name, "replicas").and_then(|text| text.parse::<i64>().ok());
    let is_shared = name != resource
        || label(node, name, "product").is_some_and(|product| product.ends_with(SHARED_PRODUCT));
    match replicas {
        Some(replicas @ 2..) => Some(bytes / replicas),
        _ if is_shared => None,
        _ => Some(bytes),
    }
}

/// The sizes of the devices on the nodes that pods may use, in bytes, from the smallest.
#[must_use]
pub fn sizes(nodes: &[Node], worker: &Worker, resource: &str) -> BTreeSet<i64> {
    let with = nodes.iter().filter(|node| node.allocatable.get(resource) > 0);
    let usable = with.filter(|node| eligible::belongs(worker, Some(resource), node));
    usable.filter_map(|node| share(node, resource)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::Resources;

    fn node(labels: &[(&str, &str)]) -> Node {
        Node {
            labels: labels
                .iter()
                .map(|(key, value)| (format!("nvidia.com/{key}"), (*value).to_owned()))
                .collect(),
            allocatable: Resources::new().with("nvidia.com/gpu", 8),
            ..Node::default()
        }
    }

    #[test]
    fn a_slice_of_a_gpu_has_its_own_memory() {
        let mixed = node(&[
            ("gpu.memory", "81920"),
            ("mig-1g.10gb.memory", "9856"),
            ("mig-1g.10gb.product", "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb"),
            ("mig-3g.40gb.count", "2"),
        ]);
        let bytes = |resource| share(&mixed, resource);
        assert_eq!(bytes("nvidia.com/gpu"), Some(81_920 << 20));
        assert_eq!(bytes("nvidia.com/mig-1g.10gb"), Some(9_856 << 20));
        assert_eq!(bytes("nvidia.com/mig-3g.40gb"), None, "no label tells it");
        assert_eq!(bytes("nvidia.com/mig-1g.10gb+me"), None);
        assert_eq!(bytes("amd.com/gpu"), None);
        // With the strategy single a GPU is such a slice.
        let single = node(&[
            ("gpu.memory", "9856"),
            ("gpu.product", "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb"),
            ("gpu.replicas", "1"),
        ]);
        assert_eq!(share(&single, "nvidia.com/gpu"), Some(9_856 << 20));
    }

    #[test]
    fn of_a_shared_gpu_each_has_a_part() {
        let shared = |labels: &[(&str, &str)]| {
            let mut all = vec![("gpu.memory", "81920")];
            all.extend(labels);
            let node = node(&all);
            (
                share(&node, "nvidia.com/gpu"),
                share(&node, "nvidia.com/gpu.shared"),
            )
        };
        let quarter = Some(20_480 << 20);
        assert_eq!(
            shared(&[("gpu.replicas", "4"), ("gpu.product", "NVIDIA-H100-SHARED")]),
            (quarter, quarter)
        );
        let (kept, renamed) = shared(&[("gpu.product", "NVIDIA-H100-SHARED")]);
        assert_eq!((kept, renamed), (None, None), "among how many nobody knows");
        assert_eq!(
            shared(&[("gpu.replicas", "0"), ("gpu.product", "NVIDIA-H100")]).0,
            Some(81_920 << 20)
        );
        assert_eq!(
            whole(&node(&[("gpu.memory", "81920")]), "nvidia.com/gpu.shared"),
            Some(81_920 << 20)
        );
    }

    #[test]
    fn what_is_no_number_is_not_known() {
        for text in ["", "-4", "0", "80Gi", "9223372036854775807"] {
            assert_eq!(
                share(&node(&[("gpu.memory", text)]), "nvidia.com/gpu"),
                None,
                "{text}"
            );
        }
    }
}
