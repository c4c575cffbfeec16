//! `ORG/NAME@REVISION`.

use serde::{Deserialize, Serialize};

/// A repository and a state of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repository {
    /// `ORG/NAME`.
    pub name: String,
    /// A branch, a tag or a commit.
    pub revision: String,
}

impl Repository {
    /// Read `ORG/NAME[@REVISION]`; `main` where no revision is given.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (organisation, model) = name.split_once('/')?;
        let is_name = |part: &str| {
            part.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_')
                && part
                    .chars()
                    .all(|char| char.is_ascii_alphanumeric() || "-_.".contains(char))
        };
        let is_revision = !revision.is_empty()
            && !revision
                .chars()
                .any(|char| char.is_whitespace() || char.is_control());
        (is_name(organisation) && is_name(model) && is_revision && !model.ends_with(".gguf")).then(|| Self {
            name: name.to_owned(),
            revision: revision.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_have_two_parts_and_a_revision() {
        let repository = |name: &str, revision: &str| {
            Some(Repository {
                name: name.to_owned(),
                revision: revision.to_owned(),
            })
        };
        assert_eq!(Repository::parse("org/m-1.b"), repository("org/m-1.b", "main"));
        assert_eq!(
            Repository::parse("org/m@refs/pr/1"),
            repository("org/m", "refs/pr/1")
        );
        for wrong in [
            "m",
            "a/b/c",
            "./m",
            "../m",
            "/a/b",
            "org/m.gguf",
            "org/",
            "org/m@",
            "o rg/m",
        ] {
            assert_eq!(Repository::parse(wrong), None, "{wrong}");
        }
    }
}
