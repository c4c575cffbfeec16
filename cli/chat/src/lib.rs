//! Questions and answers in a terminal, whoever answers: an engine in this process, or a gateway.
//!
//! | module | what it is |
//! |---|---|
//! | [`answer`] | one answer, as it comes |
//! | [`input`] | what the user types, or pipes in |
//! | [`command`] | lines that begin with a slash |

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    warn(
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        reason = "what comes in from outside must not be able to end the process, nor become another number"
    )
)]

pub mod answer;
pub mod command;
pub mod input;

use std::io::{self, IsTerminal as _};

use futures::stream::BoxStream;
use rustyline::error::ReadlineError;
use tokio::runtime::Runtime;

use self::answer::{Answer, Ended, Piece, show};
use self::command::Command;
use self::input::{Input, Line};

/// Why a chat, or one answer, ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// Who was asked refuses, in their own words.
    #[error("{0}")]
    Refused(String),
    /// The answer stopped without an end.
    #[error("the answer ended too early")]
    CutOff,
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
    /// Nobody takes the text.
    #[error("cannot write the answer: {0}")]
    Output(#[source] io::Error),
    /// The input cannot be read.
    #[error("cannot read the input: {0}")]
    Input(#[source] io::Error),
    /// The terminal cannot be used.
    #[error("cannot use the terminal: {0}")]
    Terminal(#[from] ReadlineError),
    /// Ctrl-C cannot be noticed.
    #[error("cannot handle Ctrl-C: {0}")]
    Signal(#[source] io::Error),
}

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: &'static str,
    /// Its text.
    pub content: String,
}

impl Message {
    fn new(role: &'static str, content: &str) -> Self {
        Self {
            role,
            content: content.to_owned(),
        }
    }
}

/// An answer on its way.
pub type Pieces = BoxStream<'static, Result<Piece, ChatError>>;

/// Who answers.
pub trait Talk {
    /// What they are told before the conversation.
    fn system(&self) -> Option<&str>;

    /// Asks them to go on with a conversation.
    ///
    /// # Errors
    /// [`ChatError::Refused`] with what to do about it.
    fn ask(&self, messages: Vec<Message>) -> impl Future<Output = Result<Pieces, ChatError>>;
}

/// Answers one prompt.
///
/// # Errors
/// It is refused, or Ctrl-C.
pub fn once(runtime: &Runtime, talk: &impl Talk, prompt: &str, verbose: bool) -> Result<(), ChatError> {
    let mut messages = system(talk.system());
    messages.push(Message::new("user", prompt));
    let answer = runtime.block_on(show(talk.ask(messages), &mut io::stdout().lock()))?;
    report(&answer, verbose);
    if answer.ended == Ended::Interrupted {
        return Err(ChatError::Interrupted);
    }
    Ok(())
}

/// Talks until the user leaves.
///
/// # Errors
/// The terminal cannot be used.
pub fn converse(runtime: &Runtime, talk: &impl Talk, verbose: bool) -> Result<(), ChatError> {
    let mut input = Input::new(runtime)?;
    if io::stdin().is_terminal() {
        eprintln!("Ask something; /help shows what else can be done, Ctrl-D ends.");
    }
    let mut conversation = system(talk.system());
    // Ctrl-C stops an answer; a second one, with nothing in between, leaves.
    let mut interrupted = false;
    loop {
        let line = match input.line(runtime)? {
            Line::Text(line) => line,
            Line::End => return Ok(()),
            Line::Interrupted if interrupted => return Ok(()),
            Line::Interrupted => {
                interrupted = true;
                eprintln!("Ctrl-C again, or Ctrl-D, ends.");
                continue;
            }
        };
        interrupted = false;
        match Command::parse(&line) {
            None if line.trim().is_empty() => {}
            None => {
                conversation.push(Message::new("user", &line));
                interrupted = ask(runtime, talk, &mut conversation, verbose);
            }
            Some(Command::Clear) => {
                conversation.retain(|message| message.role == "system");
                eprintln!("The conversation begins anew.");
            }
            Some(Command::System(text)) => {
                conversation = system(text.as_deref());
                eprintln!(
                    "The conversation begins anew, with {} system message.",
                    text.map_or("no", |_| "this")
                );
            }
            Some(Command::Help) => eprintln!("{}", command::HELP),
            Some(Command::Leave) => return Ok(()),
            Some(Command::Unknown(name)) => eprintln!("There is no {name}. {}", command::HELP),
        }
    }
}

/// One turn; returns whether the user stopped it. A question without an answer is taken back.
fn ask(runtime: &Runtime, talk: &impl Talk, conversation: &mut Vec<Message>, verbose: bool) -> bool {
    let answered = runtime.block_on(show(talk.ask(conversation.clone()), &mut io::stdout().lock()));
    match answered {
        Ok(answer) => {
            report(&answer, verbose);
            conversation.push(Message::new("assistant", &answer.text));
            answer.ended == Ended::Interrupted
        }
        Err(error) => {
            eprintln!("error: {error}\nThe question is taken back; /clear begins anew.");
            conversation.pop();
            false
        }
    }
}

fn system(text: Option<&str>) -> Vec<Message> {
    text.map(|text| Message::new("system", text))
        .into_iter()
        .collect()
}

fn report(answer: &Answer, verbose: bool) {
    match answer.ended {
        Ended::Whole => {}
        Ended::TooLong => {
            eprintln!("[ended at the longest answer: --max-tokens, or the model's longest context]")
        }
        Ended::Interrupted => eprintln!("[stopped]"),
    }
    if verbose {
        eprintln!("[{}]", answer.speed());
    }
}
