//! Writing a checkpoint: the files are planned from the list of tensors, then filled in that order.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::{INDEX_NAME, OutputDir, SINGLE_NAME, SafetensorsError, WeightIndex};
use crate::dtype::Dtype;
use crate::io_error::IoError;

/// A tensor that is going to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in the file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
}

impl TensorSpec {
    /// Bytes of the tensor.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shape.iter().product::<u64>() * self.dtype.size()
    }
}

/// Writes tensors in the announced order, in one file or, beyond `max_file_bytes`, in several with an index.
#[derive(Debug)]
pub struct ShardedWriter<'a> {
    output: &'a OutputDir,
    files: Vec<(String, Vec<TensorSpec>)>,
    file: usize,
    tensor: usize,
    written: u64,
    open: Option<(PathBuf, BufWriter<File>)>,
    /// The files that an earlier run has finished.
    finished: Vec<bool>,
}

impl<'a> ShardedWriter<'a> {
    /// Plan the files for `tensors`. A tensor larger than `max_file_bytes` gets a file of its own.
    #[must_use]
    pub fn new(output: &'a OutputDir, tensors: Vec<TensorSpec>, max_file_bytes: u64) -> Self {
        let mut groups: Vec<Vec<TensorSpec>> = Vec::new();
        let mut size = 0;
        for tensor in tensors {
            let bytes = tensor.bytes();
            match groups.last_mut() {
                Some(group) if size + bytes <= max_file_bytes => group.push(tensor),
                _ => {
                    groups.push(vec![tensor]);
                    size = 0;
                }
            }
            size += bytes;
        }
        let count = groups.len();
        let name = |index: usize| match count {
            1 => SINGLE_NAME.to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
        };
        let files: Vec<(String, Vec<TensorSpec>)> = groups
            .into_iter()
            .enumerate()
            .map(|(index, group)| (name(index), group))
            .collect();
        let finished = files.iter().map(|(name, group)| is_finished(output, name, group));
        Self {
            finished: finished.collect(),
            output,
            files,
            file: 0,
            tensor: 0,
            written: 0,
            open: None,
        }
    }

