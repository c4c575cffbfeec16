//! How a stream may end: whole and byte for byte the undisturbed one, or by an error that this table expects.
//!
//! | ending | expected when | what had come |
//! |---|---|---|
//! | whole | always | byte for byte the undisturbed answer |
//! | connection broken | the stream's own gateway was killed, or its node lost, while the stream ran | a beginning of the undisturbed answer |
//!
//! There is nothing else.

use std::net::SocketAddr;
use std::time::Duration;

use super::answer::Answer;

/// How a stream ended, as its client saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The gateway closed it in good order.
    Closed,
    /// Another status than 200, with its body.
    Refused(u16, String),
    /// The connection broke.
    Broken(String),
    /// Nothing came for very long.
    Silent,
}

/// A stream that has ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Which of the streams.
    pub stream: usize,
    /// The gateway that it went through.
    pub gateway: SocketAddr,
    /// After the start of the run.
    pub began: Duration,
    /// After the start of the run.
    pub ended: Duration,
    /// How it ended.
    pub ending: Ending,
    /// What had come.
    pub answer: Answer,
}

/// The end of a gateway's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Death {
    /// Its address; the next process may have the same.
    pub gateway: SocketAddr,
    /// After the start of the run, just before.
    pub from: Duration,
    /// After the start of the run, when it was certain.
    pub to: Duration,
}

/// What the table says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Whole, and the undisturbed answer.
    Whole,
    /// Ended by an error that the table expects.
    Expected,
    /// Anything else.
    Wrong(String),
}

/// What the table says about a stream whose undisturbed answer is `undisturbed`.
#[must_use]
pub fn judge(ended: &Ended, undisturbed: &Answer, deaths: &[Death]) -> Verdict {
    let answer = &ended.answer;
    if let Some(breach) = &answer.breach {
        return Verdict::Wrong(breach.clone());
    }
    if !answer.begins(undisturbed) {
        return Verdict::Wrong(format!(
            "{} tokens, not the undisturbed ones: {:?} instead of {:?}",
            answer.count, answer.text, undisturbed.text
        ));
    }
    let died = deaths
        .iter()
        .any(|death| death.gateway == ended.gateway && ended.began <= death.to && death.from <= ended.ended);
    match &ended.ending {
        Ending::Closed if answer == undisturbed => Verdict::Whole,
        Ending::Closed => Verdict::Wrong(match &answer.error {
            Some(error) => format!("ended by {error}"),
            None => format!(
                "ended in good order after {} of {} tokens",
                answer.count, undisturbed.count
            ),
        }),
        Ending::Broken(_) if died => Verdict::Expected,
        Ending::Broken(error) => {
            Verdict::Wrong(format!("the connection broke while its gateway lived: {error}"))
        }
        Ending::Refused(status, body) => Verdict::Wrong(format!("status {status}: {body}")),
        Ending::Silent => Verdict::Wrong(format!("nothing came any more after {} tokens", answer.count)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATEWAY: ([u8; 4], u16) = ([10, 0, 0, 1], 8000);

    fn answer(text: &str) -> Answer {
        Answer {
            text: text.to_owned(),
            count: text.len() as u64,
            ..Answer::default()
        }
    }

    fn ended(text: &str, ending: Ending) -> Ended {
        Ended {
            stream: 0,
            gateway: GATEWAY.into(),
            began: Duration::from_secs(10),
            ended: Duration::from_secs(20),
            ending,
            answer: answer(text),
        }
    }

    fn death(second: u64) -> Death {
        Death {
            gateway: GATEWAY.into(),
            from: Duration::from_secs(second),
            to: Duration::from_secs(second),
        }
    }

    #[test]
    fn a_whole_answer_must_be_the_undisturbed_one() {
        let whole = answer("abc");
        assert_eq!(judge(&ended("abc", Ending::Closed), &whole, &[]), Verdict::Whole);
        for other in ["ab", "abd", "abcc"] {
            let verdict = judge(&ended(other, Ending::Closed), &whole, &[]);
            assert!(matches!(verdict, Verdict::Wrong(_)), "{other}: {verdict:?}");
        }
    }

    #[test]
    fn a_connection_may_break_only_when_its_gateway_dies_meanwhile() {
        let broken = |text| ended(text, Ending::Broken("reset".to_owned()));
        let whole = answer("abc");
        assert_eq!(judge(&broken("ab"), &whole, &[death(15)]), Verdict::Expected);
        for second in [9, 21] {
            let verdict = judge(&broken("ab"), &whole, &[death(second)]);
            assert!(matches!(verdict, Verdict::Wrong(_)), "{second}");
        }
        let mut elsewhere = death(15);
        elsewhere.gateway.set_port(1);
        assert!(matches!(
            judge(&broken("ab"), &whole, &[elsewhere]),
            Verdict::Wrong(_)
        ));
        assert!(matches!(
            judge(&broken("x"), &whole, &[death(15)]),
            Verdict::Wrong(_)
        ));
    }

    #[test]
    fn refusals_and_silence_are_never_expected() {
        let whole = answer("abc");
        for ending in [Ending::Refused(503, String::new()), Ending::Silent] {
            assert!(matches!(
                judge(&ended("a", ending), &whole, &[death(15)]),
                Verdict::Wrong(_)
            ));
        }
    }
}
