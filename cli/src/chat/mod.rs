//! Questions and answers in the terminal.
//!
//! | module | what it is |
//! |---|---|
//! | [`answer`] | one answer from the engine |
//! | [`input`] | what the user types, or pipes in |
//! | [`command`] | lines that begin with a slash |

pub mod answer;
pub mod command;
pub mod input;

use std::io::IsTerminal as _;

use anyhow::bail;
use llamero_proto::v1::ChatMessage;
use tokio::runtime::Runtime;

use self::answer::{Answer, Ended, Talk};
use self::command::Command;
use self::input::{Input, Line};

/// Answer one prompt.
///
/// # Errors
/// The engine refuses it, or Ctrl-C.
pub fn once(runtime: &Runtime, talk: Talk, prompt: &str, verbose: bool) -> anyhow::Result<()> {
    let mut messages = system(talk.system());
    messages.push(message("user", prompt));
    let answer = runtime.block_on(talk.answer(messages, &mut std::io::stdout().lock()))?;
    report(&answer, verbose);
    if answer.ended == Ended::Interrupted {
        bail!("interrupted");
    }
    Ok(())
}

/// Talk until the user leaves.
///
/// # Errors
/// The terminal cannot be used.
pub fn converse(runtime: &Runtime, talk: Talk, verbose: bool) -> anyhow::Result<()> {
    let mut input = Input::new(runtime)?;
    if std::io::stdin().is_terminal() {
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
                conversation.push(message("user", &line));
                interrupted = ask(runtime, &talk, &mut conversation, verbose);
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
fn ask(runtime: &Runtime, talk: &Talk, conversation: &mut Vec<ChatMessage>, verbose: bool) -> bool {
    let answered = runtime.block_on(talk.answer(conversation.clone(), &mut std::io::stdout().lock()));
    match answered {
        Ok(answer) => {
            report(&answer, verbose);
            conversation.push(message("assistant", &answer.text));
            answer.ended == Ended::Interrupted
        }
        Err(error) => {
            eprintln!("error: {error:#}\nThe question is taken back; /clear begins anew.");
            conversation.pop();
            false
        }
    }
}

fn system(text: Option<&str>) -> Vec<ChatMessage> {
    text.map(|text| message("system", text)).into_iter().collect()
}

fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage {
        role: role.to_owned(),
        content: content.to_owned(),
        ..ChatMessage::default()
    }
}

fn report(answer: &Answer, verbose: bool) {
    match answer.ended {
        Ended::Whole => {}
        Ended::TooLong => eprintln!("[ended at the longest answer: --max-tokens or --max-context-length]"),
        Ended::Interrupted => eprintln!("[stopped]"),
    }
    if verbose {
        eprintln!("[{}]", answer.speed());
    }
}
