//! Which deployments a key sees.

/// Namespaces, in the order in which a name is looked up in them, and models. Empty lists are no bound.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    namespaces: Vec<String>,
    models: Vec<String>,
}

/// Stands for all namespaces that are not named themselves; at the end of a name, for any end.
const ANY: &str = "*";

impl Scope {
    /// Of these lists.
    #[must_use]
    pub const fn new(namespaces: Vec<String>, models: Vec<String>) -> Self {
        Self { namespaces, models }
    }

    /// Where a namespace stands in the order of look-up; `None` when it is not seen at all.
    #[must_use]
    pub fn place(&self, namespace: &str) -> Option<usize> {
        if self.namespaces.is_empty() {
            return Some(0);
        }
        let place = |wanted: &str| self.namespaces.iter().position(|name| name == wanted);
        place(namespace).or_else(|| place(ANY))
    }

    /// Whether a model's name is seen.
    #[must_use]
    pub fn has_model(&self, model: &str) -> bool {
        let fits = |pattern: &String| match pattern.strip_suffix(ANY) {
            Some(beginning) => model.starts_with(beginning),
            None => model == pattern,
        };
        self.models.is_empty() || self.models.iter().any(fits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_have_an_order_and_models_patterns() {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let open = Scope::default();
        assert!(open.place("x") == Some(0) && open.has_model("x"));
        let scope = Scope::new(words(&["b", "a"]), words(&["org/*", "m"]));
        assert_eq!(
            ["a", "b", "c"].map(|name| scope.place(name)),
            [Some(1), Some(0), None]
        );
        assert_eq!(
            ["org/x", "org/", "m", "m2", "or"].map(|name| scope.has_model(name)),
            [true, true, true, false, false]
        );
        let rest = Scope::new(words(&["*", "a"]), Vec::new());
        assert_eq!(["a", "b"].map(|name| rest.place(name)), [Some(1), Some(0)]);
    }
}
