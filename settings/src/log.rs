//! What a program logs, by the environment variable `LLAMERO_LOG`.

use std::env;
use std::ffi::OsStr;

use tracing_subscriber::EnvFilter;

/// The variable.
const VARIABLE: &str = "LLAMERO_LOG";
/// What is logged unless something else is asked for.
const USUAL: &str = "info";

/// The variable holds no filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{VARIABLE} is {written:?}; write a filter such as info, or info,llamero_gateway=debug")]
pub struct FilterError {
    written: String,
}

/// The filter that the environment asks for; `info` when it asks for none.
///
/// # Errors
/// As [`filter_or`].
pub fn filter() -> Result<EnvFilter, FilterError> {
    filter_or(USUAL)
}

/// The filter that the environment asks for; `usual` when it asks for none.
///
/// # Errors
/// The variable holds something else: a program that starts with a filter nobody asked for hides what is looked for.
pub fn filter_or(usual: &str) -> Result<EnvFilter, FilterError> {
    parse(env::var_os(VARIABLE).as_deref(), usual)
}

/// The filter that a text asks for.
///
/// # Errors
/// It is none.
pub fn read(text: &str) -> Result<EnvFilter, FilterError> {
    parse(Some(OsStr::new(text)), USUAL)
}

fn parse(written: Option<&OsStr>, usual: &str) -> Result<EnvFilter, FilterError> {
    let written = written.filter(|written| !written.is_empty());
    let refused = || FilterError {
        written: written.unwrap_or_default().to_string_lossy().into_owned(),
    };
    let text = written.map_or(Some(usual), OsStr::to_str).ok_or_else(refused)?;
    EnvFilter::try_new(text).map_err(|_| refused())
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    #[test]
    fn a_wrong_filter_is_told() {
        for (written, filter) in [
            (None, "warn"),
            (Some(""), "warn"),
            (Some("llamero_gateway=debug"), "llamero_gateway=debug"),
        ] {
            assert_eq!(
                parse(written.map(OsStr::new), "warn").unwrap().to_string(),
                filter
            );
        }
        for written in [OsStr::new("llamero=loud=er"), OsStr::from_bytes(b"info\xff")] {
            let error = parse(Some(written), USUAL).unwrap_err().to_string();
            assert!(
                error.contains("LLAMERO_LOG is \"") && error.contains("such as info"),
                "{error}"
            );
        }
    }
}
