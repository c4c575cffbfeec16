//! Whether the worker image can compute on what a deployment asks for.

use llamero_api::{CheckpointSummary, LlamaDeploymentSpec, deployment::KvCacheDtype, summary::CPU_BACKEND};

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
    check_device(spec, summary)?;
    check_kv(spec, summary)
}

/// Whether the backend keeps keys and values in the type that the specification asks for.
fn check_kv(spec: &LlamaDeploymentSpec, summary: &CheckpointSummary) -> Result<(), String> {
    let resource = spec.accelerator.as_ref().and_then(|a| a.resource.as_deref());
    let backend = resource.and_then(driver).unwrap_or(CPU_BACKEND);
    if spec.engine.kv_dtype() == KvCacheDtype::Auto
        || summary.fp8_kv_backends.iter().any(|one| one == backend)
    {
        return Ok(());
    }
    let way_out = match resource {
        Some(_) => "or remove accelerator.resource to run on the CPU",
        None => "or choose a newer worker.image (and set rollout.restartedAt where its name stays the same)",
    };
    Err(format!(
        "engine.kvCache.dtype is fp8, and the backend {backend} of the worker image keeps keys and values in bf16 only: set engine.kvCache.dtype to auto, {way_out}"
    ))
}

fn check_device(spec: &LlamaDeploymentSpec, summary: &CheckpointSummary) -> Result<(), String> {
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
        return check_split(spec, summary, (driver, resource));
    }
    Err(format!(
        "accelerator.resource is {resource}, but the worker image computes on {} only: choose a worker.image with the backend {driver}, or remove accelerator.resource to run on the CPU",
        backends.join(" and ")
    ))
}