    /// Append bytes to the tensor whose turn it is; it ends when its announced length is reached.
    pub fn append(&mut self, mut bytes: &[u8]) -> Result<(), SafetensorsError> {
        while !bytes.is_empty() {
            let Some(left) = self.left_in_tensor()? else {
                return Err(SafetensorsError::WrongLength {
                    tensor: "after the last one".into(),
                    dtype: Dtype::U8,
                    announced: 0,
                    written: bytes.len() as u64,
                });
            };
            let (now, rest) = bytes.split_at(bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
            if let Some((path, writer)) = &mut self.open {
                writer.write_all(now).map_err(IoError::at("write", path))?;
            }
            self.written += now.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    /// Pass over the next `count` tensors if an earlier run has finished all files that they are in; how many bytes that are. Else 0,
    /// and nothing is passed over: what is appended to a finished file is not written again.
    pub fn skip_finished(&mut self, count: usize) -> Result<u64, SafetensorsError> {
        self.left_in_tensor()?;
        let (mut file, mut tensor, mut bytes) = (self.file, self.tensor, 0);
        for _ in 0..count {
            while self
                .files
                .get(file)
                .is_some_and(|(_, group)| tensor == group.len())
            {
                (file, tensor) = (file + 1, 0);
            }
            if !self.finished.get(file).is_some_and(|finished| *finished) {
                return Ok(0);
            }
            let spec = self.files.get(file).and_then(|(_, group)| group.get(tensor));
            bytes += spec.map_or(0, TensorSpec::bytes);
            tensor += 1;
        }
        (self.file, self.tensor, self.written) = (file, tensor, 0);
        Ok(bytes)
    }

    /// Flush everything to disk and write the index.
    pub fn finish(mut self) -> Result<(), SafetensorsError> {
        let is_short = self.left_in_tensor()?.is_some();
        let current = self.files.get(self.file);
        if let Some(tensor) = current
            .and_then(|(_, group)| group.get(self.tensor))
            .filter(|_| is_short)
        {
            return Err(SafetensorsError::WrongLength {
                tensor: tensor.name.clone(),
                dtype: tensor.dtype,
                announced: tensor.bytes(),
                written: self.written,
            });
        }
        if self.files.len() > 1 {
            let total: u64 = self
                .files
                .iter()
                .flat_map(|(_, group)| group)
                .map(TensorSpec::bytes)
                .sum();
            let weight_map: BTreeMap<_, _> = self
                .files
                .iter()
                .flat_map(|(file, group)| group.iter().map(|tensor| (tensor.name.clone(), file.clone())))
                .collect();
            let metadata = Map::from_iter([("total_size".to_owned(), json!(total))]);
            self.output
                .write_json(INDEX_NAME, &WeightIndex { metadata, weight_map })?;
        }
        Ok(())
    }

    /// Bytes that the current tensor still wants, moving on from full tensors and opening files; none after the last.
    fn left_in_tensor(&mut self) -> Result<Option<u64>, SafetensorsError> {
        while let Some((name, group)) = self.files.get(self.file) {
            if self.open.is_none() && !self.finished.get(self.file).is_some_and(|finished| *finished) {
                let path = part(self.output, name);
                let mut writer = BufWriter::with_capacity(
                    1 << 20,
                    File::create(&path).map_err(IoError::at("create", &path))?,
                );
                writer
                    .write_all(&header_bytes(group))
                    .map_err(IoError::at("write", &path))?;
                self.open = Some((path, writer));
            }
            if let Some(tensor) = group.get(self.tensor) {
                if self.written < tensor.bytes() {
                    return Ok(Some(tensor.bytes() - self.written));
                }
                self.tensor += 1;
                self.written = 0;
                continue;
            }
            if let Some((path, mut writer)) = self.open.take() {
                writer
                    .flush()
                    .and_then(|()| writer.get_ref().sync_all())
                    .map_err(IoError::at("flush", &path))?;
                // It has its name only when it is whole.
                let whole = self.output.path().join(name);
                fs::rename(&path, &whole).map_err(IoError::at("rename into", &whole))?;
            }
            self.file += 1;
            self.tensor = 0;
        }
        Ok(None)
    }
}

/// Where a file is until it is whole.
fn part(output: &OutputDir, name: &str) -> PathBuf {
    output.path().join(format!("{name}.part"))
}

fn is_finished(output: &OutputDir, name: &str, tensors: &[TensorSpec]) -> bool {
    let bytes = tensors.iter().map(TensorSpec::bytes).sum::<u64>();
    let found = fs::metadata(output.path().join(name));
    found.is_ok_and(|found| found.len() == bytes + header_bytes(tensors).len() as u64)
}

/// Length and JSON of a header, padded with spaces so that the data starts at a multiple of 8 bytes.
pub(crate) fn header_bytes(tensors: &[TensorSpec]) -> Vec<u8> {
    let mut entries = Map::new();
    entries.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut start = 0;
    for tensor in tensors {
        let end = start + tensor.bytes();
        let entry =
            json!({ "dtype": tensor.dtype.name(), "shape": tensor.shape, "data_offsets": [start, end] });
        entries.insert(tensor.name.clone(), entry);
        start = end;
    }
    let mut json = Value::Object(entries).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut json);
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::SafetensorsFile;
    use super::*;

    fn spec(name: &str, len: u64) -> TensorSpec {
        TensorSpec {
            name: name.into(),
            dtype: Dtype::U8,
            shape: vec![len],
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("out");
        let output = OutputDir::create(&target).unwrap();
        let mut writer = ShardedWriter::new(
            &output,
            vec![spec("a", 3), spec("none", 0), spec("b", 4), spec("c", 9)],
            8,
        );
        writer.append(b"aa").unwrap();
        writer.append(b"abbbbccccccc").unwrap();
        writer.append(b"cc").unwrap();
        writer.finish().unwrap();
        output.commit().unwrap();

        let index = WeightIndex::read(&target.join(INDEX_NAME)).unwrap();
        assert_eq!(index.files().len(), 2);
        assert_eq!(index.metadata["total_size"], 16);
        let first = SafetensorsFile::open(&target.join(&index.weight_map["b"])).unwrap();
        let mut bytes = [0; 3];
        first.read_at("b", 1, &mut bytes).unwrap();
        assert_eq!(&bytes, b"bbb");
        assert!(
            first
                .read_at("b", 2, &mut bytes)
                .unwrap_err()
                .to_string()
                .contains("bytes 2..5")
        );
        let second = SafetensorsFile::open(&target.join(&index.weight_map["c"])).unwrap();
        assert_eq!(second.tensor("c").unwrap().bytes(), 9);
    }

    #[test]
    fn too_little_and_too_much_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let output = OutputDir::create(&root.path().join("out")).unwrap();
        let mut writer = ShardedWriter::new(&output, vec![spec("a", 3)], 8);
        writer.append(b"a").unwrap();
        assert!(
            writer
                .finish()
                .unwrap_err()
                .to_string()
                .contains("3 bytes but 1 were written")
        );
        drop(output);
        let output = OutputDir::create(&root.path().join("out")).unwrap();
        let mut writer = ShardedWriter::new(&output, vec![spec("a", 3)], 8);
        assert!(writer.append(b"aaaa").is_err());
    }
}
