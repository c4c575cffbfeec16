//! What was tried and what came of it, as the page `docs/security.md`.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use llamero_tests::paths;

/// Set: the page is written anew; else it must be as the run makes it.
const WRITE: &str = "LLAMERO_WRITE_DOCS";
const PAGE: &str = "docs/security.md";
const INTRODUCTION: &str = "\
# What was tried to get in

Written by a run of `tests/tests/e2e/penetration` on the local cluster, and compared with each later run: `LLAMERO_WRITE_DOCS=1 tests/e2e.sh penetration`
writes it anew. Nothing that is listed got through. [threat-model.md](threat-model.md) says what protects, and what is not protected.
";

/// Attempts of one kind.
pub(crate) struct Section {
    title: &'static str,
    about: &'static str,
    rows: Vec<[String; 3]>,
}

impl Section {
    pub(crate) const fn new(title: &'static str, about: &'static str) -> Self {
        let rows = Vec::new();
        Self { title, about, rows }
    }

    /// What was tried, at what, and the answer.
    pub(crate) fn add(&mut self, what: impl Into<String>, at: impl Into<String>, answer: impl Into<String>) {
        self.rows.push([what.into(), at.into(), answer.into()]);
    }

    fn write(&self, page: &mut String) {
        let _ = write!(
            page,
            "\n## {}\n\n{}\n\n| tried | at | answer |\n|---|---|---|\n",
            self.title, self.about
        );
        for row in &self.rows {
            let [what, at, answer] = row
                .each_ref()
                .map(|cell| cell.replace('|', "\\|").replace('\n', " "));
            let _ = writeln!(page, "| {what} | {at} | {answer} |");
        }
    }
}

/// Holds the page to what a run has found.
pub(crate) fn hold(sections: &[Section]) -> Result<()> {
    let mut page = INTRODUCTION.to_owned();
    for section in sections {
        section.write(&mut page);
    }
    let path = paths::root().join(PAGE);
    if std::env::var_os(WRITE).is_some() {
        return std::fs::write(&path, page).with_context(|| format!("cannot write {PAGE}"));
    }
    let there = std::fs::read_to_string(&path).with_context(|| format!("cannot read {PAGE}"))?;
    let other = there
        .lines()
        .zip(page.lines())
        .find(|(there, made)| there != made)
        .or_else(|| (there.len() != page.len()).then_some(("", "")));
    ensure!(
        other.is_none(),
        "{PAGE} is stale: run {WRITE}=1 tests/e2e.sh penetration. The first line that differs, there and in this run: {other:?}"
    );
    Ok(())
}
