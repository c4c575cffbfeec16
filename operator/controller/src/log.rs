//! What is logged, and how it is changed while the operator runs: by a file, which is a ConfigMap's in a pod.

use std::{io::IsTerminal as _, path::PathBuf, time::Duration};

use llamero_settings::log;
use tracing::{info, warn};
use tracing_subscriber::{EnvFilter, fmt};

use crate::options::LogFormat;

/// How often the file is read.
const LOOK: Duration = Duration::from_secs(5);

/// Sets another filter.
type Set = Box<dyn Fn(EnvFilter) -> Result<(), tracing_subscriber::reload::Error> + Send>;

/// Begins to log with this filter; what is returned sets another one.
#[must_use]
pub fn start(filter: EnvFilter, format: LogFormat) -> Set {
    let log = fmt()
        // Who reads the log may be gone: then nothing is told, instead of a panic of whoever tells.
        .log_internal_errors(false)
        .with_env_filter(quiet(filter))
        .with_ansi(std::io::stdout().is_terminal());
    match format {
        LogFormat::Text => {
            let log = log.with_filter_reloading();
            let handle = log.reload_handle();
            log.init();
            Box::new(move |filter| handle.reload(quiet(filter)))
        }
        LogFormat::Json => {
            let log = log.json().with_filter_reloading();
            let handle = log.reload_handle();
            log.init();
            Box::new(move |filter| handle.reload(quiet(filter)))
        }
    }
}

/// The client's own lines say again, with less, what ours say.
fn quiet(filter: EnvFilter) -> EnvFilter {
    match "kube_client::client::builder=off".parse() {
        Ok(directive) => filter.add_directive(directive),
        Err(_) => filter,
    }
}

/// Follows the file for ever. One that is not there, or holds no filter, changes nothing; the latter is told.
pub async fn follow(file: PathBuf, set: Set) {
    // What was begun with needs no line.
    let mut last = std::env::var("LLAMERO_LOG").ok();
    loop {
        if let Some(filter) = changed(
            tokio::task::spawn_blocking({
                let file = file.clone();
                move || std::fs::read_to_string(file).ok()
            })
            .await
            .ok()
            .flatten(),
            &mut last,
        ) {
            let shown = filter.to_string();
            match set(filter) {
                Ok(()) => info!(filter = shown, "what is logged was changed"),
                Err(error) => warn!(%error, "what is logged cannot be changed"),
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The filter that the file asks for, if it asks for another one than last time.
fn changed(text: Option<String>, last: &mut Option<String>) -> Option<EnvFilter> {
    let text = text?.trim().to_owned();
    if text.is_empty() || last.as_ref() == Some(&text) {
        return None;
    }
    let filter = log::read(&text);
    *last = Some(text);
    filter.map_err(|error| warn!("{error}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_and_is_a_filter_changes_anything() {
        let mut last = None;
        let mut look =
            |text: Option<&str>| changed(text.map(str::to_owned), &mut last).map(|filter| filter.to_string());
        assert_eq!(look(None), None);
        assert_eq!(look(Some("debug\n")).as_deref(), Some("debug"));
        assert_eq!(look(Some("debug")), None);
        assert_eq!(look(Some("llamero=loud=er")), None);
        assert_eq!(look(Some(" ")), None);
        assert_eq!(look(Some("debug")).as_deref(), Some("debug"));
    }
}
