//! Which namespaces an installation serves: what operator and gateway are told by `--watch-namespaces`.

use std::collections::BTreeSet;

/// Namespaces that are watched one by one, with several watches each; more are served by watching all.
pub const MOST: usize = 64;

/// More than [`MOST`].
#[derive(Debug, thiserror::Error)]
#[error(
    "--watch-namespaces names {0} namespaces and takes at most {MOST}: serve all namespaces, or install Llamero once more for the rest"
)]
pub struct TooMany(usize);

/// The name of a namespace, or nothing, which a chart writes for an empty list.
///
/// # Errors
/// What is wrong, for the command line.
pub fn name(text: &str) -> Result<String, String> {
    let is_known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if text.len() <= 63 && text.bytes().all(is_known) && !text.starts_with('-') && !text.ends_with('-') {
        return Ok(text.to_owned());
    }
    Err("give names of namespaces: small letters, digits and -, at most 63".to_owned())
}

/// The namespaces that are served; None: all.
///
/// # Errors
/// [`TooMany`].
pub fn served(names: &[String]) -> Result<Option<BTreeSet<String>>, TooMany> {
    let named: BTreeSet<String> = names.iter().filter(|name| !name.is_empty()).cloned().collect();
    match named.len() {
        0 => Ok(None),
        1..=MOST => Ok(Some(named)),
        more => Err(TooMany(more)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_labels() {
        for right in ["", "a", "team-1", &"n".repeat(63)] {
            assert_eq!(name(right).as_deref(), Ok(right));
        }
        for wrong in ["A", "a b", "-a", "a-", "a/b", "*", &"n".repeat(64)] {
            assert!(name(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn all_or_some_but_not_too_many_are_served() {
        let of = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            served(&names).map(|served| served.map(Vec::from_iter))
        };
        assert_eq!(of(&[""]).unwrap(), None);
        assert_eq!(of(&["b", "a", "b"]).unwrap().unwrap(), ["a", "b"]);
        let many: Vec<String> = (0..=MOST).map(|number| format!("n{number}")).collect();
        let told = served(&many).unwrap_err().to_string();
        assert!(
            told.contains("65 namespaces") && told.contains("at most 64"),
            "{told}"
        );
    }
}
