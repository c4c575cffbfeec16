//! The page about a run.

use std::fmt::Write as _;

use super::picture::picture;
use super::run::Outcome;
use super::table::Verdict;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:1220px;margin:2rem auto;padding:0 1rem;color:#1f2328}\
table{border-collapse:collapse}td,th{text-align:left;padding:.15rem .8rem .15rem 0;border-bottom:1px solid #eaeef2;vertical-align:top}\
.good{color:#1a7f37}.bad{color:#cf222e}code{background:#f6f8fa;padding:.1rem .3rem}";

/// An HTML page that needs nothing else.
#[must_use]
pub fn page(outcome: &Outcome) -> String {
    let seed = outcome.options.seed;
    let again = match (outcome.options.length.as_secs(), outcome.options.only) {
        (seconds, Some(only)) => format!(
            "llamero-chaos --seed {seed} --seconds {seconds} --only '{}'",
            escape(only.name())
        ),
        (seconds, None) if seconds.is_multiple_of(60) => {
            format!("make chaos SEED={seed} MINUTES={}", seconds / 60)
        }
        (seconds, None) => format!("llamero-chaos --seed {seed} --seconds {seconds}"),
    };
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Llamero under faults, seed {seed}</title><style>{STYLE}</style>\n<h1>Llamero under faults</h1>\n"
    );
    let (class, verdict) = if outcome.findings.is_empty() {
        ("good", "Everything held.")
    } else {
        ("bad", "Something did not hold.")
    };
    let _ = writeln!(
        html,
        "<p><strong class=\"{class}\">{verdict}</strong> Repeat it with <code>{again}</code>.</p>"
    );
    if !outcome.findings.is_empty() {
        html.push_str("<ul>");
        for finding in &outcome.findings {
            let _ = write!(html, "<li class=\"bad\">{}</li>", escape(finding));
        }
        html.push_str("</ul>\n");
    }
    let count = |wanted: fn(&Verdict) -> bool| {
        outcome
            .streams
            .iter()
            .filter(|(_, verdict)| wanted(verdict))
            .count()
    };
    let _ = writeln!(
        html,
        "<p>{} streams: {} whole and byte for byte the undisturbed ones (green), {} ended by an error that is expected, the death of their own gateway (yellow), {} wrong (red).</p>",
        outcome.streams.len(),
        count(|verdict| *verdict == Verdict::Whole),
        count(|verdict| *verdict == Verdict::Expected),
        count(|verdict| matches!(verdict, Verdict::Wrong(_)))
    );
    html.push_str(&picture(outcome));
    html.push_str("\n<h2>Faults</h2><table><tr><th>from</th><th>to</th><th>what</th><th>hit</th></tr>\n");
    for happened in &outcome.faults {
        let hit = match &happened.hit {
            Ok(hit) => escape(hit),
            Err(why) => format!("nothing: {}", escape(why)),
        };
        let _ = writeln!(
            html,
            "<tr><td>{:.1} s</td><td>{:.1} s</td><td>{}</td><td>{hit}</td></tr>",
            happened.from.as_secs_f64(),
            happened.to.as_secs_f64(),
            happened.fault.kind.name()
        );
    }
    html.push_str("</table><h2>Afterwards</h2><ul>\n");
    for line in &outcome.uses {
        let _ = writeln!(html, "<li>{}</li>", escape(line));
    }
    html.push_str("</ul></html>\n");
    html
}

/// Text that means itself in HTML and SVG.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::fault::{Fault, Kind};
    use super::super::run::{Happened, Options, Outcome};
    use super::super::watch::Sample;
    use super::*;

    #[test]
    fn a_page_tells_what_was_found_and_lets_no_text_be_markup() {
        let second = Duration::from_secs(1);
        let fault = Fault {
            at: second,
            lasts: second,
            kind: Kind::CutLink,
            pick: 0,
        };
        let sample = |at: u32, ready| Sample {
            at: second * at,
            tokens: u64::from(at) * 100,
            ready,
        };
        let outcome = Outcome {
            options: Options {
                seed: 5,
                length: second * 60,
                tokens: 8,
                only: None,
            },
            faults: vec![Happened {
                fault,
                from: second,
                to: second * 2,
                hit: Ok("<node>".to_owned()),
            }],
            streams: Vec::new(),
            samples: vec![sample(0, Some(2)), sample(1, None), sample(2, Some(1))],
            uses: Vec::new(),
            findings: vec!["a <finding>".to_owned()],
        };
        let page = page(&outcome);
        for wanted in [
            "SEED=5 MINUTES=1",
            "a &lt;finding&gt;",
            "&lt;node&gt;",
            "link cut",
            "did not hold",
        ] {
            assert!(page.contains(wanted), "{wanted}");
        }
        assert!(!page.contains("<node>") && !page.contains("NaN"));
    }
}
