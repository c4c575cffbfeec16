//! Events (events.k8s.io/v1) for `kubectl describe`. They never hold up a pass: a task of its own sends them, and when it is far behind
//! some are left out. What is said again about an object becomes a series of the first Event; other words make a new one.

use std::{collections::HashMap, time::Duration};

use k8s_openapi::{
    api::{
        core::v1::ObjectReference,
        events::v1::{Event, EventSeries},
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use llamero_api::labels::FIELD_MANAGER;
use serde_json::json;
use tokio::{sync::mpsc, time::Instant};
use tracing::debug;

use crate::apply::{Index, Subject};

const QUEUE: usize = 256;
/// The same thing is said about an object at most this often.
const REPEAT: Duration = Duration::from_secs(60);
/// What was not said again for this long begins a new Event.
const SERIES: Duration = Duration::from_secs(360);
/// Longest note that the API server takes, in bytes.
const NOTE: usize = 1024;

/// Something to say about an object.
#[derive(Clone, Debug, PartialEq)]
struct Note {
    about: ObjectReference,
    related: Option<ObjectReference>,
    warning: bool,
    reason: String,
    action: String,
    note: String,
}

/// Where Events are dropped off.
pub struct Events(mpsc::Sender<Note>);

impl Events {
    /// Starts the task that sends them.
    #[must_use]
    pub fn start(client: Client, instance: String) -> Self {
        let (queue, mut notes) = mpsc::channel::<Note>(QUEUE);
        tokio::spawn(async move {
            let mut memory = Memory::default();
            while let Some(note) = notes.recv().await {
                let Some(delivery) = memory.deliver(&note) else {
                    continue;
                };
                let send = send(&client, &instance, &note, &delivery);
                match tokio::time::timeout(Duration::from_secs(5), send).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => debug!(%error, "could not record an Event"),
                    Err(_) => debug!("could not record an Event in time"),
                }
            }
        });
        Self(queue)
    }

    /// Records an Event about the subject; what is said of a group is also said of its deployment, where people look first.
    pub fn publish(
        &self,
        index: &Index,
        subject: &Subject,
        warning: bool,
        reason: &str,
        action: &str,
        note: &str,
    ) {
        let own = index.reference(subject);
        let deployment = index.deployment_of(subject).map(Subject::Deployment);
        let deployment = deployment
            .filter(|deployment| deployment != subject)
            .and_then(|deployment| index.reference(&deployment));
        for (about, related) in [(own.clone(), deployment.clone()), (deployment, own)] {
            let Some(about) = about else { continue };
            let note = Note {
                about,
                related,
                warning,
                reason: reason.to_owned(),
                action: action.to_owned(),
                note: cut(note).to_owned(),
            };
            if self.0.try_send(note).is_err() {
                debug!(reason, "too many Events wait; one is left out");
            }
        }
    }
}

impl Events {
    /// Records a warning about an object that is none of ours.
    pub fn warn_about(&self, about: ObjectReference, reason: &str, action: &str, note: &str) {
        let note = Note {
            about,
            related: None,
            warning: true,
            reason: reason.to_owned(),
            action: action.to_owned(),
            note: cut(note).to_owned(),
        };
        if self.0.try_send(note).is_err() {
            debug!(reason, "too many Events wait; one is left out");
        }
    }
}

/// How a note reaches the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Delivery {
    /// As a new Event of this name.
    First(String),
    /// As the so many-th of the series of this Event.
    Again(String, i32),
}

/// What was said lately.
#[derive(Debug, Default)]
struct Memory(HashMap<(Option<String>, String, String), Said>);

#[derive(Debug)]
struct Said {
    name: String,
    count: i32,
    at: Instant,
}

