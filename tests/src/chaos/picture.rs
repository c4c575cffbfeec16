//! The timeline of a run as SVG: faults by the part that they hit, tokens a second, groups that serve, and every stream.

use std::fmt::Write as _;
use std::time::Duration;

use super::fault::Part;
use super::request::STREAMS;
use super::run::{Happened, Outcome};
use super::table::{Ended, Verdict};
use super::watch::Sample;

const LEFT: f64 = 110.0;
const WIDTH: f64 = 1080.0;
const ROW: f64 = 16.0;
const CURVE: f64 = 70.0;
const STREAM: f64 = 4.0;
/// Beyond so many streams, whole ones that follow each other are one bar.
const MANY: usize = 4000;
const PARTS: [(Part, &str, &str); 5] = [
    (Part::Worker, "workers", "#8250df"),
    (Part::Operator, "operator", "#0969da"),
    (Part::Gateway, "gateway", "#bf8700"),
    (Part::Network, "network", "#1b7c83"),
    (Part::Cluster, "cluster", "#57606a"),
];

/// From times to places on the page.
struct Scale {
    end: f64,
}

impl Scale {
    fn x(&self, at: Duration) -> f64 {
        LEFT + at.as_secs_f64() / self.end * WIDTH
    }

    fn width(&self, from: Duration, to: Duration, least: f64) -> f64 {
        (self.x(to) - self.x(from)).max(least)
    }
}

/// The picture, without an XML header, to stand in a page or alone.
#[must_use]
pub fn picture(outcome: &Outcome) -> String {
    let last = outcome
        .samples
        .last()
        .map_or(outcome.options.length, |sample| sample.at);
    let ends = outcome.streams.iter().map(|(ended, _)| ended.ended);
    let end = ends
        .max()
        .unwrap_or_default()
        .max(last)
        .max(outcome.options.length);
    let scale = Scale {
        end: end.as_secs_f64().max(1.0),
    };
    let faults = 20.0;
    let tokens = faults + PARTS.len() as f64 * ROW + 20.0;
    let ready = tokens + CURVE + 24.0;
    let streams = ready + ROW * 2.0 + 24.0;
    let bottom = streams + STREAMS as f64 * STREAM;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"timeline\" font-family=\"system-ui,sans-serif\" font-size=\"11\">",
        LEFT + WIDTH + 20.0,
        bottom + 30.0
    );
    svg.push_str("<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>");
    draw_times(&mut svg, &scale, faults, bottom);
    for happened in &outcome.faults {
        draw_fault(&mut svg, &scale, happened, faults, bottom);
    }
    for (row, (_, name, _)) in PARTS.iter().enumerate() {
        label(&mut svg, faults + row as f64 * ROW + 11.0, name);
    }
    draw_tokens(&mut svg, &scale, &outcome.samples, tokens);
    draw_ready(&mut svg, &scale, &outcome.samples, ready);
    label(&mut svg, streams + 12.0, &format!("{STREAMS} streams"));
    draw_streams(&mut svg, &scale, &outcome.streams, streams);
    svg.push_str("</svg>");
    svg
}

fn label(svg: &mut String, y: f64, text: &str) {
    let _ = write!(
        svg,
        "<text x=\"{}\" y=\"{y}\" text-anchor=\"end\">{text}</text>",
        LEFT - 8.0
    );
}

fn draw_times(svg: &mut String, scale: &Scale, top: f64, bottom: f64) {
    let steps = [5_u64, 10, 30, 60, 300, 600];
    let step = steps
        .into_iter()
        .find(|step| scale.end / *step as f64 <= 14.0)
        .unwrap_or(1800);
    let mut at = Duration::ZERO;
    while at.as_secs_f64() <= scale.end {
        let x = scale.x(at);
        let _ = write!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{top}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"#eaeef2\"/><text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#57606a\">{} s</text>",
            bottom + 16.0,
            at.as_secs()
        );
        at += Duration::from_secs(step);
    }
}

