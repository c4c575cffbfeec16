//! What the weights of a source are, where the source itself names its content: an OCI image that is pinned by its digest.
//!
//! The kubelet tells the digest of a volume's image only from Kubernetes 1.36 on, and only once the pod runs; so a tag says nothing here, and
//! every rank finds out from samples what it has read.

use llamero_api::deployment::Source;
use sha2::{Digest as _, Sha256};

/// Hexadecimal digits of a SHA-256.
const DIGITS: usize = 64;

/// The content identity of a source, if its reference fixes the content: the image's digest. One image may hold several checkpoints, so a
/// folder inside it is part of the identity.
#[must_use]
pub fn of_source(source: &Source) -> Option<String> {
    let image = source.image.as_ref()?;
    let digest = image.reference.rsplit_once("@sha256:")?.1;
    let whole = digest.len() == DIGITS && digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if !whole {
        return None;
    }
    match image.path.as_deref() {
        None | Some("" | ".") => Some(digest.to_owned()),
        Some(path) => {
            let hash = Sha256::digest(format!("{digest}\n{path}"));
            Some(hash.iter().map(|byte| format!("{byte:02x}")).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(source: Value) -> Option<String> {
        of_source(&serde_json::from_value(source).unwrap())
    }

    #[test]
    fn only_a_digest_fixes_the_content() {
        let digest = "0123456789abcdef".repeat(4);
        let image = |reference: &str| of(json!({"image": {"reference": reference}}));
        for (reference, known) in [
            (format!("registry.example/m@sha256:{digest}"), true),
            (format!("registry.example:5000/m:1@sha256:{digest}"), true),
            ("registry.example/m:1".to_owned(), false),
            ("registry.example/m".to_owned(), false),
            (format!("registry.example/m@sha256:{}", &digest[1..]), false),
            (
                format!("registry.example/m@sha256:{}", digest.to_uppercase()),
                false,
            ),
            (format!("registry.example/m@sha512:{digest}{digest}"), false),
        ] {
            assert_eq!(image(&reference), known.then(|| digest.clone()), "{reference}");
        }
        for source in [
            json!({"hostPath": {"path": "/m"}}),
            json!({"persistentVolumeClaim": {"claimName": "w"}}),
        ] {
            assert_eq!(of(source), None);
        }
    }

    #[test]
    fn two_folders_of_an_image_are_two_contents() {
        let reference = format!("m@sha256:{}", "a".repeat(64));
        let at = |path: &str| of(json!({"image": {"reference": reference, "path": path}})).unwrap();
        assert_eq!(at(""), "a".repeat(64));
        assert_eq!(at("."), at(""));
        let folders = [at("8b"), at("70b"), at("")];
        assert!(folders[0] != folders[1] && folders[1] != folders[2] && folders[0] != folders[2]);
        assert!(folders.iter().all(|identity| identity.len() == DIGITS));
    }
}
