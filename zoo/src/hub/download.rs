//! One file: into `<etag>.incomplete`, on from where an earlier try ended, checked, then under its name.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use ureq::Body;
use ureq::http::{HeaderMap, Response, StatusCode};

use super::Event;
use super::cache::ModelCache;
use super::client::{Client, Follow, Request, Tried, Trouble};
use super::digest::Digest;
use super::refusal::Subject;
use crate::{Error, Result};

/// Bytes moved at a time.
const PIECE: usize = 256 << 10;
/// Bytes that make a failure a new one: a slow line may break often.
const GAIN: u64 = 1 << 20;

/// A file as the Hub describes it.
pub(super) struct Remote {
    pub(super) name: String,
    pub(super) etag: String,
    pub(super) size: u64,
    pub(super) url: String,
}

/// Brings a file into the cache's blobs; gives the bytes that came over the network.
pub(super) fn fetch(
    client: &Client<'_>,
    cache: &ModelCache,
    remote: &Remote,
    subject: Subject<'_>,
    on: &mut dyn FnMut(Event),
) -> Tried<u64> {
    if is_there(cache, remote) {
        return Ok(0);
    }
    let _lock = cache.lock(&remote.etag, &remote.name, on)?;
    // Another process may have brought it while this one waited.
    if is_there(cache, remote) {
        on(Event::Came(remote.size.saturating_sub(part_size(cache, remote))));
        return Ok(0);
    }
    let mut part = Part::open(cache.incomplete(&remote.etag), remote)?;
    let old = part.have;
    let mut download = Download { client, remote, subject, came: 0, on };
    download.complete(&mut part)?;
    if let Err(damaged) = part.check(remote) {
        // What an earlier process left may be to blame; what came now is not tried twice.
        if old == 0 {
            part.discard();
            return Err(damaged.into());
        }
        (download.on)(Event::Note(format!(
            "{}: the part from an earlier try is damaged, starting over",
            remote.name
        )));
        download.restart(&mut part)?;
        download.complete(&mut part)?;
        if let Err(damaged) = part.check(remote) {
            part.discard();
            return Err(damaged.into());
        }
    }
    let came = download.came;
    part.finish(&cache.blob(&remote.etag))?;
    Ok(came)
}

/// Whether the content is in the cache, in the right size.
pub(super) fn is_there(cache: &ModelCache, remote: &Remote) -> bool {
    std::fs::metadata(cache.blob(&remote.etag)).is_ok_and(|m| m.is_file() && m.len() == remote.size)
}

/// Bytes of it that an earlier try left.
pub(super) fn part_size(cache: &ModelCache, remote: &Remote) -> u64 {
    let length = std::fs::metadata(cache.incomplete(&remote.etag)).map_or(0, |m| m.len());
    if length <= remote.size { length } else { 0 }
}

/// What there is of a file.
struct Part {
    path: PathBuf,
    file: File,
    have: u64,
    digest: Digest,
}

impl Part {
    /// Opens what an earlier try left, or nothing.
    fn open(path: PathBuf, remote: &Remote) -> Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = file.map_err(|e| Error::at(&path, format!("cannot be opened: {e}")))?;
        let fail = |e: std::io::Error| Error::at(&path, format!("cannot be read: {e}"));
        let mut digest = Digest::of(&remote.etag, remote.size);
        let mut have = 0;
        if file.metadata().map_err(fail)?.len() > remote.size {
            file.set_len(0).map_err(fail)?;
        }
        let mut piece = vec![0; PIECE];
        loop {
            match file.read(&mut piece).map_err(fail)? {
                0 => break,
                n => {
                    digest.update(&piece[..n]);
                    have += n as u64;
                }
            }
        }
        Ok(Self { path, file, have, digest })
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| {
            let error = Error::at(&self.path, format!("cannot be written: {e}"));
            match e.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => error.hint(
                    "make room, or set HF_HOME to a folder on another disk; what has come already is kept",
                ),
                _ => error,
            }
        })?;
        self.digest.update(bytes);
        self.have += bytes.len() as u64;
        Ok(())
    }

    fn empty(&mut self, remote: &Remote) -> Result<()> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map_err(|e| Error::at(&self.path, format!("cannot be written: {e}")))?;
        self.digest = Digest::of(&remote.etag, remote.size);
        self.have = 0;
        Ok(())
    }

    /// Compares the content with its etag.
    fn check(&mut self, remote: &Remote) -> Result<()> {
        let digest = std::mem::replace(&mut self.digest, Digest::None);
        match digest.finish() {
            Some((kind, found)) if found != remote.etag => Err(Error::new(format!(
                "{}: the content is damaged: expected {kind} {}, found {found}",
                remote.name, remote.etag
            ))
            .hint("try again; if it comes damaged again, see whether HF_ENDPOINT or a proxy changes it")),
            _ => Ok(()),
        }
    }

    /// Removes a content that is not to be kept. Should that fail, the next try finds it damaged again.
    fn discard(self) {
        let _ = std::fs::remove_file(&self.path);
    }

    /// On disk first, then under its name.
    fn finish(self, blob: &Path) -> Result<()> {
        let fail = |e: std::io::Error| Error::at(blob, format!("cannot be written: {e}"));
        self.file.sync_all().map_err(fail)?;
        std::fs::rename(&self.path, blob).map_err(fail)
    }
}

