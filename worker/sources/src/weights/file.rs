//! A file as a checkpoint reads it.

use std::io;
use std::sync::Arc;

use llamero_checkpoint::remote::WeightFile;

use super::Transfers;
use super::fetch::Source;

/// What is known of an open file.
#[derive(Debug)]
pub(super) struct Body {
    /// Where it is.
    pub(super) source: Source,
    /// Its size.
    pub(super) bytes: u64,
    /// Its first bytes.
    pub(super) head: Vec<u8>,
}

/// A file of the checkpoint.
#[derive(Debug)]
pub(super) struct SourceFile {
    /// Its number.
    pub(super) number: usize,
    /// What is known of it.
    pub(super) body: Arc<Body>,
    /// All files.
    pub(super) shared: Arc<Transfers>,
}

impl WeightFile for SourceFile {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.body.bytes)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.saturating_add(buffer.len() as u64);
        if end > self.body.bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(window) = self.shared.window()
            && window.read(self.number, offset, buffer)?
        {
            return Ok(());
        }
        let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        if let Some(bytes) = self.body.head.get(place(offset)..place(end)) {
            buffer.copy_from_slice(bytes);
            return Ok(());
        }
        let fetch = self
            .shared
            .remote
            .fetch(&self.body.source, offset..end, Some(self.body.bytes));
        let (bytes, _) = self.shared.block_on(fetch)?;
        buffer.copy_from_slice(&bytes);
        Ok(())
    }
}
