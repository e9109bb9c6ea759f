//! Servers and lines that fail: what is tried again, what is kept, what is never taken for whole.

use std::time::{Duration, Instant};

use semisep_core::Rng;
use semisep_zoo::hub::{Event, PullOptions};

use crate::server::{COMMIT, Fault, REPO, Server, golden_files, sha256};
use crate::{assert_says, assert_token_stayed, main_ref, setup};

const FILES: &[&str] =
    &["config.json", "expected.safetensors", "meta.json", "model.safetensors", "tokens.json"];
const MODEL: &str = "mamba2-orig";

fn ranges(server: &Server) -> Vec<String> {
    server.log().iter().filter_map(|r| r.headers.get("range").cloned()).collect()
}

#[test]
fn broken_connections_continue_where_they_broke() {
    let files = golden_files(MODEL);
    let weights = &files["model.safetensors"];
    for seed in 0..12 {
        let server = Server::golden(MODEL);
        let mut rng = Rng::new(seed);
        let hash = sha256(weights);
        let cuts: Vec<usize> = (0..4).map(|_| rng.below(weights.len() / 4)).collect();
        cuts.iter().for_each(|cut| server.fault("GET", &hash, 1, Fault::Drop(*cut)));
        server.fault("GET", "/api/models/", 1, Fault::Drop(10));
        server.fault("HEAD", "model.safetensors", 1, Fault::Hang);
        let setup = setup(&server);
        setup.pull(REPO).unwrap();
        setup.assert_holds(COMMIT, &files, FILES);
        assert_token_stayed(&server);
        let sent: usize = server.log().iter().filter(|r| r.path.contains(&hash)).map(|r| r.sent).sum();
        assert_eq!(sent, weights.len(), "seed {seed}: no byte of the weights came twice");
        let mut from = 0;
        let expected = cuts.iter().filter_map(|cut| {
            from += cut;
            (from > 0).then(|| format!("bytes={from}-"))
        });
        let expected: Vec<String> = expected.collect();
        // The Hub and the host of large files are both told.
        let doubled: Vec<String> = expected.iter().flat_map(|range| [range.clone(), range.clone()]).collect();
        assert_eq!(ranges(&server), doubled, "seed {seed}");
    }
}

#[test]
fn a_process_that_was_killed_is_continued() {
    let files = golden_files(MODEL);
    let weights = &files["model.safetensors"];
    let server = Server::golden(MODEL);
    let setup = setup(&server);
    let part = setup.blob("model.safetensors", weights).with_extension("incomplete");
    std::fs::create_dir_all(part.parent().unwrap()).unwrap();
    std::fs::write(&part, &weights[..100_000]).unwrap();
    let (pulled, events) = setup.pull_events(REPO, &PullOptions::default());
    let total: u64 = FILES.iter().map(|name| files[*name].len() as u64).sum();
    assert_eq!(pulled.unwrap().downloaded, total - 100_000);
    assert!(
        events.iter().any(|e| matches!(e, Event::Planned { missing, .. } if *missing == total - 100_000))
    );
    setup.assert_holds(COMMIT, &files, FILES);
    assert_eq!(ranges(&server), ["bytes=100000-", "bytes=100000-"]);
}

/// What another program left may be anything: damaged, too long, or just the whole.
#[test]
fn parts_of_others_are_checked() {
    let files = golden_files(MODEL);
    let weights = &files["model.safetensors"];
    let damaged = vec![7; 5000];
    let long = [&weights[..], b"more"].concat();
    for (left, comes) in [(&damaged, true), (&long, true), (weights, false)] {
        let server = Server::golden(MODEL);
        let setup = setup(&server);
        let part = setup.blob("model.safetensors", weights).with_extension("incomplete");
        std::fs::create_dir_all(part.parent().unwrap()).unwrap();
        std::fs::write(&part, left).unwrap();
        setup.pull(REPO).unwrap();
        setup.assert_holds(COMMIT, &files, FILES);
        let sent: usize =
            server.log().iter().filter(|r| r.path.contains(&sha256(weights))).map(|r| r.sent).sum();
        assert_eq!(sent >= weights.len(), comes, "{} bytes were there", left.len());
    }
    // A content under its name, but of another size, is no content.
    let server = Server::golden(MODEL);
    let setup = setup(&server);
    let blob = setup.blob("model.safetensors", weights);
    std::fs::create_dir_all(blob.parent().unwrap()).unwrap();
    std::fs::write(&blob, &weights[..10]).unwrap();
    setup.pull(REPO).unwrap();
    setup.assert_holds(COMMIT, &files, FILES);
}