/// The tries for one file.
struct Download<'a> {
    client: &'a Client<'a>,
    remote: &'a Remote,
    subject: Subject<'a>,
    came: u64,
    on: &'a mut dyn FnMut(Event),
}

impl Download<'_> {
    /// Tries until all bytes are there.
    fn complete(&mut self, part: &mut Part) -> Tried<()> {
        let (mut failures, mut counted) = (0, self.came);
        while part.have < self.remote.size {
            if let Err(trouble) = self.attempt(part) {
                if self.came - counted >= GAIN {
                    (failures, counted) = (0, self.came);
                }
                failures += 1;
                self.client.pause(trouble, failures, self.on)?;
            }
        }
        Ok(())
    }

    fn attempt(&mut self, part: &mut Part) -> Tried<()> {
        let request = Request {
            head: false,
            url: &self.remote.url,
            from: part.have,
            follow: Follow::Everywhere,
            subject: self.subject,
        };
        let response = self.client.send(request)?;
        let status = response.status();
        if status == StatusCode::RANGE_NOT_SATISFIABLE {
            self.restart(part)?;
            return Err(self.passing("does not give the rest of it"));
        }
        if status == StatusCode::PARTIAL_CONTENT {
            match content_range(response.headers()) {
                Some((start, total)) if start == part.have && total.is_none_or(|t| t == self.remote.size) => {
                }
                _ => {
                    self.restart(part)?;
                    return Err(self.passing("gives another part than asked for"));
                }
            }
        } else if part.have > 0 {
            // The range was passed over: this is the whole file.
            self.restart(part)?;
        }
        self.body(response, part)
    }

    fn body(&mut self, response: Response<Body>, part: &mut Part) -> Tried<()> {
        let expected = self.remote.size - part.have;
        let announced = response.headers().get("content-length").and_then(|v| v.to_str().ok()?.parse().ok());
        if announced.is_some_and(|n: u64| n > expected) {
            return Err(self.passing("announces more bytes than it has"));
        }
        let mut reader = response.into_body().into_reader();
        let mut piece = vec![0; PIECE];
        loop {
            let n = match reader.read(&mut piece) {
                Ok(n) => n,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(self.client.broken(&e)),
            };
            if n == 0 {
                break;
            }
            if n as u64 > self.remote.size - part.have {
                self.restart(part)?;
                return Err(self.passing("gives more bytes than it has"));
            }
            part.append(&piece[..n])?;
            self.came += n as u64;
            (self.on)(Event::Came(n as u64));
        }
        if part.have < self.remote.size {
            return Err(self.passing("ends too early"));
        }
        Ok(())
    }

    fn restart(&mut self, part: &mut Part) -> Result<()> {
        (self.on)(Event::Lost(part.have));
        part.empty(self.remote)
    }

    fn passing(&self, what: &str) -> Trouble {
        let host = self.client.settings.endpoint.origin().host();
        let remote = self.remote;
        Trouble::Passing(Error::new(format!("{}, {} bytes: {host} {what}", remote.name, remote.size)), None)
    }
}

/// First byte and length of the whole, of `bytes 7-99/100` or `bytes 7-99/*`.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let (range, total) =
        headers.get("content-range")?.to_str().ok()?.strip_prefix("bytes ")?.split_once('/')?;
    let start = range.split_once('-')?.0.trim().parse().ok()?;
    let total = if total == "*" { None } else { Some(total.trim().parse().ok()?) };
    Some((start, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let of = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("content-range", text.parse().unwrap());
            content_range(&headers)
        };
        assert_eq!(of("bytes 7-99/100"), Some((7, Some(100))));
        assert_eq!(of("bytes 0-0/*"), Some((0, None)));
        for bad in ["", "bytes */100", "bytes -1/100", "items 0-1/2", "bytes 7-99", "bytes 1-2/x"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}
