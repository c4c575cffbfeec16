//! Amounts, ages, bars and tables for people.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use llamero_api::quantity::human;
use llamero_core::time::{self, Millis};

/// How long ago, as kubectl writes it: `42s`, `5m`, `3h`, `12d`.
#[must_use]
pub fn age(since: Option<&Time>, now: Millis) -> String {
    let Some(since) = since else {
        return "?".to_owned();
    };
    let seconds = (now - time::millis(since)).max(0) / 1000;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// How long something took: `0.25s`, `12.3s`, `4m05s`.
#[must_use]
pub fn seconds(millis: Millis) -> String {
    match millis.max(0) {
        few @ 0..10_000 => format!("{}.{:02}s", few / 1000, few % 1000 / 10),
        some @ 10_000..120_000 => format!("{}.{}s", some / 1000, some % 1000 / 100),
        many => format!("{}m{:02}s", many / 60_000, many / 1000 % 60),
    }
}

/// A bar of `width` cells.
#[must_use]
pub fn bar(part: i64, whole: i64, width: usize) -> String {
    let full = if whole <= 0 {
        0
    } else {
        let cells = i64::try_from(width).unwrap_or(0);
        let share = i128::from(part.clamp(0, whole)) * i128::from(cells) / i128::from(whole);
        usize::try_from(share).unwrap_or(0)
    };
    format!("{}{}", "█".repeat(full), "░".repeat(width.saturating_sub(full)))
}

/// Part of a whole in percent, rounded down so that 100 % is all of it.
#[must_use]
pub fn percent(part: i64, whole: i64) -> String {
    if whole <= 0 {
        return "-".to_owned();
    }
    format!("{} %", i128::from(part.clamp(0, whole)) * 100 / i128::from(whole))
}

/// `25.3/50.6 GiB`, in the unit of the whole.
#[must_use]
pub fn loaded(part: i64, whole: i64) -> String {
    if part >= whole {
        return human(whole);
    }
    format!("{} of {}", human(part), human(whole))
}

/// Bytes a second, in the units that disks and networks are sold in.
#[must_use]
pub fn speed(bytes: i64, millis: Millis) -> String {
    let per_second = i128::from(bytes.max(0)) * 1000 / i128::from(millis.max(1));
    match per_second {
        0..1_000_000 => format!("{} kB/s", per_second / 1000),
        1_000_000..1_000_000_000 => format!("{} MB/s", per_second / 1_000_000),
        _ => format!(
            "{}.{} GB/s",
            per_second / 1_000_000_000,
            per_second % 1_000_000_000 / 100_000_000
        ),
    }
}

/// `1 group`, `2 groups`.
#[must_use]
pub fn count(number: i64, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

/// Columns as wide as their widest cell, two spaces apart.
#[must_use]
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_for_people() {
        assert_eq!(bar(1, 2, 4), "██░░");
        assert_eq!(bar(9, 0, 2), "░░");
        assert_eq!(percent(999, 1000), "99 %");
        assert_eq!(percent(1, 0), "-");
        assert_eq!(loaded(1 << 30, 4 << 30), "1.0 GiB of 4.0 GiB");
        assert_eq!(speed(3_250_000_000, 1000), "3.2 GB/s");
        assert_eq!(speed(12_000_000, 2000), "6 MB/s");
        assert_eq!(count(1, "group"), "1 group");
        let took = [250, 12_345, 245_999, -1].map(seconds);
        assert_eq!(took, ["0.25s", "12.3s", "4m05s", "0.00s"]);
        let rows = [vec!["A".to_owned(), "B".into()], vec!["long".into(), "x".into()]];
        assert_eq!(table(&rows), "A     B\nlong  x\n");
    }

    #[test]
    fn ages_as_kubectl_writes_them() {
        let at = |seconds: i64| age(Some(&time::to_time(0)), seconds * 1000);
        assert_eq!([at(5), at(600), at(8000), at(200_000)], ["5s", "10m", "2h", "2d"]);
        assert_eq!(age(None, 0), "?");
    }
}
