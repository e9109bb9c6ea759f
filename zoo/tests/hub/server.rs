//! A server on this machine with the Hub's interface, that fails as told.
//!
//! `127.0.0.1` is the Hub, `localhost` the host of large files: the same listener under another name, as a token sees it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use semisep_zoo::hub::git_etag;
use serde_json::json;
use sha2::{Digest, Sha256};

/// The model that is served, and its commits.
pub const REPO: &str = "owner/name";
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub const LATER: &str = "89abcdef0123456789abcdef0123456789abcdef";

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
    /// Bytes of body that were sent back.
    pub sent: usize,
}

impl Request {
    /// Whether it came to the host of large files.
    pub fn to_files(&self) -> bool {
        self.headers["host"].starts_with("localhost")
    }
}

/// What goes wrong with an answer.
#[derive(Debug, Clone)]
pub enum Fault {
    /// This status and these headers, without a body.
    Status(u16, Vec<(&'static str, String)>),
    /// The connection ends after this many bytes of the body.
    Drop(usize),
    /// The connection ends before any answer.
    Hang,
    /// This long a silence before the body.
    Silence(Duration),
    /// One bit of the body is wrong.
    Corrupt,
    /// The announced length is this much off.
    Length(i64),
    /// The range is passed over.
    IgnoreRange,
    /// Another part than asked for.
    WrongRange,
    /// Another body, status 200.
    Body(Vec<u8>),
    /// These headers instead of the right ones; an empty value leaves one out.
    Headers(Vec<(&'static str, String)>),
}

/// What is served.
pub struct State {
    /// Files by commit.
    pub commits: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// Commits by revision.
    pub revisions: BTreeMap<String, String>,
    /// Whether errors are named as the Hub does.
    pub error_codes: bool,
    /// Where the fault strikes: method, part of the path, and how many times still.
    pub faults: Vec<(&'static str, String, usize, Fault)>,
    pub log: Vec<Request>,
}

pub struct Server {
    pub port: u16,
    state: Arc<Mutex<State>>,
}

impl Server {
    pub fn new(files: BTreeMap<String, Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State {
            commits: [(COMMIT.into(), files)].into(),
            revisions: [("main".into(), COMMIT.into())].into(),
            error_codes: true,
            faults: Vec::new(),
            log: Vec::new(),
        }));
        let shared = state.clone();
        // The thread ends with the test process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                std::thread::spawn(move || answer(stream, &state, port));
            }
        });
        Self { port, state }
    }

    /// A server with a golden folder's files.
    pub fn golden(name: &str) -> Self {
        Self::new(golden_files(name))
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Strikes `times` requests whose path contains `path`.
    pub fn fault(&self, method: &'static str, path: &str, times: usize, fault: Fault) {
        self.state().faults.push((method, path.into(), times, fault));
    }

    pub fn log(&self) -> Vec<Request> {
        self.state().log.clone()
    }

    pub fn clear(&self) {
        self.state().log.clear();
        self.state().faults.clear();
    }
}

pub fn golden_files(name: &str) -> BTreeMap<String, Vec<u8>> {
    let folder = super::common::golden(name);
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether the Hub keeps such a file in large file storage.
pub fn is_large(name: &str) -> bool {
    [".safetensors", ".bin", ".pth", ".ckpt"].iter().any(|end| name.ends_with(end))
}

/// The name of a file's content in the cache.
pub fn etag(name: &str, bytes: &[u8]) -> String {
    if is_large(name) { sha256(bytes) } else { git_etag(bytes) }
}

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn new(status: u16, headers: &[(&str, String)], body: Vec<u8>) -> Self {
        let headers = headers.iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
        Self { status, headers, body }
    }

    fn set(&mut self, name: &str, value: &str) {
        self.headers.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
        if !value.is_empty() {
            self.headers.push((name.into(), value.into()));
        }
    }
}

fn answer(mut stream: TcpStream, state: &Mutex<State>, port: u16) {
    let Some(request) = read(&stream) else { return };
    let (index, fault, mut answer) = {
        let mut state = state.lock().unwrap();
        let found = state.faults.iter_mut().find(|(method, path, times, _)| {
            *times > 0 && *method == request.method && request.path.contains(path.as_str())
        });
        let fault = found.map(|(_, _, times, fault)| {
            *times -= 1;
            fault.clone()
        });
        state.log.push(request.clone());
        (state.log.len() - 1, fault, right(&request, &state, port))
    };
    if !matches!(fault, Some(Fault::IgnoreRange)) {
        cut(&request, &mut answer);
    }
    let (mut limit, mut off, mut silence) = (usize::MAX, 0, Duration::ZERO);
    match fault {
        Some(Fault::Status(status, headers)) => answer = Answer::new(status, &headers, Vec::new()),
        Some(Fault::Body(body)) => answer = Answer::new(200, &[], body),
        Some(Fault::Headers(headers)) => headers.iter().for_each(|(name, value)| answer.set(name, value)),
        Some(Fault::Drop(bytes)) => limit = bytes,
        Some(Fault::Length(by)) => off = by,
        Some(Fault::Silence(time)) => silence = time,
        Some(Fault::Corrupt) => {
            let middle = answer.body.len() / 2;
            answer.body[middle] ^= 1;
        }
        Some(Fault::WrongRange) => {
            let whole = answer.body.len();
            answer.set("content-range", &format!("bytes 1-{whole}/{}", whole + 1));
        }
        Some(Fault::Hang) => return,
        None | Some(Fault::IgnoreRange) => {}
    }
    if request.method == "HEAD" {
        answer.set("content-length", &answer.body.len().to_string());
        answer.body.clear();
    } else {
        let length = answer.body.len() as i64 + off;
        answer.set("content-length", &length.to_string());
    }
    let mut head = format!("HTTP/1.1 {} Status\r\nconnection: close\r\n", answer.status);
    answer.headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    // The client may have gone: that is part of the tests.
    if stream.write_all(format!("{head}\r\n").as_bytes()).is_err() {
        return;
    }
    std::thread::sleep(silence);
    let sent = answer.body.len().min(limit);
    state.lock().unwrap().log[index].sent = sent;
    let _ = stream.write_all(&answer.body[..sent]);
}

/// The part of the body that the request asks for.
fn cut(request: &Request, answer: &mut Answer) {
    let range = request.headers.get("range").filter(|_| answer.status == 200);
    let Some(start) = range.map(|range| range["bytes=".len()..range.len() - 1].parse::<usize>().unwrap())
    else {
        return;
    };
    let whole = answer.body.len();
    if start >= whole {
        *answer = Answer::new(416, &[("content-range", format!("bytes */{whole}"))], Vec::new());
        return;
    }
    answer.status = 206;
    answer.set("content-range", &format!("bytes {start}-{}/{whole}", whole - 1));
    answer.body.drain(..start);
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let first = lines.next()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_string(), words.next()?.to_string());
    let fields = lines.take_while(|line| !line.is_empty());
    let headers = fields.filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        Some((name.trim().to_lowercase(), value.trim().to_string()))
    });
    Some(Request { method, path, headers: headers.collect(), sent: 0 })
}

