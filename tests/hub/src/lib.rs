//! A local server that imitates a Hub: the API, redirects to another port, ranges, ETags, LFS headers, and faults on purpose.
//! The other port also serves the files as an ordinary web server does. [`FaultyProxy`] puts the same faults between a client
//! and a real server.
//!
//! It is for tests, so it panics where a test is wrong.
//!
//! | module | what it is |
//! |---|---|
//! | `files` | a small checkpoint |
//! | `stored` | the files that are sent |
//! | `http` | requests and the beginnings of answers |
//! | `web` | the other port |
//! | `proxy` | faults between others |

#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that makes a mistake may end at once"
)]

use std::collections::BTreeMap;
use std::io::{BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

mod files;
mod http;
mod proxy;
mod stored;
mod web;

pub use files::files;
pub use http::Asked;
pub use proxy::{FaultyProxy, ProxyFaults};

use http::{head, range, read_request};
use stored::Stored;

/// The only repository.
pub const REPOSITORY: &str = "org/model";
/// Its commit.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// Its next commit.
pub const NEXT_COMMIT: &str = "fedcba9876543210fedcba9876543210fedcba98";
/// Files from this size on are in LFS: another host has their bytes.
const LFS_BYTES: u64 = 4096;

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
    /// Files are said to be of [`NEXT_COMMIT`], whatever is asked for; the ordinary web server has others of the same names.
    pub replaced: bool,
    /// 503 at the other host.
    pub failing: usize,
    /// The ordinary web server does not know this file.
    pub missing: Option<String>,
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
    /// Connections that are open now, and the most there were.
    open: AtomicUsize,
    most_open: AtomicUsize,
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
            open: AtomicUsize::new(0),
            most_open: AtomicUsize::new(0),
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

    /// Where the files lie as on an ordinary web server.
    pub fn web_url(&self) -> String {
        format!("http://{}/{}", self.shared.store, web::FOLDER)
    }

    /// What goes wrong from now on.
    pub fn faults(&self) -> MutexGuard<'_, Faults> {
        self.shared.faults.lock().unwrap()
    }

    /// Bytes of files that the other host has sent so far.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// The most connections that were open at once so far, to both hosts.
    pub fn most_connections(&self) -> usize {
        self.shared.most_open.load(Ordering::Relaxed)
    }

    /// The requests so far.
    pub fn log(&self) -> Vec<Asked> {
        self.shared.log.lock().unwrap().clone()
    }
}

impl Shared {
    fn connection(&self, stream: TcpStream, at_hub: bool) {
        let open = self.open.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_open.fetch_max(open, Ordering::Relaxed);
        self.requests(&stream, at_hub);
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    fn requests(&self, stream: &TcpStream, at_hub: bool) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while let Some(asked) = read_request(&mut reader, at_hub) {
            self.log.lock().unwrap().push(asked.clone());
            if self.answer(&asked, stream).is_none() {
                let _ = stream.shutdown(std::net::Shutdown::Both);
                return;
            }
        }
    }

    /// `None` when the connection is to end.
    fn answer(&self, asked: &Asked, mut to: &TcpStream) -> Option<()> {
        let mut faults = self.faults.lock().unwrap();
        if !asked.at_hub {
            return self.web(asked, faults, to);
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
