//! Events for `kubectl describe`. They never hold up a pass: a task of its own sends them, and when it is far behind some are left out.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use llamero_api::labels::FIELD_MANAGER;
use tokio::{sync::mpsc, time::Instant};
use tracing::debug;

use crate::apply::{Subject, View};

const QUEUE: usize = 256;
/// The same thing is said about an object at most this often.
const REPEAT: Duration = Duration::from_secs(60);
/// Longest note that the API server takes, in bytes.
const NOTE: usize = 1024;

/// Where Events are dropped off.
pub struct Events {
    queue: mpsc::Sender<(Event, ObjectReference)>,
    said: Mutex<HashMap<(String, String, String), Instant>>,
}

impl Events {
    /// Starts the task that sends them.
    #[must_use]
    pub fn start(client: Client, instance: String) -> Self {
        let reporter = Reporter {
            controller: FIELD_MANAGER.to_owned(),
            instance: Some(instance),
        };
        let recorder = Recorder::new(client, reporter);
        let (queue, mut events) = mpsc::channel::<(Event, ObjectReference)>(QUEUE);
        tokio::spawn(async move {
            while let Some((event, reference)) = events.recv().await {
                let send = recorder.publish(&event, &reference);
                match tokio::time::timeout(Duration::from_secs(5), send).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => debug!(%error, "could not record an Event"),
                    Err(_) => debug!("could not record an Event in time"),
                }
            }
        });
        Self {
            queue,
            said: Mutex::default(),
        }
    }

    /// Records an Event about the subject; what is said of a group is also said of its deployment, where people look first.
    pub fn publish(
        &self,
        view: &View,
        subject: &Subject,
        warning: bool,
        reason: &str,
        action: &str,
        note: &str,
    ) {
        let deployment = view.deployment_of(subject).map(Subject::Deployment);
        let about: Vec<_> = [
            Some(subject.clone()),
            deployment.filter(|deployment| deployment != subject),
        ]
        .into_iter()
        .flatten()
        .filter_map(|subject| view.reference(&subject))
        .collect();
        for (index, reference) in about.iter().enumerate() {
            if !self.is_news(reference.uid.as_deref().unwrap_or_default(), reason, note) {
                continue;
            }
            let event = Event {
                type_: if warning {
                    EventType::Warning
                } else {
                    EventType::Normal
                },
                reason: reason.to_owned(),
                note: Some(cut(note).to_owned()),
                action: action.to_owned(),
                secondary: about
                    .get(1 - index.min(1))
                    .filter(|other| *other != reference)
                    .cloned(),
            };
            if self.queue.try_send((event, reference.clone())).is_err() {
                debug!(reason, "too many Events wait; one is left out");
            }
        }
    }

    fn is_news(&self, uid: &str, reason: &str, note: &str) -> bool {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        said.retain(|_, at| now.duration_since(*at) < REPEAT);
        let mut news = false;
        said.entry((uid.to_owned(), reason.to_owned(), note.to_owned()))
            .or_insert_with(|| {
                news = true;
                now
            });
        news
    }
}

/// The longest beginning that fits and ends with a whole character.
fn cut(note: &str) -> &str {
    let end = (0..=NOTE.min(note.len()))
        .rev()
        .find(|end| note.is_char_boundary(*end));
    &note[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_same_is_said_once_a_minute() {
        let (queue, _events) = mpsc::channel(1);
        let events = Events {
            queue,
            said: Mutex::default(),
        };
        assert!(events.is_news("u", "Refused", "no"));
        assert!(!events.is_news("u", "Refused", "no"));
        assert!(events.is_news("u", "Refused", "still no"));
        tokio::time::advance(REPEAT).await;
        assert!(events.is_news("u", "Refused", "no"));
    }

    #[test]
    fn notes_are_cut_between_characters() {
        assert_eq!(cut("short"), "short");
        assert_eq!(cut(&"é".repeat(600)).len(), 1024);
        assert_eq!(cut(&format!("a{}", "é".repeat(600))).len(), 1023);
    }
}
