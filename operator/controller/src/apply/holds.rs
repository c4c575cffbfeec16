//! Refused steps wait before they are tried again: what somebody must change first is not helped by asking at every wake-up.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use llamero_core::Action;
use tokio::time::Instant;

use super::{Failure, Subject};

const FIRST: Duration = Duration::from_secs(1);
const LAST: Duration = Duration::from_secs(30);

/// Refused steps by subject and kind, until when they wait.
#[derive(Debug, Default)]
pub struct Holds(Mutex<HashMap<(Subject, &'static str), Hold>>);

#[derive(Clone, Debug)]
struct Hold {
    // The step as it was: another one of its kind is tried at once.
    action: String,
    failure: Failure,
    until: Instant,
    pause: Duration,
}

impl Holds {
    /// The failure of this very step if it is to wait still; it stands until the step is tried again.
    #[must_use]
    pub fn held(&self, subject: &Subject, kind: &'static str, action: &Action) -> Option<Failure> {
        let holds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let hold = holds
            .get(&(subject.clone(), kind))
            .filter(|hold| hold.until > Instant::now())?;
        (hold.action == format!("{action:?}")).then(|| hold.failure.clone())
    }

    /// The step was refused: it waits, twice as long as the last time.
    pub fn refuse(&self, action: &Action, failure: &Failure) {
        let mut holds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let action = format!("{action:?}");
        let key = (failure.subject.clone(), failure.action);
        let before = holds
            .get(&key)
            .filter(|hold| hold.action == action)
            .map(|hold| hold.pause);
        let pause = before.map_or(FIRST, |pause| (pause * 2).min(LAST));
        let hold = Hold {
            action,
            failure: failure.clone(),
            until: Instant::now() + pause,
            pause,
        };
        holds.insert(key, hold);
    }

    /// A step of this kind went through.
    pub fn release(&self, subject: &Subject, kind: &'static str) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&(subject.clone(), kind));
    }

    /// Forgets subjects that were not refused for long.
    pub fn forget(&self) {
        let now = Instant::now();
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, hold| now < hold.until + LAST * 2);
    }
}

#[cfg(test)]
mod tests {
    use llamero_core::Key;

    use super::*;
    use crate::apply::error::Remedy;

    const KIND: &str = "ApplyService";

    #[tokio::test(start_paused = true)]
    async fn a_refused_step_waits_longer_each_time_and_others_do_not() {
        let key = Key {
            namespace: "n".into(),
            name: "d".into(),
        };
        let service = |uid: &str| Action::ApplyService {
            deployment: key.clone(),
            deployment_uid: uid.into(),
        };
        let subject = Subject::Deployment(key.clone());
        let failure = Failure {
            subject: subject.clone(),
            action: KIND,
            message: "no".into(),
            remedy: Remedy::User,
        };
        let holds = Holds::default();
        assert_eq!(holds.held(&subject, KIND, &service("a")), None);
        holds.refuse(&service("a"), &failure);
        assert_eq!(holds.held(&subject, KIND, &service("a")), Some(failure.clone()));
        assert_eq!(holds.held(&subject, KIND, &service("b")), None);
        tokio::time::advance(FIRST).await;
        assert_eq!(holds.held(&subject, KIND, &service("a")), None);
        holds.refuse(&service("a"), &failure);
        tokio::time::advance(FIRST).await;
        assert!(holds.held(&subject, KIND, &service("a")).is_some());
        tokio::time::advance(FIRST).await;
        assert_eq!(holds.held(&subject, KIND, &service("a")), None);
        holds.refuse(&service("a"), &failure);
        holds.release(&subject, KIND);
        assert_eq!(holds.held(&subject, KIND, &service("a")), None);
    }
}
