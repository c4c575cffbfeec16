//! Lines that begin with a slash.

/// What can be done beside asking.
pub const HELP: &str = "Commands: /clear begins anew, /system TEXT begins anew with this system message (without TEXT: with none), \
                        /help shows this, /exit or Ctrl-D ends. Ctrl-C stops an answer.";

/// A command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Forget the conversation, but not the system message.
    Clear,
    /// Another system message, or none.
    System(Option<String>),
    /// Show the commands.
    Help,
    /// End.
    Leave,
    /// None of them.
    Unknown(String),
}

impl Command {
    /// The command in a line; none in a line without a slash at its start.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let line = line.trim();
        if !line.starts_with('/') {
            return None;
        }
        let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        Some(match name {
            "/clear" => Self::Clear,
            "/system" => Self::System((!rest.trim().is_empty()).then(|| rest.trim().to_owned())),
            "/help" | "/?" => Self::Help,
            "/exit" | "/quit" | "/bye" => Self::Leave,
            _ => Self::Unknown(name.to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_commands_or_questions() {
        assert_eq!(Command::parse("what is /clear?"), None);
        assert_eq!(Command::parse(" /clear "), Some(Command::Clear));
        let system = Command::System(Some("be brief".to_owned()));
        assert_eq!(Command::parse("/system  be brief "), Some(system));
        assert_eq!(Command::parse("/system"), Some(Command::System(None)));
        assert_eq!(Command::parse("/x y"), Some(Command::Unknown("/x".to_owned())));
    }
}
