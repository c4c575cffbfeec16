//! One open GGUF file.
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

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::parse::Parser;
use super::{GgmlType, GgufError, GgufValue};
use crate::io_error::IoError;

/// Where one tensor lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// How it is stored.
    pub kind: GgmlType,
    /// Elements of a row (the first dimension of GGUF).
    pub cols: u64,
    /// Rows: the product of the other dimensions.
    pub rows: u64,
    /// Position in the file.
    offset: u64,
}

impl GgufTensor {
    /// Bytes of one row.
    #[must_use]
    pub fn row_bytes(&self) -> u64 {
        self.cols / self.kind.block() * self.kind.block_bytes()
    }
}

/// An open GGUF file whose metadata and tensor list have been checked.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    file: File,
    metadata: BTreeMap<String, GgufValue>,
    tensors: BTreeMap<String, GgufTensor>,
}

impl GgufFile {
    /// Open `path`, read everything but the data and check that every tensor lies inside the file.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let file = File::open(path).map_err(IoError::at("open", path))?;
        let size = file.metadata().map_err(IoError::at("inspect", path))?.len();
        let damaged = |reason| GgufError::Damaged {
            path: path.to_path_buf(),
            reason,
        };
        let mut parser = Parser::new(BufReader::new(&file), size);
        let (tensor_count, metadata) = parse_metadata(&mut parser).map_err(damaged)?;
        check_whole(path, &metadata)?;
        let alignment = metadata
            .get("general.alignment")
            .map_or(Some(32), GgufValue::as_u32)
            .unwrap_or(0);
        if !alignment.is_power_of_two() {
            return Err(damaged(format!(
                "its alignment of {alignment} is no power of two; the file is damaged"
            )));
        }
        let mut raw = Vec::new();
        for _ in 0..tensor_count {
            raw.push(parse_tensor(&mut parser).map_err(damaged)?);
        }
        let data = parser.position().next_multiple_of(alignment.into());
        let mut tensors = BTreeMap::new();
        for RawTensor {
            name,
            dims,
            code,
            offset,
        } in raw
        {
            let kind = GgmlType::from_code(code).map_err(|found| GgufError::Type {
                path: path.to_path_buf(),
                tensor: name.clone(),
                found,
            })?;
            let tensor = check_tensor(&name, &dims, kind, offset, data, size).map_err(damaged)?;
            if tensors.insert(name.clone(), tensor).is_some() {
                return Err(damaged(format!(
                    "tensor {name} is listed twice; the file is damaged"
                )));
            }
        }
        Ok(Self {
            path: path.to_path_buf(),
            file,
            metadata,
            tensors,
        })
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All metadata by key.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, GgufValue> {
        &self.metadata
    }

    /// All tensors by name.
    #[must_use]
    pub fn tensors(&self) -> &BTreeMap<String, GgufTensor> {
        &self.tensors
    }

    /// A metadata value that must be there, read by `pick`, such as `GgufValue::as_u32`.
    pub fn require<'a, T>(
        &'a self,
        key: &str,
        pick: impl FnOnce(&'a GgufValue) -> Option<T>,
    ) -> Result<T, GgufError> {
        let found = self.metadata.get(key).and_then(pick);
        found.ok_or_else(|| GgufError::Missing {
            path: self.path.clone(),
            what: key.to_owned(),
        })
    }

    /// A tensor that must be there.
    pub fn require_tensor(&self, name: &str) -> Result<&GgufTensor, GgufError> {
        let found = self.tensors.get(name);
        found.ok_or_else(|| GgufError::Missing {
            path: self.path.clone(),
            what: format!("tensor {name}"),
        })
    }

    /// Append the values of `count` rows of `tensor` from row `first` on to `out`.
    pub fn read_f32(
        &self,
        tensor: &GgufTensor,
        first: u64,
        count: u64,
        out: &mut Vec<f32>,
    ) -> Result<(), GgufError> {
        let length = count.checked_mul(tensor.row_bytes());
        let length = length.and_then(|length| usize::try_from(length).ok());
        let mut bytes = vec![
            0;
            length.ok_or_else(|| GgufError::Damaged {
                path: self.path.clone(),
                reason: format!("{count} rows of it do not fit into memory"),
            })?
        ];
        let position = tensor.offset + first * tensor.row_bytes();
        self.file
            .read_exact_at(&mut bytes, position)
            .map_err(IoError::at("read", &self.path))?;
        tensor.kind.dequantize(&bytes, out);
        Ok(())
    }
}