impl Memory {
    /// How to deliver the note; not at all when the same was said a moment ago.
    fn deliver(&mut self, note: &Note) -> Option<Delivery> {
        let now = Instant::now();
        self.0.retain(|_, said| now.duration_since(said.at) < SERIES);
        let key = (note.about.uid.clone(), note.reason.clone(), note.note.clone());
        if let Some(said) = self.0.get_mut(&key) {
            if now.duration_since(said.at) < REPEAT {
                return None;
            }
            said.at = now;
            said.count = said.count.saturating_add(1);
            return Some(Delivery::Again(said.name.clone(), said.count));
        }
        let name = event_name(
            note.about.name.as_deref().unwrap_or(FIELD_MANAGER),
            Timestamp::now(),
        );
        self.0.insert(
            key,
            Said {
                name: name.clone(),
                count: 1,
                at: now,
            },
        );
        Some(Delivery::First(name))
    }
}

/// As other controllers name them: the object, a dot, the time.
fn event_name(object: &str, now: Timestamp) -> String {
    format!("{object}.{:x}", now.as_nanosecond())
}

async fn send(client: &Client, instance: &str, note: &Note, delivery: &Delivery) -> kube::Result<()> {
    let namespace = note.about.namespace.as_deref().unwrap_or("default");
    let api = Api::<Event>::namespaced(client.clone(), namespace);
    match delivery {
        Delivery::First(name) => {
            let event = event(instance, note, namespace, name, Timestamp::now());
            api.create(&PostParams::default(), &event).await?;
        }
        Delivery::Again(name, count) => {
            let series = EventSeries {
                count: *count,
                last_observed_time: MicroTime(Timestamp::now()),
            };
            let patch = Patch::Merge(json!({"series": series}));
            api.patch(name, &PatchParams::default(), &patch).await?;
        }
    }
    Ok(())
}

fn event(instance: &str, note: &Note, namespace: &str, name: &str, now: Timestamp) -> Event {
    Event {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        type_: Some(if note.warning { "Warning" } else { "Normal" }.to_owned()),
        reason: Some(note.reason.clone()),
        action: Some(note.action.clone()),
        note: Some(note.note.clone()),
        regarding: Some(note.about.clone()),
        related: note.related.clone(),
        reporting_controller: Some(FIELD_MANAGER.to_owned()),
        reporting_instance: Some(instance.to_owned()),
        ..Event::default()
    }
}

/// The longest beginning that fits and ends with a whole character.
fn cut(note: &str) -> &str {
    let end = (0..=NOTE.min(note.len()))
        .rev()
        .find(|end| note.is_char_boundary(*end));
    end.and_then(|end| note.get(..end)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(note: &str) -> Note {
        Note {
            about: ObjectReference {
                name: Some("d".into()),
                uid: Some("u".into()),
                ..ObjectReference::default()
            },
            related: None,
            warning: true,
            reason: "MemberLost".into(),
            action: "WriteGroup".into(),
            note: note.into(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_becomes_a_series_and_other_words_a_new_event() {
        let mut memory = Memory::default();
        let Some(Delivery::First(name)) = memory.deliver(&note("member 0")) else {
            panic!("new")
        };
        assert!(name.starts_with("d."));
        assert_eq!(memory.deliver(&note("member 0")), None);
        assert!(matches!(
            memory.deliver(&note("member 1")),
            Some(Delivery::First(_))
        ));
        tokio::time::advance(REPEAT).await;
        assert_eq!(
            memory.deliver(&note("member 0")),
            Some(Delivery::Again(name.clone(), 2))
        );
        tokio::time::advance(REPEAT).await;
        assert_eq!(memory.deliver(&note("member 0")), Some(Delivery::Again(name, 3)));
        tokio::time::advance(SERIES).await;
        assert!(matches!(
            memory.deliver(&note("member 0")),
            Some(Delivery::First(_))
        ));
    }

    #[test]
    fn notes_are_cut_between_characters() {
        assert_eq!(cut("short"), "short");
        assert_eq!(cut(&"é".repeat(600)).len(), 1024);
        assert_eq!(cut(&format!("a{}", "é".repeat(600))).len(), 1023);
    }
}