fn draw_fault(svg: &mut String, scale: &Scale, happened: &Happened, top: f64, bottom: f64) {
    let part = happened.fault.kind.part();
    let Some((row, (_, _, colour))) = PARTS.iter().enumerate().find(|(_, (one, _, _))| *one == part) else {
        return;
    };
    let (x, width) = (
        scale.x(happened.from),
        scale.width(happened.from, happened.to, 3.0),
    );
    let y = top + row as f64 * ROW + 2.0;
    let opacity = if happened.hit.is_ok() { 1.0 } else { 0.25 };
    let hit = happened.hit.as_ref().unwrap_or_else(|why| why);
    let title = super::report::escape(&format!("{}: {hit}", happened.fault.kind.name()));
    let _ = write!(
        svg,
        "<rect x=\"{x:.1}\" y=\"{top}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"{colour}\" opacity=\"0.07\"/><rect x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"{}\" rx=\"2\" fill=\"{colour}\" opacity=\"{opacity}\"><title>{title}</title></rect>",
        bottom - top,
        ROW - 4.0
    );
}

fn draw_tokens(svg: &mut String, scale: &Scale, samples: &[Sample], top: f64) {
    let rates: Vec<(f64, f64)> = samples
        .windows(2)
        .map(|pair| {
            let seconds = (pair[1].at - pair[0].at).as_secs_f64().max(0.001);
            (
                scale.x(pair[1].at),
                (pair[1].tokens - pair[0].tokens) as f64 / seconds,
            )
        })
        .collect();
    let most = rates.iter().map(|(_, rate)| *rate).fold(1.0, f64::max);
    let bottom = top + CURVE;
    let mut path = format!("M{LEFT:.1} {bottom:.1}");
    for (x, rate) in &rates {
        let _ = write!(path, "L{x:.1} {:.1}", bottom - rate / most * CURVE);
    }
    let end = rates.last().map_or(LEFT, |(x, _)| *x);
    let _ = write!(
        svg,
        "<path d=\"{path}L{end:.1} {bottom:.1}Z\" fill=\"#ddf4ff\" stroke=\"#0969da\"/>"
    );
    label(svg, top + 12.0, "tokens a second");
    label(svg, top + 26.0, &format!("at most {most:.0}"));
}

fn draw_ready(svg: &mut String, scale: &Scale, samples: &[Sample], top: f64) {
    label(svg, top + 12.0, "serving groups");
    for pair in samples.windows(2) {
        let (x, width) = (scale.x(pair[0].at), scale.width(pair[0].at, pair[1].at, 0.1));
        let (height, colour) = match pair[0].ready {
            None => (ROW * 2.0, "#eaeef2"),
            Some(ready) => (f64::from(ready) * ROW, "#4ac26b"),
        };
        let _ = write!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{width:.2}\" height=\"{height:.1}\" fill=\"{colour}\"/>",
            top + ROW * 2.0 - height
        );
    }
}

fn draw_streams(svg: &mut String, scale: &Scale, streams: &[(Ended, Verdict)], top: f64) {
    let mut rows: Vec<Vec<(Duration, Duration, &Verdict)>> = vec![Vec::new(); STREAMS];
    let mut sorted: Vec<&(Ended, Verdict)> = streams.iter().collect();
    sorted.sort_by_key(|(ended, _)| ended.began);
    for (ended, verdict) in sorted {
        let Some(row) = rows.get_mut(ended.stream) else {
            continue;
        };
        match row.last_mut() {
            Some(last) if streams.len() > MANY && *last.2 == Verdict::Whole && *verdict == Verdict::Whole => {
                last.1 = ended.ended;
            }
            _ => row.push((ended.began, ended.ended, verdict)),
        }
    }
    for (index, row) in rows.iter().enumerate() {
        let y = top + index as f64 * STREAM;
        for (from, to, verdict) in row {
            let colour = match verdict {
                Verdict::Whole => "#4ac26b",
                Verdict::Expected => "#d4a72c",
                Verdict::Wrong(_) => "#cf222e",
            };
            let (x, width) = (scale.x(*from), scale.width(*from, *to, 1.0) - 0.8);
            let _ = write!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{y}\" width=\"{:.1}\" height=\"{}\" fill=\"{colour}\"/>",
                width.max(0.5),
                STREAM - 0.8
            );
        }
    }
}
