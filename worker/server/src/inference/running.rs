//! Requests under way by the ids that clients gave them, so that they can be aborted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;
use tonic::Status;

type Requests = Arc<Mutex<HashMap<String, CancellationToken>>>;

/// All requests under way. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Running(Requests);

/// A request's place among those under way; gives it back when dropped.
#[derive(Debug)]
pub struct Entry {
    id: String,
    requests: Requests,
    /// Fires when the request is aborted.
    pub abort: CancellationToken,
}

impl Running {
    /// Enter a request. One without an id cannot be aborted by id.
    ///
    /// # Errors
    /// ALREADY_EXISTS when a request with that id is under way.
    pub fn enter(&self, id: &str) -> Result<Entry, Status> {
        let abort = CancellationToken::new();
        if !id.is_empty() {
            let mut requests = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if requests.contains_key(id) {
                return Err(Status::already_exists(format!(
                    "a request with the id {id:?} is under way; give every request its own id"
                )));
            }
            requests.insert(id.to_owned(), abort.clone());
        }
        Ok(Entry {
            id: id.to_owned(),
            requests: Arc::clone(&self.0),
            abort,
        })
    }

    /// Abort a request. That there is none is fine: it has just ended.
    pub fn abort(&self, id: &str) {
        if let Some(abort) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(id) {
            abort.cancel();
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if !self.id.is_empty() {
            self.requests
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_free_again_after_its_request() {
        let running = Running::default();
        let entry = running.enter("a").unwrap();
        assert!(running.enter("a").unwrap_err().message().contains("its own id"));
        running.abort("a");
        running.abort("b");
        assert!(entry.abort.is_cancelled());
        drop(entry);
        assert!(!running.enter("a").unwrap().abort.is_cancelled());
        let _two = (running.enter("").unwrap(), running.enter("").unwrap());
    }
}