/// What the Hub would answer.
fn right(request: &Request, state: &State, port: u16) -> Answer {
    let path = request.path.split('?').next().unwrap();
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let repo = |owner: &str, name: &str| format!("{owner}/{name}") == REPO;
    match parts[..] {
        ["files", hash] => {
            let all = state.commits.values().flat_map(BTreeMap::values);
            match all.into_iter().find(|bytes| sha256(bytes) == hash) {
                Some(bytes) => Answer::new(200, &[("etag", "\"of-the-file-host\"".into())], bytes.clone()),
                None => Answer::new(404, &[], Vec::new()),
            }
        }
        ["api", "resolve-cache", "models", owner, name, commit, file] if repo(owner, name) => {
            let bytes = state.commits[commit][file].clone();
            let etag = format!("\"{}\"", git_etag(&bytes));
            Answer::new(200, &[("etag", etag), ("x-repo-commit", commit.into())], bytes)
        }
        ["api", "models", owner, name] if repo(owner, name) => Answer::new(200, &[], b"{}".to_vec()),
        ["api", "models", owner, name, "revision", revision] if repo(owner, name) => {
            match commit(state, &revision.replace("%2F", "/")) {
                Some(commit) => {
                    let names = state.commits[&commit].keys();
                    let siblings: Vec<_> = names.map(|name| json!({ "rfilename": name })).collect();
                    let info = json!({ "id": REPO, "sha": commit, "siblings": siblings });
                    Answer::new(200, &[], info.to_string().into_bytes())
                }
                None => missing(state, "RevisionNotFound"),
            }
        }
        [owner, name, "resolve", revision, file] if repo(owner, name) => {
            let Some(commit) = commit(state, revision) else { return missing(state, "RevisionNotFound") };
            match state.commits[&commit].get(file) {
                Some(bytes) => resolve(&commit, file, bytes, port),
                None => missing(state, "EntryNotFound"),
            }
        }
        _ => missing(state, "RepoNotFound"),
    }
}

fn commit(state: &State, revision: &str) -> Option<String> {
    let commit = state.revisions.get(revision).map_or(revision, String::as_str);
    state.commits.contains_key(commit).then(|| commit.to_string())
}

fn missing(state: &State, code: &str) -> Answer {
    let headers = [("x-error-code", code.to_string())];
    Answer::new(404, if state.error_codes { &headers } else { &[] }, Vec::new())
}

/// Large files are elsewhere; small ones one relative redirect further, as on the Hub.
fn resolve(commit: &str, file: &str, bytes: &[u8], port: u16) -> Answer {
    if !is_large(file) {
        let location = format!("/api/resolve-cache/models/{REPO}/{commit}/{file}");
        return Answer::new(307, &[("location", location), ("x-repo-commit", commit.into())], Vec::new());
    }
    let hash = sha256(bytes);
    let headers = [
        ("location", format!("http://localhost:{port}/files/{hash}?Signature=secret-of-the-file-host")),
        ("x-repo-commit", commit.to_string()),
        ("x-linked-etag", format!("\"{hash}\"")),
        ("x-linked-size", bytes.len().to_string()),
        ("etag", "\"of-the-redirect\"".to_string()),
    ];
    Answer::new(302, &headers, Vec::new())
}
