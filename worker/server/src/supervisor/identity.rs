//! Which weights a pod serves, computed once for all its ranks and for all their restarts.

use std::path::PathBuf;

use llamero_checkpoint::{Checkpoint, ContentIdentity};
use tokio::sync::OnceCell;

/// The content identity of a checkpoint, read when it is first asked for. The ranks are told it, so that a process that finds its
/// weights in memory reads nothing of them.
#[derive(Debug)]
pub struct SharedIdentity {
    model_dir: PathBuf,
    known: OnceCell<ContentIdentity>,
}

impl SharedIdentity {
    /// The identity of the checkpoint in `model_dir`; `known` when it need not be computed.
    #[must_use]
    pub fn new(model_dir: PathBuf, known: Option<ContentIdentity>) -> Self {
        Self {
            model_dir,
            known: OnceCell::new_with(known),
        }
    }

    /// The identity. None when the checkpoint cannot be read: the rank, which opens it too, says why, and the next call tries again.
    pub async fn get(&self) -> Option<ContentIdentity> {
        let read = || async {
            let model_dir = self.model_dir.clone();
            tokio::task::spawn_blocking(move || ContentIdentity::of(&Checkpoint::open(&model_dir).ok()?).ok())
                .await
                .ok()
                .flatten()
                .ok_or(())
        };
        self.known.get_or_try_init(read).await.ok().copied()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    #[tokio::test]
    async fn is_read_once_and_tried_again_until_it_can_be_read() {
        let model =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.local/models/SmolLM2-135M-Instruct-FP8");
        let expected = ContentIdentity::of(&Checkpoint::open(&model).unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("model");
        let identity = SharedIdentity::new(link.clone(), None);
        assert_eq!(identity.get().await, None, "there is no model yet");
        symlink(&model, &link).unwrap();
        assert_eq!(identity.get().await, Some(expected));
        std::fs::remove_file(&link).unwrap();
        assert_eq!(identity.get().await, Some(expected), "it was read again");

        let known = "ab".repeat(32).parse().unwrap();
        assert_eq!(SharedIdentity::new(link, Some(known)).get().await, Some(known));
    }
}
