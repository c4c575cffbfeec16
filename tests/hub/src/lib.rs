//! A local server that imitates a Hub: the API, redirects to another port, ranges, ETags, LFS headers, and faults on purpose.
//!
//! It is for tests, so it panics where a test is wrong.

#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that makes a mistake may end at once"
)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use sha2::{Digest, Sha256};

/// The only repository.
pub const REPOSITORY: &str = "org/model";
/// Its commit.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// Its next commit.
pub const NEXT_COMMIT: &str = "fedcba9876543210fedcba9876543210fedcba98";
/// Bytes that are sent at a time.
const CHUNK: usize = 1 << 20;
/// Files from this size on are in LFS: another host has their bytes.
const LFS_BYTES: u64 = 4096;
/// The largest file of a folder whose SHA-256 is told: hashing it takes time before the server answers.
const HASHED: u64 = 2 << 30;

/// What goes wrong, each as often as its number says.
#[derive(Debug, Default)]
pub struct Faults {
    /// The token without which there is 401.
    pub token: Option<String>,
    /// 403 for everybody.
    pub gated: bool,
    /// 429 with `Retry-After: 0`.
    pub busy: usize,
    /// Connections that carry bytes of LFS files are cut after so many of them.
    pub cuts: Vec<usize>,
    /// A wrong byte in an LFS file.
    pub wrong: usize,
    /// Links to the other host that have expired.
    pub expired: usize,
    /// Connections that carry bytes stay open without a byte.
    pub silent: usize,
    /// The other host does not know ranges.
    pub no_ranges: bool,
    /// The other host redirects to itself.
    pub circle: bool,
    /// The listing has no sizes and digests.
    pub bare: bool,
    /// The branch `main` is at [`NEXT_COMMIT`].
    pub moved: bool,
    /// Files are said to be of [`NEXT_COMMIT`], whatever is asked for.
    pub replaced: bool,
    /// 503 at the other host.
    pub failing: usize,
}

/// A request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Whether the Hub was asked, and not the host that it redirects to.
    pub at_hub: bool,
    /// Path and query.
    pub path: String,
    /// The token that came with it.
    pub token: Option<String>,
    /// First byte of the range.
    pub from: Option<usize>,
    /// End of the range, if it has one.
    pub to: Option<usize>,
}

/// A file of the repository.
#[derive(Debug)]
struct Stored {
    body: Body,
    size: u64,
    sha256: Option<String>,
}

#[derive(Debug)]
enum Body {
    Bytes(Vec<u8>),
    File(File),
}

impl Stored {
    fn bytes(bytes: Vec<u8>) -> Self {
        Self {
            size: bytes.len() as u64,
            sha256: Some(sha256(&bytes)),
            body: Body::Bytes(bytes),
        }
    }

    fn file(path: &Path) -> Self {
        let file = File::open(path).unwrap();
        let size = file.metadata().unwrap().len();
        let mut stored = Self {
            body: Body::File(file),
            size,
            sha256: None,
        };
        if size <= HASHED {
            let mut digest = Sha256::new();
            stored.send(0..size, |bytes| {
                digest.update(bytes);
                Some(())
            });
            stored.sha256 = Some(hex(&digest.finalize()));
        }
        stored
    }

    /// Call `to` with the bytes of `range`, some at a time.
    fn send(&self, range: std::ops::Range<u64>, mut to: impl FnMut(&mut [u8]) -> Option<()>) -> Option<()> {
        let mut at = range.start;
        let mut buffer = vec![0; CHUNK];
        while at < range.end {
            let some = (range.end - at).min(CHUNK as u64) as usize;
            match &self.body {
                Body::Bytes(bytes) => buffer[..some].copy_from_slice(&bytes[at as usize..at as usize + some]),
                Body::File(file) => file.read_exact_at(&mut buffer[..some], at).unwrap(),
            }
            to(&mut buffer[..some])?;
            at += some as u64;
        }
        Some(())
    }
}

