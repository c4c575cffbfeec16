//! Where checkpoints are, and what servers say of them.

use std::fs;

use llamero_checkpoint::safetensors::INDEX_NAME;
use llamero_fuzz::{Shape, Target, drive};
use llamero_sources::bucket::address::Address;
use llamero_sources::client::base_url;
use llamero_sources::{Audience, Listing, Manifest, Repository, manifest, web};
use serde_json::json;

use crate::outcome;

fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', '\0'])
}

/// A repository, the folder of a bucket, or a URL.
#[test]
fn addresses_of_sources() {
    let target = Target {
        name: "source-address",
        shape: Shape::Text,
        factor: 200,
        constant: 64 << 10,
        threads: false,
    };
    drive(target, || {
        (Vec::new(), move |input: &[u8]| {
            let Ok(text) = str::from_utf8(input) else {
                return "no text".to_owned();
            };
            let repository = Repository::parse(text);
            if let Some(repository) = &repository {
                let parts: Vec<&str> = repository.name.split('/').collect();
                assert!(
                    parts.len() == 2 && parts.iter().all(|part| is_plain(part)),
                    "{text:?}"
                );
                assert!(!repository.revision.is_empty());
            }
            let address = Address::parse(text);
            if let Ok(address) = &address {
                assert!(
                    !address.bucket.is_empty() && !address.bucket.contains(['/', '@', ':']),
                    "{text:?}"
                );
                let mut parts = address.folder.parts();
                assert!(
                    parts.all(|part| !matches!(part.as_ref(), "" | "." | "..")),
                    "{text:?}"
                );
            }
            let url = base_url(text);
            if let Some(url) = &url {
                assert!(url.has_host() && url.query().is_none() && matches!(url.scheme(), "http" | "https"));
            }
            let words = [
                repository.map_or("no repository", |_| "repository"),
                url.map_or("no URL", |_| "URL"),
            ];
            format!("{} {}", words.join(" "), outcome(address))
        })
    });
}

/// A Hub's listing of a commit, an index of weights, the digests of a folder, and the manifest that is kept of all of them.
#[test]
fn listings_of_sources() {
    let target = Target {
        name: "source-listing",
        shape: Shape::Json,
        factor: 400,
        constant: 64 << 10,
        threads: false,
    };
    let files = [
        "config.json",
        "tokenizer.json",
        "model.safetensors.index.json",
        "a.safetensors",
    ];
    let siblings = files.map(|name| json!({"rfilename": name, "size": 7, "blobId": "b", "lfs": {"sha256": "0f".repeat(32), "size": 7}}));
    let listing = json!({"repository": "org/m", "commit": "c0ffee", "files": [{"path": "a.safetensors", "bytes": 7, "sha256": null}]});
    let seed = json!({
        "sha": "c0ffee",
        "siblings": siblings,
        "weight_map": {"model.norm.weight": "a.safetensors"},
        "sums": format!("{}  a.safetensors\n", "1e".repeat(32)),
        "place": {"kind": "web", "url": "https://example.com/m"},
        "ca_file": null, "needs_keys": false, "listing": listing, "complete": true,
    });
    let seed = seed.to_string().into_bytes();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(manifest::NAME), &seed).unwrap();
    let read = Manifest::read(folder.path());
    assert!(matches!(read, Ok(Some(_))), "{read:?}");
    drive(target, || {
        (vec![seed], move |input: &[u8]| {
            let mut words = vec![outcome(web::names(input))];
            for name in web::names(input).into_iter().flatten() {
                assert!(is_plain(&name), "{name:?}");
            }
            fs::write(folder.path().join(INDEX_NAME), input).unwrap();
            fs::write(folder.path().join(manifest::NAME), input).unwrap();
            let mut listing = Listing::of_commit("org/m", input, Audience::CommandLine);
            if let Ok(listing) = &mut listing {
                let value: serde_json::Value = serde_json::from_slice(input).unwrap_or_default();
                let sums = value["sums"].as_str().unwrap_or_default().as_bytes();
                words.push(outcome(listing.add_sums(sums)));
                for file in &listing.files {
                    assert!(file.sha256.iter().all(|sum| sum.len() == 64 && sum.is_ascii()));
                }
                words.push(outcome(listing.small()));
                let weights = listing.weights(folder.path());
                for file in weights.iter().flatten() {
                    assert!(is_plain(&file.path), "{:?}", file.path);
                }
                words.push(outcome(weights));
            }
            let manifest = Manifest::read(folder.path());
            if let Ok(Some(manifest)) = &manifest {
                let told = manifest.identity();
                words.push(outcome(manifest.check(told)));
            }
            words.extend([outcome(listing), outcome(manifest)]);
            words.join(" ")
        })
    });
}
