//! Kubernetes quantities (`80Gi`, `250m`, `1e3`) to whole numbers and back.
//!
//! Format: <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Why a text is no quantity.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a quantity: write for example 80Gi, 500M, 2 or 250m")]
pub struct QuantityError(String);

/// The quantity in whole units (bytes, pieces), rounded up.
///
/// # Errors
/// When the text is no quantity, is negative, or does not fit 63 bits.
pub fn units(quantity: &Quantity) -> Result<i64, QuantityError> {
    let milli = parse_milli(&quantity.0)?;
    narrow((milli + 999) / 1000, &quantity.0)
}

/// The quantity in thousandths (for CPU), rounded up.
///
/// # Errors
/// As [`units`].
pub fn milli(quantity: &Quantity) -> Result<i64, QuantityError> {
    narrow(parse_milli(&quantity.0)?, &quantity.0)
}

/// A quantity of whole bytes.
#[must_use]
pub fn bytes(value: i64) -> Quantity {
    const MI: i64 = 1 << 20;
    Quantity(if value > 0 && value % MI == 0 {
        format!("{}Mi", value / MI)
    } else {
        value.to_string()
    })
}

/// Bytes for a human: `3.1 GiB`.
#[must_use]
pub fn human(value: i64) -> String {
    let mut scaled = value as f64;
    let mut unit = None;
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if scaled.abs() < 1024.0 {
            break;
        }
        scaled /= 1024.0;
        unit = Some(next);
    }
    unit.map_or(format!("{value} B"), |unit| format!("{scaled:.1} {unit}"))
}

fn narrow(value: i128, text: &str) -> Result<i64, QuantityError> {
    i64::try_from(value).map_err(|_| QuantityError(text.chars().take(64).collect()))
}

fn parse_milli(text: &str) -> Result<i128, QuantityError> {
    let error = || QuantityError(text.chars().take(64).collect());
    let split = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty())
        || whole.len() > 19
        || fraction.len() > 9
        || fraction.contains('.')
    {
        return Err(error());
    }
    let digits: i128 = format!("{whole}{fraction}").parse().map_err(|_| error())?;
    let (numerator, denominator) = scale(suffix).ok_or_else(error)?;
    let divisor = 10i128.pow(u32::try_from(fraction.len()).map_err(|_| error())?) * denominator;
    // At most 28 digits times 1e18 times 1000 could pass 127 bits: refuse instead of wrapping.
    let scaled = digits
        .checked_mul(numerator)
        .and_then(|v| v.checked_mul(1000))
        .ok_or_else(error)?;
    Ok((scaled + divisor - 1) / divisor)
}

/// What a suffix multiplies by, as a fraction.
fn scale(suffix: &str) -> Option<(i128, i128)> {
    let power = |index: u32, base: i128| Some((base.pow(index), 1));
    match suffix {
        "" => Some((1, 1)),
        "n" => Some((1, 1_000_000_000)),
        "u" => Some((1, 1_000_000)),
        "m" => Some((1, 1_000)),
        "k" => power(1, 1000),
        "M" => power(2, 1000),
        "G" => power(3, 1000),
        "T" => power(4, 1000),
        "P" => power(5, 1000),
        "E" => power(6, 1000),
        "Ki" => power(1, 1024),
        "Mi" => power(2, 1024),
        "Gi" => power(3, 1024),
        "Ti" => power(4, 1024),
        "Pi" => power(5, 1024),
        "Ei" => power(6, 1024),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            match exponent {
                0..=18 => Some((10i128.pow(exponent.unsigned_abs()), 1)),
                -9..0 => Some((1, 10i128.pow(exponent.unsigned_abs()))),
                _ => None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn q(text: &str) -> Quantity {
        Quantity(text.to_owned())
    }

    #[test]
    fn reads_every_form() {
        for (text, expected) in [
            ("80Gi", 80 << 30),
            ("500M", 500_000_000),
            ("2", 2),
            ("1.5Gi", 3 << 29),
            ("1e3", 1000),
            ("250m", 1),
            ("0", 0),
            (".5Ki", 512),
        ] {
            assert_eq!(units(&q(text)), Ok(expected), "{text}");
        }
        assert_eq!(milli(&q("250m")), Ok(250));
        assert_eq!(milli(&q("1.5")), Ok(1500));
        assert_eq!(milli(&q("1n")), Ok(1));
    }

    #[test]
    fn refuses_what_is_none() {
        for text in [
            "",
            "-1",
            "Gi",
            "1.2.3",
            "8 Gi",
            "1e99",
            "99999999999999999999",
            "9999999999999999999E",
            "1x",
        ] {
            assert!(units(&q(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn speaks_to_humans() {
        assert_eq!(human(512), "512 B");
        assert_eq!(human(3 << 29), "1.5 GiB");
        assert_eq!(bytes(80 << 30), q("81920Mi"));
        assert_eq!(bytes(1000), q("1000"));
    }
}
