//! What the user types, or pipes in.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _};

use rustyline::error::ReadlineError;
use rustyline::history::MemHistory;
use rustyline::{Config, Editor};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::ChatError;

/// Longest line that is read from a pipe: as long as the longest request.
const LINE_BYTES: u64 = 8 << 20;

/// What comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// A line.
    Text(String),
    /// Ctrl-C.
    Interrupted,
    /// Ctrl-D, or the end of the input.
    End,
}

/// Where lines come from.
pub enum Input {
    /// A terminal, with editing and history.
    Terminal(Box<Editor<(), MemHistory>>),
    /// A pipe or a file, read on a thread of its own so that signals are noticed meanwhile.
    Piped {
        /// The lines.
        lines: mpsc::Receiver<io::Result<String>>,
        /// SIGINT.
        interrupt: Signal,
    },
}

impl Input {
    /// Read standard input.
    ///
    /// # Errors
    /// The terminal cannot be used.
    pub fn new(runtime: &Runtime) -> Result<Self, ChatError> {
        let config = Config::builder().auto_add_history(true).build();
        if io::stdin().is_terminal() {
            return Ok(Self::Terminal(Box::new(Editor::with_history(
                config,
                MemHistory::new(),
            )?)));
        }
        let (sender, lines) = mpsc::channel(1);
        std::thread::Builder::new()
            .name("input".into())
            .spawn(move || {
                while let Some(line) = piped_line() {
                    if sender.blocking_send(line).is_err() {
                        return;
                    }
                }
            })
            .map_err(ChatError::Input)?;
        let interrupt = {
            let _entered = runtime.enter();
            signal(SignalKind::interrupt()).map_err(ChatError::Signal)?
        };
        Ok(Self::Piped { lines, interrupt })
    }

    /// Wait for the next line.
    ///
    /// # Errors
    /// The input cannot be read.
    pub fn line(&mut self, runtime: &Runtime) -> Result<Line, ChatError> {
        match self {
            Self::Terminal(editor) => match editor.readline("> ") {
                Ok(line) => Ok(Line::Text(line)),
                Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
                Err(ReadlineError::Eof) => Ok(Line::End),
                Err(error) => Err(error.into()),
            },
            Self::Piped { lines, interrupt } => runtime.block_on(async {
                tokio::select! {
                    line = lines.recv() => line.map_or(Ok(Line::End), |line| Ok(Line::Text(line.map_err(ChatError::Input)?))),
                    // Nobody sits there who could press it twice.
                    _ = interrupt.recv() => Ok(Line::End),
                }
            }),
        }
    }
}

/// The next line of standard input; none at its end.
fn piped_line() -> Option<io::Result<String>> {
    let mut line = String::new();
    let read = io::stdin().lock().take(LINE_BYTES + 1).read_line(&mut line);
    match read {
        Ok(0) => None,
        Ok(read) if read as u64 > LINE_BYTES => Some(Err(io::Error::other(format!(
            "a line of the input is longer than {LINE_BYTES} bytes"
        )))),
        Ok(_) => Some(Ok(line.trim_end_matches(['\n', '\r']).to_owned())),
        Err(error) => Some(Err(error)),
    }
}