/// A server that passes over the range, or gives another part, starts over: nothing is put together wrongly.
#[test]
fn ranges_that_are_not_kept() {
    let files = golden_files(MODEL);
    let hash = sha256(&files["model.safetensors"]);
    let gone = Fault::Status(416, Vec::new());
    for fault in [Fault::IgnoreRange, Fault::WrongRange, gone] {
        let server = Server::golden(MODEL);
        server.fault("GET", &hash, 1, Fault::Drop(70_000));
        server.fault("GET", &hash, 1, fault.clone());
        let setup = setup(&server);
        let (pulled, events) = setup.pull_events(REPO, &PullOptions::default());
        pulled.unwrap();
        setup.assert_holds(COMMIT, &files, FILES);
        assert!(events.contains(&Event::Lost(70_000)), "{fault:?}: {events:?}");
    }
}

#[test]
fn a_wrong_checksum_is_never_taken() {
    let files = golden_files(MODEL);
    for name in ["model.safetensors", "config.json"] {
        let server = Server::golden(MODEL);
        let path = if name == "config.json" { name.to_string() } else { sha256(&files[name]) };
        // The redirect of a small file has no body; its target has.
        let path =
            if name == "config.json" { format!("resolve-cache/models/{REPO}/{COMMIT}/{path}") } else { path };
        server.fault("GET", &path, 1, Fault::Corrupt);
        let setup = setup(&server);
        let kind = if name == "config.json" { "git SHA-1" } else { "SHA-256" };
        assert_says(&setup.pull(REPO).unwrap_err(), &[name, "damaged", kind]);
        assert!(!setup.blob(name, &files[name]).exists());
        assert!(!setup.tree().iter().any(|path| path.ends_with(".incomplete") || path.ends_with(name)));
        assert_eq!(main_ref(&setup), None);
        // The next try is not harmed.
        setup.pull(REPO).unwrap();
        setup.assert_holds(COMMIT, &files, FILES);
    }
}

#[test]
fn lengths_that_are_wrong() {
    let files = golden_files(MODEL);
    let hash = sha256(&files["model.safetensors"]);
    for off in [-1, -100_000, 1, 1_000_000] {
        let server = Server::golden(MODEL);
        server.fault("GET", &hash, 1, Fault::Length(off));
        let setup_once = setup(&server);
        setup_once.pull(REPO).unwrap();
        setup_once.assert_holds(COMMIT, &files, FILES);
    }
    let server = Server::golden(MODEL);
    server.fault("GET", &hash, usize::MAX, Fault::Length(7));
    let setup = setup(&server);
    assert_says(
        &setup.pull(REPO).unwrap_err(),
        &["model.safetensors", "announces more bytes", "5 times in a row"],
    );
    assert_eq!(main_ref(&setup), None);
    assert!(!setup.blob("model.safetensors", &files["model.safetensors"]).exists());
}

#[test]
fn too_many_requests_wait_as_long_as_asked() {
    let files = golden_files(MODEL);
    let server = Server::golden(MODEL);
    let wait = |seconds: &str| Fault::Status(429, vec![("retry-after", seconds.to_string())]);
    server.fault("GET", "/api/models/", 1, wait("1"));
    let setup_one = setup(&server);
    let start = Instant::now();
    let (pulled, events) = setup_one.pull_events(REPO, &PullOptions::default());
    pulled.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert!(events.iter().any(|e| matches!(e, Event::Note(text) if text.contains("429"))), "{events:?}");
    setup_one.assert_holds(COMMIT, &files, FILES);
    // Longer than anyone waits: the user decides.
    let server = Server::golden(MODEL);
    server.fault("GET", "/api/models/", 1, wait("86400"));
    let setup_two = setup(&server);
    let start = Instant::now();
    assert_says(&setup_two.pull(REPO).unwrap_err(), &["429", "86400 s"]);
    assert!(start.elapsed() < Duration::from_secs(2));
    // Dates and nonsense: the usual wait.
    for text in ["Wed, 21 Oct 2105 07:28:00 GMT", "-1", "soon", "99999999999999999999999"] {
        let server = Server::golden(MODEL);
        server.fault("HEAD", "config.json", 1, wait(text));
        setup(&server).pull(REPO).unwrap();
    }
}

