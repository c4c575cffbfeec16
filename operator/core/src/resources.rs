//! Amounts of CPU, memory, pods and devices.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, PodSpec, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};
use llamero_api::{
    deployment::Worker,
    group::{GroupTemplate, LlamaGroupSpec},
    quantity,
};

use crate::{inspect::REQUESTS, interned::Name};

/// CPU, in thousandths of a processor.
pub const CPU: &str = "cpu";
/// Memory, in bytes.
pub const MEMORY: &str = "memory";
/// Pods, in pieces.
pub const PODS: &str = "pods";

/// Amounts by resource name: CPU in thousandths, everything else in whole units. What is not named is zero. Kept in the order of the
/// names, which are few.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Resources(Vec<(Name, i64)>);

impl Resources {
    /// Nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// With an amount set.
    #[must_use]
    pub fn with(mut self, name: &str, amount: i64) -> Self {
        self.set(Name::of(name), amount);
        self
    }

    /// From a map as the API writes it. Amounts that cannot be read are taken as zero; the API server lets none through.
    #[must_use]
    pub fn from_quantities(map: &BTreeMap<String, Quantity>) -> Self {
        Self(
            map.iter()
                .map(|(name, amount)| (Name::of(name), read(name, amount)))
                .collect(),
        )
    }

    /// The amount of a resource.
    #[must_use]
    pub fn get(&self, name: &str) -> i64 {
        let mut amounts = self.0.iter();
        let found = amounts.find(|(other, _)| other.as_str() == name);
        found.map_or(0, |(_, amount)| *amount)
    }

    /// All named amounts, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, i64)> {
        self.0.iter().map(|(name, amount)| (name.as_str(), *amount))
    }

    /// Adds amounts.
    pub fn add(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let sum = self.entry(name);
            *sum = sum.saturating_add(*amount);
        }
    }

    /// Takes amounts away; the result may be negative.
    pub fn subtract(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let rest = self.entry(name);
            *rest = rest.saturating_sub(*amount);
        }
    }

    /// Whether these amounts cover a request.
    #[must_use]
    pub fn covers(&self, request: &Self) -> bool {
        request
            .0
            .iter()
            .all(|(name, amount)| *amount <= 0 || self.get(name.as_str()) >= *amount)
    }

    /// Leaves out what is zero, which says the same.
    #[must_use]
    pub fn without_zeros(mut self) -> Self {
        self.0.retain(|(_, amount)| *amount != 0);
        self
    }

    /// As the API writes them, without what is zero.
    #[must_use]
    pub fn to_quantities(&self) -> BTreeMap<String, Quantity> {
        let written = |(name, amount): (&str, i64)| {
            let text = match name {
                CPU => format!("{amount}m"),
                _ => amount.to_string(),
            };
            (name.to_owned(), Quantity(text))
        };
        self.iter()
            .filter(|(_, amount)| *amount != 0)
            .map(written)
            .collect()
    }

    /// The larger one of each amount.
    pub fn raise_to(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let mine = self.entry(name);
            *mine = (*mine).max(*amount);
        }
    }

    /// These amounts, with others in place of those that the others name.
    fn overlaid(mut self, other: &Self) -> Self {
        for (name, amount) in &other.0 {
            self.set(name.clone(), *amount);
        }
        self
    }

    #[expect(clippy::indexing_slicing, reason = "the place was found in the same list")]
    fn set(&mut self, name: Name, amount: i64) {
        match self.0.binary_search_by(|(other, _)| other.cmp(&name)) {
            Ok(at) => self.0[at].1 = amount,
            Err(at) => self.0.insert(at, (name, amount)),
        }
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "the place was found in the same list, or was just filled"
    )]
    fn entry(&mut self, name: &Name) -> &mut i64 {
        let at = match self.0.binary_search_by(|(other, _)| other.cmp(name)) {
            Ok(at) => at,
            Err(at) => {
                self.0.insert(at, (name.clone(), 0));
                at
            }
        };
        &mut self.0[at].1
    }
}

fn read(name: &str, amount: &Quantity) -> i64 {
    if name == CPU {
        quantity::milli(amount)
    } else {
        quantity::units(amount)
    }
    .unwrap_or(0)
}

/// An amount for people: `1.5` processors, `3.1 GiB`, `8`.
#[must_use]
pub fn show(name: &str, amount: i64) -> String {
    match name {
        CPU if amount % 1000 != 0 => format!("{}m", amount),
        CPU => (amount / 1000).to_string(),
        MEMORY | "ephemeral-storage" => quantity::human(amount),
        _ => amount.to_string(),
    }
}

