//! `s3://BUCKET/FOLDER`.

use object_store::path::Path;

use crate::FetchError;

/// Which protocol a bucket speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cloud {
    /// S3.
    Amazon,
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage, whose buckets are called containers.
    Azure,
}

/// A folder of a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Its protocol.
    pub cloud: Cloud,
    /// Its name: letters, digits, dashes, dots and underscores.
    pub bucket: String,
    /// The folder in it, without `..` and without empty parts.
    pub folder: Path,
}

impl Address {
    /// Read `s3://BUCKET[/FOLDER]`, `gs://…` or `az://…`.
    ///
    /// # Errors
    /// [`FetchError::Address`].
    pub fn parse(uri: &str) -> Result<Self, FetchError> {
        let wrong = || FetchError::Address {
            given: uri.to_owned(),
            wanted: "a folder of a bucket; write s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or az://CONTAINER/FOLDER in \
                     model.source.s3.uri",
        };
        let (scheme, rest) = uri.split_once("://").ok_or_else(wrong)?;
        let cloud = match scheme {
            "s3" => Cloud::Amazon,
            "gs" => Cloud::Google,
            "az" => Cloud::Azure,
            _ => return Err(wrong()),
        };
        let (bucket, folder) = rest.split_once('/').unwrap_or((rest, ""));
        let is_name = |char: char| char.is_ascii_alphanumeric() || "-_.".contains(char);
        if bucket.is_empty() || !bucket.chars().all(is_name) || folder.starts_with('/') {
            return Err(wrong());
        }
        Ok(Self {
            cloud,
            bucket: bucket.to_owned(),
            folder: Path::parse(folder.trim_end_matches('/')).map_err(|_| wrong())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_has_a_cloud_a_name_and_perhaps_a_folder() {
        let read = |uri: &str| {
            let found = Address::parse(uri).unwrap();
            (found.cloud, found.bucket, found.folder.to_string())
        };
        let wanted = |cloud, bucket: &str, folder: &str| (cloud, bucket.to_owned(), folder.to_owned());
        assert_eq!(read("s3://b"), wanted(Cloud::Amazon, "b", ""));
        assert_eq!(read("s3://b/"), wanted(Cloud::Amazon, "b", ""));
        assert_eq!(
            read("gs://b.c/llama/8b/"),
            wanted(Cloud::Google, "b.c", "llama/8b")
        );
        assert_eq!(read("az://c-1/x"), wanted(Cloud::Azure, "c-1", "x"));
        for wrong in [
            "b/x",
            "http://b/x",
            "s3://",
            "s3:///x",
            "s3://u:p@b/x",
            "s3://b/../x",
            "s3://b//x",
        ] {
            let error = Address::parse(wrong).unwrap_err().to_string();
            assert!(error.contains("model.source.s3.uri"), "{wrong}: {error}");
        }
    }
}
