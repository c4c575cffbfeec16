//! A bounded amount of memory, in bytes, that many requests share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// So many bytes and no more. Clones share them.
#[derive(Debug, Clone)]
pub struct Budget {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    limit: usize,
    used: AtomicUsize,
}

impl Budget {
    /// A budget of `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            inner: Arc::new(Inner {
                limit,
                used: AtomicUsize::new(0),
            }),
        }
    }

    /// Take `bytes` until the share is dropped; `None` when so much is not left.
    #[must_use]
    pub fn take(&self, bytes: usize) -> Option<Share> {
        let mut share = Share {
            inner: Arc::clone(&self.inner),
            bytes: 0,
        };
        share.grow(bytes).then_some(share)
    }

    /// Bytes taken at present.
    #[must_use]
    pub fn used(&self) -> usize {
        self.inner.used.load(Ordering::Relaxed)
    }

    /// All bytes.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.inner.limit
    }
}

/// A part of a [`Budget`], given back when dropped.
#[derive(Debug)]
pub struct Share {
    inner: Arc<Inner>,
    bytes: usize,
}

impl Share {
    /// Take `bytes` more. False, and nothing is taken, when so much is not left.
    #[must_use]
    pub fn grow(&mut self, bytes: usize) -> bool {
        let limit = self.inner.limit;
        let grown = self
            .inner
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|&used| used <= limit)
            });
        if grown.is_ok() {
            self.bytes += bytes;
        }
        grown.is_ok()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.inner.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_holds_and_bytes_come_back() {
        let budget = Budget::new(10);
        let mut first = budget.take(6).unwrap();
        assert!(budget.take(5).is_none());
        assert!(first.grow(4) && !first.grow(1));
        assert_eq!(budget.used(), 10);
        drop(first);
        assert_eq!(budget.used(), 0);
        assert!(budget.take(usize::MAX).is_none());
        assert!(budget.take(10).is_some());
    }
}
