//! Memory of requests whose answers are under way. Prompt and tokens stay here until the answer ends, so that another
//! group can go on with it.

use crate::Gateway;
use crate::budget::Share;
use crate::error::ApiError;

/// Seconds after which a client that was turned away may come again.
const RETRY_AFTER: u64 = 10;
/// Bytes of a token id.
const TOKEN: usize = size_of::<u32>();

/// The memory of one request, given back when dropped.
#[derive(Debug)]
pub(super) struct Carried(Share);

impl Carried {
    /// Memory for a request of so many bytes, before a group is asked.
    ///
    /// # Errors
    /// 503 when so much is not left.
    pub(super) fn take(gateway: &Gateway, bytes: usize) -> Result<Self, ApiError> {
        let budget = &gateway.carried_bytes;
        budget.take(bytes).map(Self).ok_or_else(|| {
            let message = format!(
                "Requests whose answers are under way already fill the {} bytes set aside for them; try again later.",
                budget.limit()
            );
            ApiError::unavailable("too_many_under_way", message, RETRY_AFTER)
        })
    }

    /// Count tokens that came. An answer under way is never cut for want of room, and cannot have more tokens than its
    /// model's context.
    pub(super) fn add_tokens(&mut self, count: usize) {
        let _ = self.0.grow(count.saturating_mul(TOKEN));
    }
}
