//! The commands as a page to read: `docs/kubectl.md` holds what this makes.

use clap::{Command, CommandFactory as _};

use crate::options::Cli;

/// Every command with its help, as Markdown.
#[must_use]
pub fn markdown() -> String {
    let mut program = Cli::command().term_width(110);
    program.build();
    let mut text = section(&mut program.clone(), "kubectl llamero");
    for command in program.get_subcommands() {
        if command.get_name() != "help" {
            let title = format!("kubectl llamero {}", command.get_name());
            text.push_str(&section(&mut command.clone().term_width(110), &title));
        }
    }
    text
}

fn section(command: &mut Command, title: &str) -> String {
    let help = command.render_long_help().to_string();
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    format!("### `{title}`\n\n```text\n{}\n```\n\n", lines.join("\n").trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/kubectl.md");
    const BEGIN: &str = "<!-- generated from the command line; do not edit below -->\n\n";

    #[test]
    fn the_page_shows_the_commands_as_they_are() {
        let page = std::fs::read_to_string(PAGE).unwrap();
        let (head, _) = page.split_once(BEGIN).unwrap();
        let wanted = format!("{head}{BEGIN}{}\n", markdown().trim_end());
        if std::env::var_os("LLAMERO_UPDATE").is_some() {
            std::fs::write(PAGE, wanted).unwrap();
            return;
        }
        assert_eq!(
            page, wanted,
            "docs/kubectl.md is stale; run: LLAMERO_UPDATE=1 cargo test --release -p kubectl-llamero the_page_shows"
        );
    }
}
