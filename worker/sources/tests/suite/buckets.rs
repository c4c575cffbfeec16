//! Buckets of a real S3 server, `versitygw`, with a proxy before it that spoils answers.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use llamero_checkpoint::Checkpoint;
use llamero_fake_hub::FaultyProxy;
use llamero_sources::{Access, FetchError, Manifest, Place};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path as Key;
use object_store::{ObjectStoreExt as _, PutPayload};

use crate::common::model;
use crate::loads::{self, Forget, access, assert_same_bits, load};

const FP8: &str = "SmolLM2-135M-Instruct-FP8";
const KEYS: [&str; 2] = ["the-key", "the-secret-of-it"];
const FOLDER: &str = "models/llama";

/// The server, whose objects lie in a folder of its own, and the proxy before it.
struct S3 {
    server: Child,
    proxy: FaultyProxy,
    store: AmazonS3,
    _dir: tempfile::TempDir,
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Where `make cluster-build` puts it.
fn program() -> PathBuf {
    let usual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.local/bin/versitygw");
    std::env::var_os("LLAMERO_VERSITYGW").map_or(usual, PathBuf::from)
}

impl S3 {
    /// A server with the bucket `weights`, which is empty.
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["objects/weights", "sidecar"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        let address = {
            let free = TcpListener::bind(("127.0.0.1", 0)).unwrap();
            free.local_addr().unwrap().to_string()
        };
        let server = Command::new(program())
            .args(["--access", KEYS[0], "--secret", KEYS[1], "--port", &address])
            .args(["--keep-alive", "--quiet", "posix", "--sidecar"])
            .args([dir.path().join("sidecar"), dir.path().join("objects")])
            .stdout(Stdio::null())
            .spawn()
            .expect("versitygw is built by `make cluster-build`");
        let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        // It tries again itself while the server is not quite there.
        let store = AmazonS3Builder::new()
            .with_endpoint(format!("http://{address}"))
            .with_allow_http(true)
            .with_bucket_name("weights")
            .with_access_key_id(KEYS[0])
            .with_secret_access_key(KEYS[1])
            .build()
            .unwrap();
        Self {
            server,
            proxy: FaultyProxy::start(&address),
            store,
            _dir: dir,
        }
    }

    /// The same with the files of a model.
    fn with(files: &[(&str, Vec<u8>)]) -> Self {
        let server = Self::start();
        for (name, bytes) in files {
            server.put(name, bytes.clone());
        }
        server
    }

    fn put(&self, name: &str, bytes: Vec<u8>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let key = Key::from(format!("{FOLDER}/{name}"));
        let put = self.store.put(&key, PutPayload::from(bytes));
        runtime.block_on(put).unwrap();
    }

    fn place(&self) -> Place {
        Place::Bucket {
            uri: format!("s3://weights/{FOLDER}/"),
            endpoint: Some(self.proxy.endpoint.clone()),
            region: None,
        }
    }