/// What the pod of a group asks of its node.
#[must_use]
pub fn of_template(template: &GroupTemplate) -> Resources {
    let mut request = Resources::new();
    if let Some(resources) = &template.worker.resources {
        // As the API server does: a limit without a request is the request.
        request = Resources::from_quantities(&resources.limits)
            .overlaid(&Resources::from_quantities(&resources.requests));
    }
    if let Some(name) = &template.accelerator_resource {
        request = request.with(name, i64::from(template.ranks_per_pod));
    }
    request.with(PODS, 1)
}

/// What each pod of a group asks of its node: as its template says, or, where that is more, as pods of the group were admitted.
#[must_use]
pub fn of_group(spec: &LlamaGroupSpec) -> Resources {
    let mut request = of_template(&spec.template);
    request.raise_to(&Resources::from_quantities(&spec.admitted));
    request
}

/// What the pod that reads a checkpoint's headers asks of its node.
#[must_use]
pub fn of_inspect(worker: &Worker) -> Resources {
    let asked = worker.inspect_resources.as_ref().map_or_else(
        || {
            let usual = REQUESTS.map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned())));
            Resources::from_quantities(&usual.into())
        },
        |asked| {
            Resources::from_quantities(&asked.limits).overlaid(&Resources::from_quantities(&asked.requests))
        },
    );
    asked.with(PODS, 1)
}

/// What any pod asks of its node: the larger of its containers together and each init container (with the sidecars started before it),
/// plus overhead. Source: <https://kubernetes.io/docs/concepts/workloads/pods/init-containers/#resource-sharing-within-containers>.
#[must_use]
pub fn of_pod(spec: &PodSpec) -> Resources {
    let mut running = Resources::new();
    let mut peak = Resources::new();
    for init in spec.init_containers.iter().flatten() {
        let mut at_once = running.clone();
        at_once.add(&of_container(init));
        if init.restart_policy.as_deref() == Some("Always") {
            running = at_once.clone();
        }
        peak.raise_to(&at_once);
    }
    for container in &spec.containers {
        running.add(&of_container(container));
    }
    running.raise_to(&peak);
    // What stands on the pod counts instead of what its containers ask for together (pod-level resources, stable since 1.34).
    if let Some(resources) = &spec.resources {
        running = running.overlaid(&of_requirements(resources));
    }
    if let Some(overhead) = &spec.overhead {
        running.add(&Resources::from_quantities(overhead));
    }
    running.with(PODS, 1)
}

fn of_container(container: &Container) -> Resources {
    container
        .resources
        .as_ref()
        .map(of_requirements)
        .unwrap_or_default()
}

/// Requests, and limits where nothing is requested, as the API server fills them in.
fn of_requirements(requirements: &ResourceRequirements) -> Resources {
    let ResourceRequirements { limits, requests, .. } = requirements;
    let read = |map: &Option<BTreeMap<String, Quantity>>| map.as_ref().map(Resources::from_quantities);
    read(limits)
        .unwrap_or_default()
        .overlaid(&read(requests).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sidecars_run_beside_what_follows() {
        let container = |cpu: &str, always: bool| Container {
            resources: Some(ResourceRequirements {
                requests: Some([(CPU.to_owned(), Quantity(cpu.to_owned()))].into()),
                ..Default::default()
            }),
            restart_policy: always.then(|| "Always".to_owned()),
            ..Default::default()
        };
        let spec = PodSpec {
            init_containers: Some(vec![
                container("3", false),
                container("1", true),
                container("2", false),
            ]),
            containers: vec![container("500m", false), container("500m", false)],
            ..Default::default()
        };
        // First init alone 3; sidecar 1 + second init 2 = 3; sidecar 1 + containers 1 = 2.
        assert_eq!(of_pod(&spec), Resources::new().with(CPU, 3000).with(PODS, 1));
    }

    #[test]
    fn what_stands_on_the_pod_counts_instead_of_its_containers() {
        let cpu = |amount: &str| {
            Some(ResourceRequirements {
                limits: Some([(CPU.to_owned(), Quantity(amount.to_owned()))].into()),
                ..Default::default()
            })
        };
        let container = Container {
            resources: cpu("1"),
            ..Default::default()
        };
        let spec = PodSpec {
            resources: cpu("5"),
            containers: vec![container.clone(), container],
            overhead: Some([(CPU.to_owned(), Quantity("250m".to_owned()))].into()),
            ..Default::default()
        };
        assert_eq!(of_pod(&spec), Resources::new().with(CPU, 5250).with(PODS, 1));
    }

    #[test]
    fn covering_ignores_what_is_not_asked_for() {
        let free = Resources::new().with(CPU, 1000).with("nvidia.com/gpu", -1);
        assert!(free.covers(&Resources::new().with(CPU, 1000).with("nvidia.com/gpu", 0)));
        assert!(!free.covers(&Resources::new().with("nvidia.com/gpu", 1)));
    }
}
