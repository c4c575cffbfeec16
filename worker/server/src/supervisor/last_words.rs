//! Forwards a rank's standard error and keeps its end, which says best why a process died.

use std::collections::VecDeque;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{SystemTime, UNIX_EPOCH};

use llamero_proto::v1::RankExit;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};

use crate::exit;

const KEPT_LINES: usize = 20;
const LONGEST_LINE: usize = 512;
/// Bytes of a line that are held at once; a longer one is passed on in parts.
const LONGEST_PART: u64 = 16 << 10;

/// Copies lines `to` the supervisor's standard error until the end; returns the last ones, trimmed in length.
pub async fn forward(from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> VecDeque<String> {
    let mut kept = VecDeque::with_capacity(KEPT_LINES);
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut from).take(LONGEST_PART).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return kept,
            Ok(_) => {}
        }
        // A closed standard error must not stop the rank.
        let _ = to.write_all(&line).await;
        // Written in the background otherwise, and lost when the supervisor ends together with the rank.
        let _ = to.flush().await;
        if kept.len() == KEPT_LINES {
            kept.pop_front();
        }
        kept.push_back(
            String::from_utf8_lossy(&line)
                .trim()
                .chars()
                .take(LONGEST_LINE)
                .collect(),
        );
    }
}

/// How a process ended, with one sentence that says why.
#[must_use]
pub fn exit_report(status: ExitStatus, words: &VecDeque<String>, now: SystemTime) -> RankExit {
    let said = words
        .iter()
        .rev()
        .find(|line| !line.is_empty() && !line.starts_with("note: "));
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(9)) => "killed (SIGKILL; by hand, or out of memory)".to_owned(),
        (None, Some(signal)) => format!("ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    };
    RankExit {
        code: status.code(),
        signal: status.signal(),
        // A killed process did not choose its last words: they say nothing about its end.
        message: match said {
            Some(line) if status.signal() != Some(9) => format!("{how}: {line}"),
            _ => how,
        },
        unix_millis: unix_millis(now),
        kind: exit::kind(status.code()).into(),
    }
}

/// Milliseconds since 1970.
#[must_use]
pub fn unix_millis(now: SystemTime) -> i64 {
    now.duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_millis()).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use llamero_proto::v1::ExitKind;

    use super::*;

    fn words(lines: &[&str]) -> VecDeque<String> {
        lines.iter().map(|line| (*line).to_owned()).collect()
    }

    #[test]
    fn says_how_and_why() {
        let lines = words(&[
            "loading",
            "error: model.safetensors is cut short",
            "note: run with RUST_BACKTRACE=1",
            "",
        ]);
        let report = exit_report(ExitStatus::from_raw(2 << 8), &lines, UNIX_EPOCH);
        assert_eq!((report.code, report.signal), (Some(2), None));
        assert_eq!(report.kind(), ExitKind::Unusable);
        assert_eq!(
            report.message,
            "exit code 2: error: model.safetensors is cut short"
        );
        let report = exit_report(ExitStatus::from_raw(9), &lines, UNIX_EPOCH);
        assert_eq!((report.code, report.signal), (None, Some(9)));
        assert!(report.message.starts_with("killed"));
        assert_eq!(report.kind(), ExitKind::Crashed);
    }

    #[tokio::test]
    async fn keeps_the_end() {
        let text: String = (0..50).map(|i| format!("line {i}\n")).collect();
        let mut copy = Vec::new();
        let kept = forward(text.as_bytes(), &mut copy).await;
        assert_eq!(kept.len(), KEPT_LINES);
        assert_eq!(kept.back().map(String::as_str), Some("line 49"));
        assert_eq!(copy, text.as_bytes());
    }

    #[tokio::test]
    async fn a_line_without_an_end_is_passed_on_in_parts() {
        let bytes = 100 * LONGEST_PART;
        let mut copy = Vec::new();
        let kept = forward(tokio::io::repeat(b'x').take(bytes), &mut copy).await;
        assert_eq!(copy.len() as u64, bytes);
        assert_eq!(kept.len(), KEPT_LINES, "no more than a part is held");
        assert!(kept.iter().all(|part| part.len() == LONGEST_LINE));
    }
}