    fn opened(&self, folder: &Path) -> Checkpoint {
        loads::prepare(&self.place(), &with_keys(KEYS), folder).unwrap();
        llamero_sources::open(folder, &with_keys(KEYS)).unwrap()
    }
}

fn with_keys(keys: [&str; 2]) -> Access {
    let names = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
    let variables = names.into_iter().zip(keys);
    Access {
        variables: variables
            .map(|(name, key)| (name.to_owned(), key.to_owned()))
            .collect(),
        needs_keys: true,
        ..access()
    }
}

fn files() -> Vec<(&'static str, Vec<u8>)> {
    let read = |name| (name, std::fs::read(model(FP8).join(name)).unwrap());
    [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    ]
    .map(read)
    .into()
}

/// One server for all of it: putting the model there takes the most time.
#[test]
fn a_bucket_gives_the_same_bits_or_a_sentence() {
    let server = S3::with(&files());
    let dir = tempfile::tempdir().unwrap();
    let remote = server.opened(&dir.path().join("m"));
    whatever_passes_changes_no_bit(&server, &remote);
    a_wrong_byte_is_found_by_sums(&server, &dir.path().join("sums"));
    refusals_say_what_to_do(&server, &dir.path().join("refused"));
    let pinned = Manifest::read(&dir.path().join("sums")).unwrap().unwrap();
    an_object_that_is_replaced_is_never_mixed_in(&server, &remote, &pinned, &dir.path().join("later"));
}

fn whatever_passes_changes_no_bit(server: &S3, remote: &Checkpoint) {
    {
        let mut faults = server.proxy.faults();
        faults.cuts = vec![0, 1, 7, 99_999, 1 << 20, 3_000_000, 2, 0, 1 << 21];
        faults.failing = 3;
    }
    assert_same_bits(FP8, remote, 2);
    let faults = server.proxy.faults();
    assert_eq!((faults.cuts.len(), faults.failing), (0, 0));
}

fn a_wrong_byte_is_found_by_sums(server: &S3, folder: &Path) {
    let output = Command::new("sha256sum")
        .args(["config.json", "model.safetensors"])
        .current_dir(model(FP8))
        .output()
        .unwrap();
    server.put("SHA256SUMS", output.stdout);
    let remote = server.opened(folder);
    server.proxy.faults().wrong = 1;
    let error = load(&remote, 1, 0, &Forget).unwrap_err();
    assert!(error.to_string().contains("arrived damaged"), "{error}");
    assert!(error.is_passing(), "{error}");
    load(&remote, 1, 0, &Forget).unwrap();
    server.proxy.faults().failing = usize::MAX;
    let error = load(&remote, 1, 0, &Forget).unwrap_err().to_string();
    assert!(
        error.contains("answered 503 for model.safetensors of s3://weights")
            && error.contains("tried 6 times"),
        "{error}"
    );
    server.proxy.faults().failing = 0;
}

fn refusals_say_what_to_do(server: &S3, folder: &Path) {
    let refused = |place: &Place, access: &Access, part: &str| {
        let error = loads::prepare(place, access, folder).unwrap_err();
        assert!(error.to_string().contains(part), "{error} does not say {part:?}");
        assert!(error.is_final(), "{error}");
    };
    let place = server.place();
    let wrong = with_keys([KEYS[0], "another"]);
    refused(&place, &wrong, "(403: SignatureDoesNotMatch");
    refused(&place, &wrong, "model.source.s3.credentialsSecretRef");
    let none = Access {
        needs_keys: true,
        ..access()
    };
    refused(&place, &none, "the Secret has no AWS_ACCESS_KEY_ID");
    let at = |uri: &str| Place::Bucket {
        uri: uri.to_owned(),
        endpoint: Some(server.proxy.endpoint.clone()),
        region: None,
    };
    refused(
        &at("s3://weights/other"),
        &with_keys(KEYS),
        "there is no object in it",
    );
    refused(&at("s3://another/x"), &with_keys(KEYS), "(404)");
    refused(&at("weights"), &with_keys(KEYS), "write s3://BUCKET/FOLDER");
}

fn an_object_that_is_replaced_is_never_mixed_in(
    server: &S3,
    remote: &Checkpoint,
    pinned: &Manifest,
    folder: &Path,
) {
    let mut other = std::fs::read(model(FP8).join("model.safetensors")).unwrap();
    *other.last_mut().unwrap() ^= 1;
    server.put("model.safetensors", other);
    let error = load(remote, 2, 1, &Forget).unwrap_err().to_string();
    assert!(
        error.contains("its ETag is another one now") && error.contains("rollout.restartedAt"),
        "{error}"
    );
    let later = loads::prepare(&server.place(), &with_keys(KEYS), folder).unwrap();
    let error = later.check(pinned.identity()).unwrap_err();
    assert!(matches!(error, FetchError::Changed { .. }), "{error}");
}
