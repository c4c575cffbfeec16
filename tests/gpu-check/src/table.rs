//! The results of a run as one table, which names the card: `table.json`, and `table.md` for `docs/benchmarks`.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};

/// What the project aims at: the share of the read bandwidth that a figure should have at least.
struct Mark {
    name: &'static str,
    batch: u64,
    share: f64,
}

const MARKS: [Mark; 2] = [
    Mark {
        name: "8B",
        batch: 1,
        share: 0.75,
    },
    Mark {
        name: "405B, a rank of 8",
        batch: 1,
        share: 0.75,
    },
];

/// Write the table of `results.jsonl`, and print it.
///
/// # Errors
/// There are no results.
pub fn write(folder: &Path) -> anyhow::Result<()> {
    let path = folder.join("results.jsonl");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let results: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let table = table(&results);
    fs::write(folder.join("table.json"), format!("{table:#}\n"))?;
    let shown = show(&table);
    fs::write(folder.join("table.md"), &shown)?;
    print!("{shown}");
    Ok(())
}

/// The card, how many tests passed, and every figure with its share of the read bandwidth.
fn table(results: &[Value]) -> Value {
    let last = |stage: &str| results.iter().rfind(|result| result["stage"] == stage);
    let bandwidth = last("read").and_then(|read| read["bytes_per_second"].as_f64());
    let passed = |wanted: bool| results.iter().filter(|result| result["passed"] == wanted).count();
    let is_figure = |result: &&Value| {
        let stage = result["stage"].as_str().unwrap_or_default();
        ["product", "exchange", "decode", "prefill"].contains(&stage) && result["test"].is_null()
    };
    let figures = results.iter().filter(is_figure);
    let figures: Vec<Value> = figures.map(|figure| with_share(figure, bandwidth)).collect();
    json!({"card": last("device"), "read_bytes_per_second": bandwidth,
        "tests": {"passed": passed(true), "failed": passed(false)}, "figures": figures})
}

fn with_share(figure: &Value, bandwidth: Option<f64>) -> Value {
    let mut figure = figure.clone();
    let Some((found, all)) = figure["bytes_per_second"].as_f64().zip(bandwidth) else {
        return figure;
    };
    figure["share"] = json!(found / all);
    let mark = MARKS
        .iter()
        .find(|mark| figure["name"] == mark.name && figure["batch"] == mark.batch);
    if let Some(mark) = mark {
        figure["mark"] = json!({"share": mark.share, "met": found / all >= mark.share});
    }
    figure
}

fn show(table: &Value) -> String {
    let number = |value: &Value, factor: f64, digits: usize| {
        value
            .as_f64()
            .map_or_else(String::new, |value| format!("{:.digits$}", value * factor))
    };
    let card = &table["card"];
    let text = |value: &Value| value.as_str().unwrap_or("unknown").to_owned();
    let mut out = format!(
        "{}, compute capability {}, {} GiB, driver for CUDA {}; kernels {}; reads {} GB/s; {} tests passed, {} failed\n\n",
        text(&card["name"]),
        text(&card["capability"]),
        number(&card["memory"], 1.0 / f64::from(1 << 30), 1),
        text(&card["cuda"]),
        text(&card["kernels"]),
        number(&table["read_bytes_per_second"], 1e-9, 0),
        table["tests"]["passed"],
        table["tests"]["failed"],
    );
    out.push_str("| what | | rows | context | ms | tokens/s | GB/s | share of the read | mark |\n|---|---|---|---|---|---|---|---|---|\n");
    for figure in table["figures"].as_array().into_iter().flatten() {
        let plain = |name: &str| figure[name].as_u64().map_or_else(String::new, |n| n.to_string());
        let rows = plain("rows") + &plain("batch") + &plain("tokens");
        let mark = match figure["mark"]["met"].as_bool() {
            Some(met) => format!(
                "{} % {}",
                number(&figure["mark"]["share"], 100.0, 0),
                if met { "met" } else { "missed" }
            ),
            None => String::new(),
        };
        let share = number(&figure["share"], 100.0, 0);
        let percent = if share.is_empty() { "" } else { " %" };
        let _ = writeln!(
            out,
            "| {} | {} | {rows} | {} | {} | {} | {} | {share}{percent} | {mark} |",
            text(&figure["stage"]),
            text(&figure["name"]),
            plain("context"),
            number(&figure["seconds"], 1e3, 2),
            number(&figure["tokens_per_second"], 1.0, 0),
            number(&figure["bytes_per_second"], 1e-9, 0),
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_card_is_named_and_marks_are_judged() {
        let results = [
            json!({"stage": "device", "name": "NVIDIA H100", "capability": "9.0", "memory": 85_899_345_920u64, "cuda": "13.0",
                "kernels": "abc"}),
            json!({"stage": "read", "bytes_per_second": 3e12}),
            json!({"stage": "product", "test": "a", "passed": true}),
            json!({"stage": "layer", "test": "b", "passed": false}),
            json!({"stage": "decode", "name": "8B", "batch": 1, "context": 300, "seconds": 0.003, "tokens_per_second": 333.0,
                "bytes_per_second": 2.4e12}),
            json!({"stage": "decode", "name": "8B", "batch": 64, "context": 300, "seconds": 0.01, "tokens_per_second": 6400.0,
                "bytes_per_second": 1e12}),
            json!({"stage": "decode", "name": "405B, a rank of 8", "batch": 1, "context": 300, "seconds": 0.03,
                "tokens_per_second": 33.0, "bytes_per_second": 1.5e12}),
        ];
        let table = table(&results);
        assert_eq!(table["tests"], json!({"passed": 1, "failed": 1}));
        let shown = show(&table);
        assert!(
            shown.contains("NVIDIA H100, compute capability 9.0, 80.0 GiB, driver for CUDA 13.0; kernels abc; reads 3000 GB/s"),
            "{shown}"
        );
        assert!(
            shown.contains("| decode | 8B | 1 | 300 | 3.00 | 333 | 2400 | 80 % | 75 % met |"),
            "{shown}"
        );
        assert!(
            shown.contains("| 64 | 300 | 10.00 | 6400 | 1000 | 33 % |  |"),
            "{shown}"
        );
        assert!(shown.contains("| 50 % | 75 % missed |"), "{shown}");
    }
}