/// Large models come in several files; each lists its own tensors only.
fn check_whole(path: &Path, metadata: &BTreeMap<String, GgufValue>) -> Result<(), GgufError> {
    let number = |key: &str| metadata.get(key).and_then(GgufValue::as_u32);
    match number("split.count") {
        Some(parts) if parts > 1 => Err(GgufError::Split {
            path: path.to_path_buf(),
            part: number("split.no").unwrap_or(0).saturating_add(1),
            parts,
        }),
        _ => Ok(()),
    }
}

struct RawTensor {
    name: String,
    dims: Vec<u64>,
    code: u32,
    offset: u64,
}

fn parse_metadata(
    parser: &mut Parser<impl std::io::Read>,
) -> Result<(u64, BTreeMap<String, GgufValue>), String> {
    match &parser.bytes::<4>()? {
        b"GGUF" => {}
        // "version https://git-lfs.github.com/spec/v1"
        b"vers" => {
            return Err(
                "this is a Git LFS pointer and not the file; fetch it with `git lfs pull`".to_owned(),
            );
        }
        _ => return Err("this is not a GGUF file (its first bytes are not \"GGUF\")".to_owned()),
    }
    match parser.u32()? {
        2 | 3 => {}
        other if matches!(other.swap_bytes(), 2 | 3) => {
            return Err(
                "it is in big-endian byte order, which is not supported; convert it with gguf's \
                        `gguf-convert-endian FILE little`"
                    .to_owned(),
            );
        }
        other => {
            return Err(format!(
                "GGUF version {other} is not supported; versions 2 and 3 are"
            ));
        }
    }
    let tensors = parser.count(24)?;
    let keys = parser.count(13)?;
    let mut metadata = BTreeMap::new();
    for _ in 0..keys {
        let key = parser.text()?;
        let kind = parser.u32()?;
        let value = parser.value(kind)?;
        metadata.insert(key, value);
    }
    Ok((tensors, metadata))
}

fn parse_tensor(parser: &mut Parser<impl std::io::Read>) -> Result<RawTensor, String> {
    let name = parser.text()?;
    let dims = parser.u32()?;
    if !(1..=4).contains(&dims) {
        return Err(format!(
            "tensor {name} has {dims} dimensions; the file is damaged"
        ));
    }
    let dims = (0..dims).map(|_| parser.u64()).collect::<Result<_, _>>()?;
    Ok(RawTensor {
        name,
        dims,
        code: parser.u32()?,
        offset: parser.u64()?,
    })
}

fn check_tensor(
    name: &str,
    dims: &[u64],
    kind: GgmlType,
    offset: u64,
    data: u64,
    size: u64,
) -> Result<GgufTensor, String> {
    let Some((&cols, others)) = dims.split_first() else {
        return Err(format!("tensor {name} has no dimensions; the file is damaged"));
    };
    if cols == 0 || !cols.is_multiple_of(kind.block()) {
        return Err(format!(
            "rows of tensor {name} have {cols} elements, not whole blocks; the file is damaged"
        ));
    }
    let end = others
        .iter()
        .try_fold(1, |rows: u64, dim| rows.checked_mul(*dim))
        .and_then(|rows| {
            // A row must have a length also where there are no rows.
            let row = (cols / kind.block()).checked_mul(kind.block_bytes())?;
            let bytes = rows.checked_mul(row)?;
            Some((rows, data.checked_add(offset)?.checked_add(bytes)?))
        });
    match end {
        Some((rows, end)) if end <= size => Ok(GgufTensor {
            kind,
            cols,
            rows,
            offset: data + offset,
        }),
        _ => Err(format!(
            "tensor {name} ends beyond the end of the file, which is cut off; download it again"
        )),
    }
}
