//! Progress of long work on standard error: one moving line on a terminal, else a plain line now and then.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

use llamero_checkpoint::Progress;

/// Time between two reports on a terminal, and elsewhere.
const INTERVALS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Reports how far a piece of work has come.
pub struct ProgressLine {
    what: String,
    terminal: bool,
    started: Instant,
    reported: Option<Instant>,
}

impl ProgressLine {
    /// Begin to report on `what`, a present participle with its object.
    #[must_use]
    pub fn new(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            terminal: stderr().is_terminal(),
            started: Instant::now(),
            reported: None,
        }
    }

    /// Take the next figure.
    pub fn report(&mut self, progress: Progress) {
        let now = Instant::now();
        let interval = if self.terminal { INTERVALS.0 } else { INTERVALS.1 };
        let finished = progress.total > 0 && progress.done == progress.total;
        if !finished && self.reported.is_some_and(|at| now < at + interval) {
            return;
        }
        self.reported = Some(now);
        let line = render(&self.what, progress, now - self.started);
        // Nobody may be reading; the work goes on.
        let _ = match (self.terminal, finished) {
            (true, false) => write!(stderr(), "\r{line}\x1b[K"),
            (true, true) => writeln!(stderr(), "\r{line}\x1b[K"),
            (false, _) => writeln!(stderr(), "{line}"),
        };
    }
}

fn render(what: &str, Progress { done, total }: Progress, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    let mega = |bytes: u64| bytes as f64 / 1e6;
    let percent = if total == 0 {
        0.0
    } else {
        100.0 * done as f64 / total as f64
    };
    let rate = if seconds > 0.0 { mega(done) / seconds } else { 0.0 };
    format!(
        "{what}: {:.0} of {:.0} MB ({percent:.0} %), {rate:.0} MB/s",
        mega(done),
        mega(total)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_share_and_rate() {
        let line = render(
            "reading",
            Progress {
                done: 25_000_000,
                total: 100_000_000,
            },
            Duration::from_secs(5),
        );
        assert_eq!(line, "reading: 25 of 100 MB (25 %), 5 MB/s");
        let nothing = render("reading", Progress::default(), Duration::ZERO);
        assert_eq!(nothing, "reading: 0 of 0 MB (0 %), 0 MB/s");
    }
}