#[derive(Debug)]
struct Shared {
    files: BTreeMap<String, Stored>,
    faults: Mutex<Faults>,
    log: Mutex<Vec<Asked>>,
    /// Connections that are kept open without a byte.
    silent: Mutex<Vec<TcpStream>>,
    /// Host and port of the other host.
    store: String,
    sent: AtomicU64,
}

/// The server; its threads end with the test's process.
#[derive(Debug)]
pub struct FakeHub {
    /// Its base URL.
    pub endpoint: String,
    shared: Arc<Shared>,
}

impl FakeHub {
    /// A repository of `files`, for this machine.
    pub fn start(files: BTreeMap<String, Vec<u8>>, faults: Faults) -> Self {
        let files = files
            .into_iter()
            .map(|(name, bytes)| (name, Stored::bytes(bytes)));
        // By name, so that names are resolved by a static program too.
        Self::of(files.collect(), "localhost", "127.0.0.1", faults)
    }

    /// A repository of the files of `folder`, which are read when they are asked for, for whoever reaches this machine as
    /// `host`.
    pub fn of_folder(folder: &Path, host: &str, faults: Faults) -> Self {
        let names = std::fs::read_dir(folder).unwrap().map(|item| item.unwrap());
        let files = names.filter(|item| item.path().is_file()).map(|item| {
            (
                item.file_name().into_string().unwrap(),
                Stored::file(&item.path()),
            )
        });
        let bind = if host == "localhost" {
            "127.0.0.1"
        } else {
            "0.0.0.0"
        };
        Self::of(files.collect(), host, bind, faults)
    }

    fn of(files: BTreeMap<String, Stored>, host: &str, bind: &str, faults: Faults) -> Self {
        let listen = || TcpListener::bind((bind, 0)).unwrap();
        let (hub, store) = (listen(), listen());
        let address = |listener: &TcpListener| format!("{host}:{}", listener.local_addr().unwrap().port());
        let endpoint = format!("http://{}", address(&hub));
        let shared = Arc::new(Shared {
            files,
            faults: Mutex::new(faults),
            log: Mutex::default(),
            silent: Mutex::default(),
            store: address(&store),
            sent: AtomicU64::new(0),
        });
        for (listener, at_hub) in [(hub, true), (store, false)] {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let shared = Arc::clone(&shared);
                    std::thread::spawn(move || shared.connection(stream.unwrap(), at_hub));
                }
            });
        }
        Self { endpoint, shared }
    }

    /// What goes wrong from now on.
    pub fn faults(&self) -> MutexGuard<'_, Faults> {
        self.shared.faults.lock().unwrap()
    }

    /// Bytes of files that the other host has sent so far.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// The requests so far.
    pub fn log(&self) -> Vec<Asked> {
        self.shared.log.lock().unwrap().clone()
    }
}

