//! What the user named: a folder, a GGUF file, or a repository of a Hub.

use std::path::{Path, PathBuf};

use llamero_sources::Repository;

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A folder in Hugging Face's layout.
    Folder(PathBuf),
    /// A GGUF file.
    Gguf(PathBuf),
    /// A repository.
    Repository(Repository),
}

/// Why a name is none of them.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Nothing is there.
    #[error(
        "there is no file or folder {0}; give a folder in Hugging Face's layout, a GGUF file, or a repository as \
         ORG/NAME or ORG/NAME@REVISION"
    )]
    Missing(String),
    /// A file of another kind.
    #[error("{0} is not a GGUF file; give one, or the folder of a Hugging Face checkpoint")]
    NotGguf(PathBuf),
    /// The file cannot be read.
    #[error("{path} cannot be read: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// `--file` chooses among the files of a repository.
    #[error("--file chooses a file of a repository, but {0} is on this machine: name the GGUF file itself")]
    FileOfPath(String),
    /// Only repositories are pulled.
    #[error("{0} is on this machine already; only a repository, ORG/NAME, can be pulled")]
    NotARepository(String),
}

/// What every GGUF file begins with.
const GGUF_MAGIC: &[u8; 4] = b"GGUF";

impl Source {
    /// Decide what `text` names. What exists as a path goes before a repository of the same name.
    ///
    /// # Errors
    /// [`SourceError`].
    pub fn find(text: &str) -> Result<Self, SourceError> {
        let path = Path::new(text);
        let unreadable = |source| SourceError::Io {
            path: path.to_owned(),
            source,
        };
        match std::fs::metadata(path) {
            Ok(found) if found.is_dir() => Ok(Self::Folder(path.to_owned())),
            Ok(_) => {
                let mut start = [0; GGUF_MAGIC.len()];
                let read = std::fs::File::open(path)
                    .and_then(|mut file| std::io::Read::read(&mut file, &mut start))
                    .map_err(unreadable)?;
                if start.get(..read) != Some(GGUF_MAGIC.as_slice()) {
                    return Err(SourceError::NotGguf(path.to_owned()));
                }
                Ok(Self::Gguf(path.to_owned()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let repository = Repository::parse(text);
                repository
                    .map(Self::Repository)
                    .ok_or_else(|| SourceError::Missing(text.to_owned()))
            }
            Err(error) => Err(unreadable(error)),
        }
    }

    /// The name that clients ask for.
    #[must_use]
    pub fn served_name(&self) -> String {
        let name = match self {
            Self::Folder(path) => std::fs::canonicalize(path)
                .ok()
                .and_then(|path| Some(path.file_name()?.to_owned())),
            Self::Gguf(path) => path.file_stem().map(ToOwned::to_owned),
            Self::Repository(repository) => return repository.name.clone(),
        };
        name.map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let text = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        std::fs::write(text("a.gguf"), b"GGUF rest").unwrap();
        std::fs::write(text("b.gguf"), b"no").unwrap();
        assert!(matches!(Source::find(&text("")), Ok(Source::Folder(_))));
        let gguf = Source::find(&text("a.gguf")).unwrap();
        assert_eq!(gguf.served_name(), "a");
        let error = Source::find(&text("b.gguf")).unwrap_err().to_string();
        assert!(error.contains("is not a GGUF file"), "{error}");
        let error = Source::find(&text("c")).unwrap_err().to_string();
        assert!(error.contains("there is no file or folder"), "{error}");
    }
}
