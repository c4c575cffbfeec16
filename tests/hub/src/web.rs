//! The other port: where a Hub redirects to, and an ordinary web server.

use std::io::Write;
use std::net::TcpStream;
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;

use crate::http::{head, range};
use crate::{Asked, Faults, Shared};

/// The folder of the ordinary web server.
pub(crate) const FOLDER: &str = "models/llama";

impl Shared {
    /// An answer of the other host: to whoever was redirected to it, or to whoever asks for a file of the folder.
    pub(crate) fn web(
        &self,
        asked: &Asked,
        mut faults: MutexGuard<'_, Faults>,
        mut to: &TcpStream,
    ) -> Option<()> {
        let path = asked.path.trim_start_matches('/').split('?').next().unwrap();
        let in_folder = path.strip_prefix(FOLDER).map(|name| name.trim_start_matches('/'));
        let name = in_folder.unwrap_or(path);
        let Some(stored) = self
            .files
            .get(name)
            .filter(|_| faults.missing.as_deref() != Some(name))
        else {
            return head(&mut to, "404 Not Found", "", 0);
        };
        let mut etag = format!("\"{name}\"");
        if in_folder.is_some() {
            if faults.token.is_some() && faults.token != asked.token {
                return head(&mut to, "401 Unauthorized", "", 0);
            }
            etag = format!("\"{}\"", stored.sha256.as_deref().unwrap_or(name));
            if faults.replaced {
                etag = "\"another\"".to_owned();
            }
            if asked.if_match.as_ref().is_some_and(|wanted| *wanted != etag) {
                return head(&mut to, "412 Precondition Failed", "", 0);
            }
        }
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
        let etag = format!("etag: {etag}\r\n");
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
}
