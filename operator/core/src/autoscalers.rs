//! What pods tell cluster autoscalers, by annotations of theirs.

use std::collections::BTreeMap;

use llamero_api::deployment::Disruption;

/// <https://github.com/kubernetes/autoscaler/blob/master/cluster-autoscaler/FAQ.md>
const CLUSTER_AUTOSCALER: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict";
/// <https://karpenter.sh/docs/concepts/disruption/#pod-level-controls>
const KARPENTER: &str = "karpenter.sh/do-not-disrupt";

/// Adds the annotations that `disruption.safeToEvict` asks for; what the user wrote in `worker.annotations` counts more.
pub fn annotate(annotations: &mut BTreeMap<String, String>, disruption: &Disruption) {
    let Some(safe) = disruption.safe_to_evict else {
        return;
    };
    let mut say = |key: &str, value: bool| {
        annotations
            .entry(key.to_owned())
            .or_insert_with(|| value.to_string());
    };
    say(CLUSTER_AUTOSCALER, safe);
    // Karpenter knows no word for the other.
    if !safe {
        say(KARPENTER, true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_autoscalers_are_told() {
        let told = |safe_to_evict, own: &[(&str, &str)]| {
            let mut annotations = own
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect();
            let policy = Disruption {
                safe_to_evict,
                ..Disruption::default()
            };
            annotate(&mut annotations, &policy);
            let words: Vec<String> = annotations.iter().map(|(k, v)| format!("{k}={v}")).collect();
            words.join(" ")
        };
        let (safe, keep) = (
            format!("{CLUSTER_AUTOSCALER}=true"),
            format!("{CLUSTER_AUTOSCALER}=false"),
        );
        assert_eq!(told(None, &[]), "");
        assert_eq!(told(Some(true), &[]), safe);
        assert_eq!(told(Some(false), &[]), format!("{keep} {KARPENTER}=true"));
        assert_eq!(
            told(Some(false), &[(CLUSTER_AUTOSCALER, "true")]),
            format!("{safe} {KARPENTER}=true")
        );
    }
}