/// Whether the backend splits a model over devices as the specification asks for.
fn check_split(
    spec: &LlamaDeploymentSpec,
    summary: &CheckpointSummary,
    (driver, resource): (&str, &str),
) -> Result<(), String> {
    let has = |names: &[String]| names.iter().any(|one| one == driver);
    let (tensor, pipeline) = (spec.parallelism.tensor, spec.parallelism.pipeline);
    if has(&summary.one_device_backends) && spec.ranks() > 1 {
        return Err(format!(
            "parallelism is tensor {tensor} and pipeline {pipeline}, and the backend {driver} of the worker image, which drives {resource}, computes a model on one device only: use 1 for both and a model that fits one device, or remove accelerator.resource to run on the CPU"
        ));
    }
    if !has(&summary.one_node_backends) {
        return Ok(());
    }
    let has_stages = has(&summary.stage_backends);
    if pipeline > 1 && !has_stages {
        return Err(format!(
            "parallelism.pipeline is {pipeline}, and the backend {driver} of the worker image, which drives {resource}, computes no pipeline stages: choose a newer worker.image (and set rollout.restartedAt where its name stays the same), use 1 and as many tensor-parallel ranks as one node has devices, or remove accelerator.resource to run on the CPU"
        ));
    }
    // Ranks are dealt out in their order, and those of a stage follow each other.
    if spec.ranks_per_pod() % tensor.max(1) != 0 {
        let way_out = match has_stages {
            true => "fewer tensor-parallel ranks and more pipeline stages, of which each fits a node",
            false => "fewer tensor-parallel ranks",
        };
        return Err(format!(
            "parallelism.tensor is {tensor} with accelerator.perNode {}, which makes {} pods of a group, and the tensor-parallel ranks of the backend {driver} of the worker image, which drives {resource}, have to be on one node: set accelerator.perNode to {tensor} where nodes have that many devices, else use {way_out}, or remove accelerator.resource to run on the CPU",
            spec.ranks_per_pod(),
            spec.pods()
        ));
    }
    Ok(())
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
        let on_one_node: Vec<_> = backends.iter().filter(|backend| **backend == "cuda").collect();
        serde_json::from_value(json!({
            "formatVersion": 1, "architecture": "LlamaForCausalLM", "hiddenSize": 1, "layers": 1, "qHeads": 1, "kvHeads": 1,
            "headDim": 1, "ffnSize": 1, "vocabSize": 1, "maxPositionEmbeddings": 1, "weights": "fp8", "parameters": 1,
            "checkpointBytes": 1, "plans": [], "backends": backends,
            "oneNodeBackends": on_one_node
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

    fn split(resource: Option<&str>, tensor: i32, pipeline: i32, per_node: i32) -> LlamaDeploymentSpec {
        let mut spec = spec(resource);
        spec.parallelism.tensor = tensor;
        spec.parallelism.pipeline = pipeline;
        if let Some(accelerator) = &mut spec.accelerator {
            accelerator.per_node = per_node;
        }
        spec
    }

    /// Of an image whose CUDA backend computes pipeline stages, or of an older one.
    fn image(has_stages: bool) -> CheckpointSummary {
        let summary = summary(&["cpu", "cuda"]);
        let stage_backends = if has_stages { vec!["cuda".into()] } else { vec![] };
        CheckpointSummary {
            stage_backends,
            ..summary
        }
    }

    #[test]
    fn each_stage_has_to_be_on_one_node() {
        let ask = |tensor, pipeline, per_node| {
            check(
                &split(Some("nvidia.com/gpu"), tensor, pipeline, per_node),
                &image(true),
            )
        };
        for (tensor, pipeline, per_node) in [(8, 1, 8), (2, 1, 8), (8, 2, 8), (4, 2, 8), (2, 4, 4), (1, 3, 1)]
        {
            assert_eq!(
                ask(tensor, pipeline, per_node),
                Ok(()),
                "{tensor} x {pipeline} by {per_node}"
            );
        }
        let why = ask(16, 1, 8).unwrap_err();
        assert!(
            why.contains("tensor is 16 with accelerator.perNode 8, which makes 2 pods")
                && why.contains("have to be on one node")
                && why.contains("more pipeline stages"),
            "{why}"
        );
        assert!(ask(8, 1, 1).unwrap_err().contains("set accelerator.perNode to 8"));
        // Two pods would share a stage.
        assert!(ask(4, 3, 6).unwrap_err().contains("set accelerator.perNode to 4"));
        // On CPUs they may be anywhere.
        assert_eq!(check(&split(None, 16, 2, 1), &image(true)), Ok(()));
    }

    #[test]
    fn stages_are_refused_where_an_older_image_computes_none() {
        let ask = |tensor, pipeline, per_node| {
            check(
                &split(Some("nvidia.com/gpu"), tensor, pipeline, per_node),
                &image(false),
            )
        };
        assert_eq!(ask(8, 1, 8), Ok(()));
        let why = ask(4, 2, 8).unwrap_err();
        assert!(
            why.contains("parallelism.pipeline is 2") && why.contains("a newer worker.image"),
            "{why}"
        );
        assert!(
            ask(16, 1, 8)
                .unwrap_err()
                .contains("else use fewer tensor-parallel ranks, or")
        );
    }

    #[test]
    fn several_gpus_are_refused_where_an_older_image_takes_one() {
        let older = CheckpointSummary {
            one_device_backends: vec!["cuda".into()],
            ..summary(&["cpu", "cuda"])
        };
        for (tensor, pipeline) in [(1, 2), (8, 1)] {
            let why = check(&split(Some("nvidia.com/gpu"), tensor, pipeline, 8), &older).unwrap_err();
            assert!(
                why.contains(&format!("tensor {tensor} and pipeline {pipeline}"))
                    && why.contains("one device only"),
                "{why}"
            );
            assert_eq!(check(&split(None, tensor, pipeline, 8), &older), Ok(()));
        }
        assert_eq!(check(&split(Some("nvidia.com/gpu"), 1, 1, 8), &older), Ok(()));
    }

    #[test]
    fn a_cache_in_fp8_is_taken_where_it_is_built() {
        let ask = |resource, dtype: &str, fp8_kv_backends: &[&str]| {
            let mut spec = spec(resource);
            spec.engine = serde_json::from_value(json!({"kvCache": {"dtype": dtype}})).unwrap();
            let fp8_kv_backends = fp8_kv_backends.iter().map(|name| (*name).to_owned()).collect();
            let summary = CheckpointSummary {
                fp8_kv_backends,
                ..summary(&["cpu", "cuda"])
            };
            check(&spec, &summary)
        };
        assert_eq!(ask(None, "fp8", &["cpu"]), Ok(()));
        assert_eq!(ask(None, "auto", &[]), Ok(()));
        assert_eq!(ask(Some("nvidia.com/gpu"), "auto", &["cpu"]), Ok(()));
        let why = ask(Some("nvidia.com/gpu"), "fp8", &["cpu"]).unwrap_err();
        assert!(
            why.contains("engine.kvCache.dtype is fp8, and the backend cuda")
                && why.contains("or remove accelerator.resource"),
            "{why}"
        );
        // An older image, which would not know the flag.
        let why = ask(None, "fp8", &[]).unwrap_err();
        assert!(why.contains("a newer worker.image"), "{why}");
    }

    #[test]
    fn devices_that_nothing_drives_are_refused_by_name() {
        let why = check(&spec(Some("amd.com/gpu")), &summary(&["cpu", "cuda"])).unwrap_err();
        assert!(why.contains("amd.com/gpu, which no backend"), "{why}");
    }
}
