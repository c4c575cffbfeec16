//! Whether the worker image can compute on what a deployment asks for.

use llamero_api::{CheckpointSummary, LlamaDeploymentSpec};

/// Domains of extended resources, and the backend of the worker that drives their devices.
const DRIVERS: [(&str, &str); 1] = [("nvidia.com/", "cuda")];

/// The backend of the worker that drives an accelerator; none for one that nothing drives.
#[must_use]
pub fn driver(resource: &str) -> Option<&'static str> {
    let driver = DRIVERS.iter().find(|(domain, _)| resource.starts_with(domain));
    driver.map(|(_, driver)| *driver)
}

/// Whether a backend of the worker image drives the accelerators of the specification. The image itself says which ones it has, in
/// what its inspect pod writes.
///
/// # Errors
/// A sentence that says which backend is missing and what to do.
pub fn check(spec: &LlamaDeploymentSpec, summary: &CheckpointSummary) -> Result<(), String> {
    let Some(resource) = spec.accelerator.as_ref().and_then(|a| a.resource.as_deref()) else {
        return Ok(());
    };
    let backends = summary.backends();
    let Some(driver) = driver(resource) else {
        return Err(format!(
            "accelerator.resource is {resource}, which no backend of Llamero drives: use nvidia.com/gpu, or remove accelerator.resource to run on the CPU"
        ));
    };
    if backends.contains(&driver) {
        let (tensor, pipeline) = (spec.parallelism.tensor, spec.parallelism.pipeline);
        let on_one_device = summary.one_device_backends.iter().any(|one| one == driver);
        if on_one_device && tensor.saturating_mul(pipeline) > 1 {
            return Err(format!(
                "parallelism is tensor {tensor} and pipeline {pipeline}, and the backend {driver} of the worker image, which drives {resource}, computes a model on one device only: use 1 for both and a model that fits one device, or remove accelerator.resource to run on the CPU"
            ));
        }
        return Ok(());
    }
    Err(format!(
        "accelerator.resource is {resource}, but the worker image computes on {} only: choose a worker.image with the backend {driver}, or remove accelerator.resource to run on the CPU",
        backends.join(" and ")
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(resource: Option<&str>) -> LlamaDeploymentSpec {
        let accelerator = resource.map_or(json!({}), |resource| json!({"resource": resource}));
        serde_json::from_value(json!({
            "model": {"source": {"hostPath": {"path": "/m"}}}, "parallelism": {"tensor": 1}, "accelerator": accelerator
        }))
        .unwrap()
    }

    fn summary(backends: &[&str]) -> CheckpointSummary {
        let on_one_device: Vec<_> = backends.iter().filter(|backend| **backend == "cuda").collect();
        serde_json::from_value(json!({
            "formatVersion": 1, "architecture": "LlamaForCausalLM", "hiddenSize": 1, "layers": 1, "qHeads": 1, "kvHeads": 1,
            "headDim": 1, "ffnSize": 1, "vocabSize": 1, "maxPositionEmbeddings": 1, "weights": "fp8", "parameters": 1,
            "checkpointBytes": 1, "plans": [], "backends": backends,
            "oneDeviceBackends": on_one_device
        }))
        .unwrap()
    }

    #[test]
    fn an_image_without_cuda_is_refused_gpus_and_says_so() {
        for backends in [&[][..], &["cpu"][..]] {
            let why = check(&spec(Some("nvidia.com/gpu")), &summary(backends)).unwrap_err();
            assert!(
                why.contains("computes on cpu only") && why.contains("remove accelerator.resource"),
                "{why}"
            );
        }
        assert_eq!(
            check(&spec(Some("nvidia.com/gpu")), &summary(&["cpu", "cuda"])),
            Ok(())
        );
        assert_eq!(check(&spec(None), &summary(&[])), Ok(()));
    }

    #[test]
    fn several_gpus_are_refused_where_the_image_takes_one() {
        for (tensor, pipeline) in [(1, 2), (8, 1)] {
            let several = |resource| {
                let mut spec = spec(resource);
                spec.parallelism.tensor = tensor;
                spec.parallelism.pipeline = pipeline;
                check(&spec, &summary(&["cpu", "cuda"]))
            };
            let why = several(Some("nvidia.com/gpu")).unwrap_err();
            assert!(
                why.contains(&format!("tensor {tensor} and pipeline {pipeline}"))
                    && why.contains("one device only"),
                "{why}"
            );
            assert_eq!(several(None), Ok(()));
        }
        let mut spec = spec(Some("nvidia.com/gpu"));
        spec.parallelism.tensor = 8;
        let later = CheckpointSummary {
            one_device_backends: Vec::new(),
            ..summary(&["cpu", "cuda"])
        };
        assert_eq!(check(&spec, &later), Ok(()));
    }

    #[test]
    fn devices_that_nothing_drives_are_refused_by_name() {
        let why = check(&spec(Some("amd.com/gpu")), &summary(&["cpu", "cuda"])).unwrap_err();
        assert!(why.contains("amd.com/gpu, which no backend"), "{why}");
    }
}
