//! Requests and the beginnings of answers.

use std::io::{BufRead, Write};

/// A request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Whether the Hub was asked, and not the host that it redirects to.
    pub at_hub: bool,
    /// Path and query.
    pub path: String,
    /// The token that came with it.
    pub token: Option<String>,
    /// First byte of the range.
    pub from: Option<usize>,
    /// End of the range, if it has one.
    pub to: Option<usize>,
    /// The ETag that the file must have.
    pub if_match: Option<String>,
}

/// What is asked for of a file of that size.
pub(crate) fn range(asked: &Asked, size: u64) -> std::ops::Range<u64> {
    let from = asked.from.unwrap_or(0) as u64;
    from..asked.to.map_or(size, |to| (to as u64).min(size)).max(from)
}

pub(crate) fn read_request(reader: &mut impl BufRead, at_hub: bool) -> Option<Asked> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.strip_prefix("GET ")?.split(' ').next()?.to_owned();
    let mut asked = Asked {
        at_hub,
        path,
        token: None,
        from: None,
        to: None,
        if_match: None,
    };
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            return Some(asked);
        };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => asked.token = value.strip_prefix("Bearer ").map(ToOwned::to_owned),
            "if-match" => asked.if_match = Some(value.to_owned()),
            "range" => {
                let (from, to) = value.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
                asked.from = Some(from.parse().unwrap());
                asked.to = (!to.is_empty()).then(|| to.parse::<usize>().unwrap() + 1);
            }
            _ => {}
        }
    }
}

pub(crate) fn head(to: &mut impl Write, status: &str, headers: &str, length: usize) -> Option<()> {
    write!(
        to,
        "HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\n\r\n"
    )
    .ok()
}
