//! Weight files that do not lie beside `config.json`: they are read by range from wherever they are.

use std::fmt::Debug;
use std::io;
use std::ops::Range;

/// A weight file that is read by ranges, from several threads at once.
pub trait WeightFile: Debug + Send + Sync {
    /// Its size.
    ///
    /// # Errors
    /// It cannot be told.
    fn bytes(&self) -> io::Result<u64>;

    /// Fill `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// It cannot be read, or ends before.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl WeightFile for std::fs::File {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, buffer, offset)
    }
}

/// A range of a file that is going to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    /// Which of the files that were opened, counted from 0.
    pub file: usize,
    /// What to fetch, in the file.
    pub range: Range<u64>,
    /// How many bytes of it will be asked for in all; after that nobody wants it any more. None: as long as there is a
    /// load.
    pub wanted: Option<u64>,
}

/// The weight files of one checkpoint. What is going to be read is announced, so that it can be fetched before it is
/// asked for, many ranges at a time.
pub trait RemoteWeights: Debug + Send + Sync {
    /// Open these files, and have their headers at hand.
    ///
    /// # Errors
    /// One is not there or cannot be read.
    fn open(&self, names: &[&str]) -> io::Result<Vec<Box<dyn WeightFile>>>;

    /// These ranges will be read next, about in this order; earlier announcements are over.
    fn announce(&self, ranges: Vec<Announced>);

    /// What was announced has been read: say whether it was right, as far as that can be told only in the end.
    ///
    /// # Errors
    /// A file is not what it was promised to be.
    fn finish(&self) -> io::Result<()>;

    /// Bytes that came over the network so far.
    fn bytes_read(&self) -> u64;
}

/// Bytes of one request. Large enough that the time to the first byte does not count, small enough that some dozens of
/// them fit the memory of a rank.
pub const BLOCK_BYTES: u64 = 4 << 20;