impl Shared {
    fn connection(&self, stream: TcpStream, at_hub: bool) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while let Some(asked) = read_request(&mut reader, at_hub) {
            self.log.lock().unwrap().push(asked.clone());
            if self.answer(&asked, &stream).is_none() {
                let _ = stream.shutdown(std::net::Shutdown::Both);
                return;
            }
        }
    }

    /// `None` when the connection is to end.
    fn answer(&self, asked: &Asked, mut to: &TcpStream) -> Option<()> {
        let mut faults = self.faults.lock().unwrap();
        if !asked.at_hub {
            return self.store(asked, faults, to);
        }
        if faults.busy > 0 {
            faults.busy -= 1;
            return head(&mut to, "429 Too Many Requests", "retry-after: 0\r\n", 0);
        }
        if faults.gated {
            return head(&mut to, "403 Forbidden", "x-error-code: GatedRepo\r\n", 0);
        }
        if faults.token.is_some() && faults.token != asked.token {
            return head(&mut to, "401 Unauthorized", "x-error-code: RepoNotFound\r\n", 0);
        }
        let path = asked.path.split('?').next().unwrap();
        if let Some(revision) = path.strip_prefix(&format!("/api/models/{REPOSITORY}/revision/")) {
            let commit = match revision {
                "main" if faults.moved => NEXT_COMMIT,
                "main" | "v1%2F0" | COMMIT => COMMIT,
                NEXT_COMMIT if faults.moved => NEXT_COMMIT,
                _ => return head(&mut to, "404 Not Found", "x-error-code: RevisionNotFound\r\n", 0),
            };
            let json = self.listing(faults.bare, commit).to_string();
            head(
                &mut to,
                "200 OK",
                "content-type: application/json\r\n",
                json.len(),
            )?;
            return to.write_all(json.as_bytes()).ok();
        }
        if let Some(cached) = path.strip_prefix("/cached/") {
            let stored = &self.files[cached];
            let range = range(asked, stored.size);
            head(&mut to, "200 OK", "", (range.end - range.start) as usize)?;
            return stored.send(range, |bytes| to.write_all(bytes).ok());
        }
        let resolve = format!("/{REPOSITORY}/resolve/");
        let found = path.strip_prefix(&resolve).and_then(|rest| rest.split_once('/'));
        let Some((commit, (name, stored))) =
            found.and_then(|(commit, name)| Some((commit, self.files.get_key_value(name)?)))
        else {
            return head(&mut to, "404 Not Found", "x-error-code: RepoNotFound\r\n", 0);
        };
        let commit = if faults.replaced { NEXT_COMMIT } else { commit };
        if stored.size < LFS_BYTES {
            // A file outside LFS is redirected within the Hub; its ETag is not SHA-256.
            let etag = format!(
                "location: /cached/{name}\r\netag: \"{}\"\r\nx-repo-commit: {commit}\r\n",
                "a".repeat(40)
            );
            return head(&mut to, "307 Temporary Redirect", &etag, 0);
        }
        let sum = stored.sha256.as_deref().unwrap_or("unknown");
        let headers = format!(
            "location: http://{}/{name}?signature=secret\r\nx-linked-etag: \"{sum}\"\r\nx-linked-size: {}\r\n\
             x-repo-commit: {commit}\r\n",
            self.store, stored.size
        );
        head(&mut to, "302 Found", &headers, 0)
    }

    /// The other host.
    fn store(&self, asked: &Asked, mut faults: MutexGuard<'_, Faults>, mut to: &TcpStream) -> Option<()> {
        let name = asked.path.trim_start_matches('/').split('?').next().unwrap();
        let stored = &self.files[name];
        if faults.circle {
            return head(&mut to, "302 Found", &format!("location: /{name}\r\n"), 0);
        }
        let Faults { expired, failing, .. } = &mut *faults;
        for (fault, status) in [(expired, "403 Forbidden"), (failing, "503 Service Unavailable")] {
            if *fault > 0 {
                *fault -= 1;
                return head(&mut to, status, "", 0);
            }
        }
        let is_wrong = faults.wrong > 0;
        faults.wrong -= usize::from(is_wrong);
        let range = if faults.no_ranges {
            0..stored.size
        } else {
            range(asked, stored.size)
        };
        if range.is_empty() {
            return head(&mut to, "416 Range Not Satisfiable", "", 0);
        }
        let length = (range.end - range.start) as usize;
        let etag = format!("etag: \"{name}\"\r\n");
        let headers = format!(
            "{etag}content-range: bytes {}-{}/{}\r\n",
            range.start,
            range.end - 1,
            stored.size
        );
        let (status, headers) = match asked.from {
            None => ("200 OK", etag),
            Some(_) if faults.no_ranges => ("200 OK", etag),
            Some(_) => ("206 Partial Content", headers),
        };
        head(&mut to, status, &headers, length)?;
        if faults.silent > 0 {
            faults.silent -= 1;
            self.silent.lock().unwrap().push(to.try_clone().ok()?);
            return Some(());
        }
        let cut = faults.cuts.pop().map(|cut| cut.min(length));
        // Others are answered meanwhile.
        drop(faults);
        let mut left = cut.unwrap_or(length);
        let end = range.start + left as u64;
        stored.send(range.start..end, |bytes| {
            left -= bytes.len();
            if is_wrong && left == 0 {
                *bytes.last_mut().unwrap() ^= 1;
            }
            self.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            to.write_all(bytes).ok()
        })?;
        // A connection that is cut ends.
        cut.is_none().then_some(())
    }

    fn listing(&self, bare: bool, commit: &str) -> serde_json::Value {
        let file = |(name, stored): (&String, &Stored)| match (stored.size, &stored.sha256) {
            _ if bare => serde_json::json!({"rfilename": name}),
            (0..LFS_BYTES, sum) => {
                serde_json::json!({"rfilename": name, "size": stored.size, "blobId": sum})
            }
            (size, None) => serde_json::json!({"rfilename": name, "size": size, "blobId": name}),
            (size, Some(sum)) => serde_json::json!({"rfilename": name, "size": size, "blobId": "b",
                "lfs": {"sha256": sum, "size": size, "pointerSize": 134}}),
        };
        let siblings: Vec<_> = self.files.iter().map(file).collect();
        serde_json::json!({"id": REPOSITORY, "sha": commit, "siblings": siblings})
    }
}

