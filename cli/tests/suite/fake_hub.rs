//! A local server that imitates a Hub: the API, redirects to another port, ranges, ETags, LFS headers, and faults on purpose.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

use sha2::{Digest, Sha256};

pub(crate) const REPOSITORY: &str = "org/model";
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// Files from this size on are in LFS: another host has their bytes.
const LFS_BYTES: usize = 4096;

/// What goes wrong, each as often as its number says.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// The token without which there is 401.
    pub(crate) token: Option<String>,
    /// 403 for everybody.
    pub(crate) gated: bool,
    /// 429 with `Retry-After: 0`.
    pub(crate) busy: usize,
    /// Connections that carry bytes of LFS files are cut after so many of them.
    pub(crate) cuts: Vec<usize>,
    /// A wrong byte in an LFS file.
    pub(crate) wrong: usize,
    /// Links to the other host that have expired.
    pub(crate) expired: usize,
    /// Connections that carry bytes stay open without a byte.
    pub(crate) silent: usize,
    /// The other host does not know ranges.
    pub(crate) no_ranges: bool,
    /// The other host redirects to itself.
    pub(crate) circle: bool,
    /// The listing has no sizes and digests.
    pub(crate) bare: bool,
}

/// A request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) at_hub: bool,
    pub(crate) path: String,
    pub(crate) token: Option<String>,
    pub(crate) from: Option<usize>,
}

#[derive(Debug)]
struct Shared {
    files: BTreeMap<String, Vec<u8>>,
    faults: Mutex<Faults>,
    log: Mutex<Vec<Asked>>,
    /// Connections that are kept open without a byte.
    silent: Mutex<Vec<TcpStream>>,
    store: SocketAddr,
}

/// The server; its threads end with the test's process.
#[derive(Debug)]
pub(crate) struct FakeHub {
    pub(crate) endpoint: String,
    shared: Arc<Shared>,
}

impl FakeHub {
    pub(crate) fn start(files: BTreeMap<String, Vec<u8>>, faults: Faults) -> Self {
        let (hub, store) = (
            TcpListener::bind("127.0.0.1:0").unwrap(),
            TcpListener::bind("127.0.0.1:0").unwrap(),
        );
        // By name, so that names are resolved by this static program too.
        let endpoint = format!("http://localhost:{}", hub.local_addr().unwrap().port());
        let shared = Arc::new(Shared {
            files,
            faults: Mutex::new(faults),
            log: Mutex::default(),
            silent: Mutex::default(),
            store: store.local_addr().unwrap(),
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

    pub(crate) fn faults(&self) -> MutexGuard<'_, Faults> {
        self.shared.faults.lock().unwrap()
    }

    /// The requests so far.
    pub(crate) fn log(&self) -> Vec<Asked> {
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
        let faults = &mut *self.faults.lock().unwrap();
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
            if !["main", "v1%2F0", COMMIT].contains(&revision) {
                return head(&mut to, "404 Not Found", "x-error-code: RevisionNotFound\r\n", 0);
            }
            let json = self.listing(faults.bare).to_string();
            head(
                &mut to,
                "200 OK",
                "content-type: application/json\r\n",
                json.len(),
            )?;
            return to.write_all(json.as_bytes()).ok();
        }
        if let Some(cached) = path.strip_prefix("/cached/") {
            let bytes = &self.files[cached];
            head(&mut to, "200 OK", "", bytes.len())?;
            return to.write_all(bytes).ok();
        }
        let resolve = format!("/{REPOSITORY}/resolve/{COMMIT}/");
        let Some((name, bytes)) = path
            .strip_prefix(&resolve)
            .and_then(|name| self.files.get_key_value(name))
        else {
            return head(&mut to, "404 Not Found", "x-error-code: RepoNotFound\r\n", 0);
        };
        if bytes.len() < LFS_BYTES {
            // A file outside LFS is redirected within the Hub; its ETag is not SHA-256.
            let etag = format!("location: /cached/{name}\r\netag: \"{}\"\r\n", "a".repeat(40));
            return head(&mut to, "307 Temporary Redirect", &etag, 0);
        }
        let sum = sha256(bytes);
        let headers = format!(
            "location: http://{}/{name}?signature=secret\r\nx-linked-etag: \"{sum}\"\r\nx-linked-size: {}\r\n",
            self.store,
            bytes.len()
        );
        head(&mut to, "302 Found", &headers, 0)
    }

    /// The other host.
    fn store(&self, asked: &Asked, faults: &mut Faults, mut to: &TcpStream) -> Option<()> {
        let name = asked.path.trim_start_matches('/').split('?').next().unwrap();
        let mut bytes = self.files[name].clone();
        if faults.circle {
            return head(&mut to, "302 Found", &format!("location: /{name}\r\n"), 0);
        }
        if faults.expired > 0 {
            faults.expired -= 1;
            return head(&mut to, "403 Forbidden", "", 0);
        }
        if faults.wrong > 0 {
            faults.wrong -= 1;
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
        }
        let from = asked.from.filter(|_| !faults.no_ranges).unwrap_or(0);
        if from >= bytes.len() {
            return head(&mut to, "416 Range Not Satisfiable", "", 0);
        }
        let rest = &bytes[from..];
        let range = format!(
            "content-range: bytes {from}-{}/{}\r\n",
            bytes.len() - 1,
            bytes.len()
        );
        let (status, range) = match from {
            0 => ("200 OK", ""),
            _ => ("206 Partial Content", range.as_str()),
        };
        head(&mut to, status, range, rest.len())?;
        if faults.silent > 0 {
            faults.silent -= 1;
            self.silent.lock().unwrap().push(to.try_clone().ok()?);
            return Some(());
        }
        if let Some(cut) = faults.cuts.pop() {
            to.write_all(&rest[..cut.min(rest.len())]).ok()?;
            return None;
        }
        to.write_all(rest).ok()
    }

    fn listing(&self, bare: bool) -> serde_json::Value {
        let file = |(name, bytes): (&String, &Vec<u8>)| match bytes.len() {
            _ if bare => serde_json::json!({"rfilename": name}),
            0..LFS_BYTES => serde_json::json!({"rfilename": name, "size": bytes.len(), "blobId": "b"}),
            size => serde_json::json!({"rfilename": name, "size": size, "blobId": "b",
                "lfs": {"sha256": sha256(bytes), "size": size, "pointerSize": 134}}),
        };
        let siblings: Vec<_> = self.files.iter().map(file).collect();
        serde_json::json!({"id": REPOSITORY, "sha": COMMIT, "siblings": siblings})
    }
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
                let from = value
                    .strip_prefix("bytes=")
                    .and_then(|range| range.strip_suffix('-'));
                asked.from = Some(from.unwrap().parse().unwrap());
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
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The files of a checkpoint that is small, and no real one beyond its configuration, with others that are not wanted.
pub(crate) fn files() -> BTreeMap<String, Vec<u8>> {
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
