//! Which weights a pod serves, computed once for all its ranks and for all their restarts.

use std::path::PathBuf;

use llamero_checkpoint::{Checkpoint, ContentIdentity};
use llamero_sources::{FetchError, Manifest, Patience};
use tokio::sync::OnceCell;

use crate::source::SourceArgs;

/// The checkpoint's folder, filled once where it comes from elsewhere, and its content identity, read when it is first asked for. The
/// ranks are told it, so that a process that finds its weights in memory reads nothing of them.
#[derive(Debug)]
pub struct SharedIdentity {
    model_dir: PathBuf,
    source: SourceArgs,
    manifest: OnceCell<Option<Manifest>>,
    known: OnceCell<ContentIdentity>,
}

impl SharedIdentity {
    /// The identity of the checkpoint in `model_dir`, which comes from `source` if that names a place; `known` when it need
    /// not be computed.
    #[must_use]
    pub fn new(model_dir: PathBuf, source: SourceArgs, known: Option<ContentIdentity>) -> Self {
        Self {
            model_dir,
            source,
            manifest: OnceCell::new(),
            known: OnceCell::new_with(known),
        }
    }

    /// The identity, once the folder is there. None when the checkpoint cannot be read: the rank, which opens it too, says why,
    /// and the next call tries again.
    ///
    /// # Errors
    /// The folder cannot be filled from its source; the next call tries again.
    pub async fn get(&self) -> Result<Option<ContentIdentity>, FetchError> {
        let manifest = self.manifest.get_or_try_init(|| self.prepare()).await?.as_ref();
        if let (Some(manifest), Some(told)) = (manifest, self.known.get()) {
            manifest.check(*told)?;
        }
        let read = || async {
            if let Some(manifest) = manifest {
                return Ok(manifest.identity());
            }
            let model_dir = self.model_dir.clone();
            tokio::task::spawn_blocking(move || ContentIdentity::of(&Checkpoint::open(&model_dir).ok()?).ok())
                .await
                .ok()
                .flatten()
                .ok_or(())
        };
        Ok(self.known.get_or_try_init(read).await.ok().copied())
    }

    /// Files are written, so this is no work for a thread that serves.
    async fn prepare(&self) -> Result<Option<Manifest>, FetchError> {
        let (source, folder) = (self.source.clone(), self.model_dir.clone());
        let runtime = tokio::runtime::Handle::current();
        let prepare = move || runtime.block_on(source.prepare(&folder, Patience::default()));
        let ended = tokio::task::spawn_blocking(prepare).await;
        ended.unwrap_or_else(|error| {
            Err(FetchError::Io {
                path: self.model_dir.clone(),
                source: std::io::Error::other(error),
            })
        })
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
        let identity = SharedIdentity::new(link.clone(), SourceArgs::default(), None);
        assert_eq!(identity.get().await.unwrap(), None, "there is no model yet");
        symlink(&model, &link).unwrap();
        assert_eq!(identity.get().await.unwrap(), Some(expected));
        std::fs::remove_file(&link).unwrap();
        assert_eq!(identity.get().await.unwrap(), Some(expected), "it was read again");

        let known = "ab".repeat(32).parse().unwrap();
        let told = SharedIdentity::new(link, SourceArgs::default(), Some(known));
        assert_eq!(told.get().await.unwrap(), Some(known));
    }
}
