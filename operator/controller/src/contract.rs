//! What resource types and worker must agree on: the API crate cannot depend on the gRPC contract, so their figures are compared here.

#[cfg(test)]
mod tests {
    use std::ops::RangeInclusive;

    use llamero_api::{crds, labels};
    use llamero_proto::ports;
    use llamero_settings::limits;
    use serde_json::Value;

    #[test]
    fn ports_are_the_workers() {
        for (ours, theirs) in [
            (labels::INFERENCE_PORT, ports::INFERENCE),
            (labels::CONTROL_PORT, ports::CONTROL),
            (labels::DEMAND_PORT, ports::DEMAND),
            (labels::ENROLMENT_PORT, ports::ENROLMENT),
            (labels::HEALTH_PORT, ports::HEALTH),
            (labels::RANK_PORT, ports::RANKS),
        ] {
            assert_eq!(ours, theirs);
        }
    }

    #[test]
    fn sizing_counts_in_the_workers_blocks() {
        assert_eq!(
            llamero_core::sizing::KV_BLOCK_TOKENS,
            i64::from(limits::KV_BLOCK_TOKENS)
        );
    }

    /// What the API server accepts the worker's command line must accept too.
    #[test]
    fn ranges_of_the_resources_are_within_the_workers() {
        let definitions = crds::definitions().unwrap();
        let schema = definitions[0]
            .pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec")
            .unwrap();
        for (path, range) in [
            ("engine/properties/threads", limits::THREADS),
            ("engine/properties/maxSequences", limits::MAX_SEQUENCES),
            ("engine/properties/maxBatchedTokens", limits::MAX_BATCHED_TOKENS),
            ("engine/properties/maxQueuedRequests", limits::MAX_QUEUED_REQUESTS),
            ("model/properties/maxContextLength", limits::MAX_CONTEXT_LENGTH),
            ("parallelism/properties/tensor", limits::TENSOR),
            ("parallelism/properties/pipeline", limits::PIPELINE),
            ("accelerator/properties/perNode", limits::RANKS_PER_POD),
        ] {
            let field = schema.pointer(&format!("/properties/{path}")).unwrap();
            assert!(within(field, &range), "{path}: {} and {range:?}", field);
        }
    }

    /// The rendered chart is data, so the compiler does not see its ports: NetworkPolicies open them by these names.
    #[test]
    fn the_chart_opens_the_ports_that_programs_listen_on() {
        let manifest = include_str!("../../../manifests/base/llamero.yaml");
        let ports: Vec<(&str, u16)> = manifest
            .lines()
            .filter_map(|line| line.trim().strip_prefix("- {name: ")?.strip_suffix('}'))
            .filter_map(|entry| entry.split_once(", containerPort: "))
            .map(|(name, port)| (name, port.parse().unwrap()))
            .collect();
        assert!(ports.contains(&("grpc", ports::DEMAND)), "{ports:?}");
        assert!(ports.iter().any(|(name, _)| *name == "http"), "{ports:?}");
        assert!(ports.iter().all(|(_, port)| *port < 32_768), "{ports:?}");
    }

    fn within(field: &Value, range: &RangeInclusive<u32>) -> bool {
        let bound = |name: &str| field[name].as_f64();
        let (low, high) = (f64::from(*range.start()), f64::from(*range.end()));
        bound("minimum").is_some_and(|min| min >= low) && bound("maximum").is_some_and(|max| max <= high)
    }
}
