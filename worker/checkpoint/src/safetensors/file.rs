//! One open safetensors file, read by positioned reads.
#![cfg_attr(
    not(test),
    warn(
        clippy::indexing_slicing,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        reason = "what comes in from outside must not be able to end the process, nor become another number"
    )
)]

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{Header, SafetensorsError, TensorInfo};
use crate::io_error::IoError;
use crate::lfs::LfsPointer;
use crate::remote::WeightFile;

/// An open file with its checked header. Reads are positioned, so one file may be read from several threads.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    file: Box<dyn WeightFile>,
    header: Header,
    data_start: u64,
}

impl SafetensorsFile {
    /// Open `path`, read its header and check that the file is as long as the header says.
    pub fn open(path: &Path) -> Result<Self, SafetensorsError> {
        Self::open_small(path, Header::MAX_BYTES)
    }

    /// The same for a file whose header has at most `limit` bytes: parsed JSON takes many times its own memory.
    pub(crate) fn open_small(path: &Path, limit: u64) -> Result<Self, SafetensorsError> {
        let file = File::open(path).map_err(IoError::at("open", path))?;
        LfsPointer::refuse(path)?;
        Self::limited(path, Box::new(file), limit)
    }

    /// The same for an open `file`, which errors call `path`.
    pub fn over(path: &Path, file: Box<dyn WeightFile>) -> Result<Self, SafetensorsError> {
        Self::limited(path, file, Header::MAX_BYTES)
    }

    fn limited(path: &Path, file: Box<dyn WeightFile>, limit: u64) -> Result<Self, SafetensorsError> {
        let size = file.bytes().map_err(IoError::at("inspect", path))?;
        let owned = || path.to_path_buf();
        if size < 8 {
            return Err(SafetensorsError::HeaderCutOff {
                path: owned(),
                size,
                needed: 8,
            });
        }
        let mut length = [0; 8];
        file.read_exact_at(&mut length, 0)
            .map_err(IoError::at("read", path))?;
        let length = u64::from_le_bytes(length);
        let fits = usize::try_from(length).ok().filter(|_| length <= limit);
        let Some(json_bytes) = fits else {
            return Err(SafetensorsError::HeaderTooLong {
                path: owned(),
                length,
                limit,
            });
        };
        let data_start = 8 + length;
        if size < data_start {
            return Err(SafetensorsError::HeaderCutOff {
                path: owned(),
                size,
                needed: data_start,
            });
        }
        let mut json = vec![0; json_bytes];
        file.read_exact_at(&mut json, 8)
            .map_err(IoError::at("read", path))?;
        let header = Header::parse(&json).map_err(|reason| SafetensorsError::BadHeader {
            path: owned(),
            reason,
        })?;
        let needed = data_start.saturating_add(header.data_bytes());
        if size < needed {
            return Err(SafetensorsError::DataCutOff {
                path: owned(),
                size,
                needed,
            });
        }
        if size > needed {
            let reason = format!("{} bytes follow the last tensor", size - needed);
            return Err(SafetensorsError::BadHeader {
                path: owned(),
                reason,
            });
        }
        Ok(Self {
            path: owned(),
            file,
            header,
            data_start,
        })
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The tensor of that name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.header.tensors.get(name)
    }

    /// Where the data begins.
    pub(crate) fn data_start(&self) -> u64 {
        self.data_start
    }

    /// The JSON of the header, as it is in the file now.
    pub(crate) fn header_json(&self) -> Result<Vec<u8>, SafetensorsError> {
        let bytes = usize::try_from(self.data_start - 8).unwrap_or(0);
        let mut json = vec![0; bytes];
        self.file
            .read_exact_at(&mut json, 8)
            .map_err(IoError::at("read", &self.path))?;
        Ok(json)
    }

    /// Fill `buffer` with the bytes of tensor `name` from `offset` on.
    pub fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<(), SafetensorsError> {
        let range: Range<u64> = offset..offset.saturating_add(buffer.len() as u64);
        let Some(info) = self.tensor(name).filter(|info| range.end <= info.bytes()) else {
            return Err(SafetensorsError::OutOfRange {
                path: self.path.clone(),
                tensor: name.to_owned(),
                start: range.start,
                end: range.end,
                size: self.tensor(name).map_or(0, TensorInfo::bytes),
            });
        };
        let position = self.data_start + info.range.start + offset;
        self.file
            .read_exact_at(buffer, position)
            .map_err(IoError::at("read", &self.path))?;
        Ok(())
    }
}