#[test]
fn server_errors_are_tried_again_but_not_forever() {
    let files = golden_files(MODEL);
    for status in [500, 502, 503, 504, 408] {
        let server = Server::golden(MODEL);
        for (method, path) in [("GET", "/api/models/"), ("HEAD", "resolve/"), ("GET", "/files/")] {
            server.fault(method, path, 2, Fault::Status(status, Vec::new()));
        }
        let setup = setup(&server);
        setup.pull(REPO).unwrap();
        setup.assert_holds(COMMIT, &files, FILES);
    }
    let server = Server::golden(MODEL);
    server.fault("GET", "/api/models/", usize::MAX, Fault::Status(500, Vec::new()));
    let setup = setup(&server);
    assert_says(&setup.pull(REPO).unwrap_err(), &["500", "5 times in a row"]);
    assert_eq!(server.log().len(), 5);
    setup.assert_nothing_looks_complete();
}

#[test]
fn silence_ends() {
    let files = golden_files(MODEL);
    let hash = sha256(&files["model.safetensors"]);
    let server = Server::golden(MODEL);
    server.fault("GET", &hash, 1, Fault::Silence(Duration::from_secs(4)));
    server.fault("GET", "/api/models/", 1, Fault::Silence(Duration::from_secs(4)));
    let mut setup_once = setup(&server);
    setup_once.settings.read_timeout = Duration::from_millis(200);
    let start = Instant::now();
    setup_once.pull(REPO).unwrap();
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    setup_once.assert_holds(COMMIT, &files, FILES);
    let server = Server::golden(MODEL);
    server.fault("GET", &hash, usize::MAX, Fault::Silence(Duration::from_secs(4)));
    let mut setup = setup(&server);
    setup.settings.read_timeout = Duration::from_millis(100);
    assert_says(&setup.pull(REPO).unwrap_err(), &["broke", "5 times in a row"]);
    assert_eq!(main_ref(&setup), None);
}

/// Many faults at once, seeded: a pull ends well or with an error, and never with a wrong file.
#[test]
fn whatever_happens_no_file_is_wrong() {
    let files = golden_files(MODEL);
    let mut good = 0;
    for seed in 0..40 {
        let server = Server::golden(MODEL);
        let mut rng = Rng::new(1000 + seed);
        for _ in 0..6 {
            let fault = match rng.below(8) {
                0 => Fault::Drop(rng.below(100_000)),
                1 => Fault::Hang,
                2 => Fault::Length(rng.below(2000) as i64 - 1000),
                3 => Fault::IgnoreRange,
                4 => Fault::WrongRange,
                5 => Fault::Status([429, 500, 503, 416, 404, 403, 302][rng.below(7)], Vec::new()),
                6 => Fault::Corrupt,
                _ => Fault::Drop(rng.below(1000)),
            };
            let path = ["/files/", "resolve-cache", "resolve/", "config.json"][rng.below(4)];
            // A redirect has no body to corrupt.
            let path = if matches!(fault, Fault::Corrupt) { "/files/" } else { path };
            server.fault("GET", path, 1 + rng.below(2), fault);
        }
        let setup = setup(&server);
        let failed = (0..4).take_while(|_| setup.pull(REPO).is_err()).count();
        for name in FILES {
            let blob = setup.blob(name, &files[*name]);
            assert!(!blob.exists() || std::fs::read(&blob).unwrap() == files[*name], "seed {seed}: {name}");
        }
        assert_token_stayed(&server);
        if failed < 4 {
            good += 1;
            setup.assert_holds(COMMIT, &files, FILES);
        }
    }
    assert!(good > 30, "{good} of 40 ended well");
}