/// What is asked for of a file of that size.
fn range(asked: &Asked, size: u64) -> std::ops::Range<u64> {
    let from = asked.from.unwrap_or(0) as u64;
    from..asked.to.map_or(size, |to| (to as u64).min(size)).max(from)
}

fn read_request(reader: &mut impl BufRead, at_hub: bool) -> Option<Asked> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.strip_prefix("GET ")?.split(' ').next()?.to_owned();
    let mut asked = Asked {
        at_hub,
        path,
        token: None,
        from: None,
        to: None,
    };
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            return Some(asked);
        };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => asked.token = value.strip_prefix("Bearer ").map(ToOwned::to_owned),
            "range" => {
                let (from, to) = value.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
                asked.from = Some(from.parse().unwrap());
                asked.to = (!to.is_empty()).then(|| to.parse::<usize>().unwrap() + 1);
            }
            _ => {}
        }
    }
}

fn head(to: &mut impl Write, status: &str, headers: &str, length: usize) -> Option<()> {
    write!(
        to,
        "HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\n\r\n"
    )
    .ok()
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The files of a checkpoint that is small, and no real one beyond its configuration, with others that are not wanted.
pub fn files() -> BTreeMap<String, Vec<u8>> {
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "torch_dtype": "bfloat16", "tie_word_embeddings": true,
    });
    let index = serde_json::json!({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}});
    let bytes = |seed: usize, length: usize| {
        (0..length)
            .map(|at| (at * 31 + at / 251 + seed) as u8)
            .collect::<Vec<u8>>()
    };
    BTreeMap::from([
        ("config.json".to_owned(), config.to_string().into_bytes()),
        ("tokenizer.json".to_owned(), bytes(1, 100_000)),
        ("tokenizer_config.json".to_owned(), b"{}".to_vec()),
        ("generation_config.json".to_owned(), b"{}".to_vec()),
        (
            "model.safetensors.index.json".to_owned(),
            index.to_string().into_bytes(),
        ),
        ("model-1.safetensors".to_owned(), bytes(2, 300_000)),
        ("model-2.safetensors".to_owned(), bytes(3, 200_000)),
        ("model-3.safetensors".to_owned(), bytes(4, 200_000)),
        ("original/consolidated.00.pth".to_owned(), bytes(5, 200_000)),
        ("small.gguf".to_owned(), bytes(6, 50_000)),
        ("README.md".to_owned(), bytes(7, 500)),
    ])
}
