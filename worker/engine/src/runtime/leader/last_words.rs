//! What a lost member says itself. Others see that its links are closed, and may be heard before it.

use std::time::{Duration, Instant};

use super::{End, Leader};
use crate::mesh::{EraAbort, MeshError, Message};
use crate::runtime::input::Input;

/// How long the words of a member are waited for that somebody else has called lost; and how long a member that leaves an era
/// lets the leader read its words. A process that has died costs none of it, since its link to the leader is closed too.
pub(in crate::runtime) const LAST_WORDS: Duration = Duration::from_millis(250);

impl Leader<'_> {
    /// The end of an era by `error`, or by what the member that it is about says in a moment. Nothing is computed any more.
    pub(super) fn last_words(&mut self, error: MeshError, abort: &EraAbort) -> End {
        let Some(lost) = error.rank() else {
            return End::Era(error);
        };
        let until = Instant::now() + LAST_WORDS;
        while !self.silent.contains(&lost) && !abort.is_aborted() && !self.context.is_stopped() {
            let left = until.saturating_duration_since(Instant::now());
            let Ok(input) = self.inputs.recv_timeout(left) else {
                break;
            };
            match input {
                Input::Member {
                    era,
                    rank,
                    message: Message::Failed(failure),
                    ..
                } if era == self.last => {
                    let end = End::from(failure.blame(rank));
                    if rank == lost || matches!(end, End::Invalid(_)) {
                        return end;
                    }
                }
                // Requests among them are kept.
                input => {
                    if let Err(end) = self.take(input, None) {
                        return end;
                    }
                }
            }
        }
        End::Era(error)
    }
}
