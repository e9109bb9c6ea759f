//! Refusals, and servers that lie.

use serde_json::json;

use crate::server::{COMMIT, Fault, REPO, Server, golden_files};
use crate::{Setup, assert_says, assert_token_stayed, main_ref, setup};

const MODEL: &str = "mamba2-orig";

fn status(code: u16, error: &str) -> Fault {
    let headers = if error.is_empty() { Vec::new() } else { vec![("x-error-code", error.to_string())] };
    Fault::Status(code, headers)
}

#[test]
fn refusals_say_what_to_do() {
    let licence = ["accept its licence at http://127.0.0.1", "HF_TOKEN"];
    for (fault, path, token, parts) in [
        (status(401, ""), "/api/", true, &["refuses the token", "HF_TOKEN"][..]),
        (status(401, ""), "/api/", false, &["gated, private, or not there", licence[0], licence[1]]),
        (status(401, "GatedRepo"), "resolve/", false, &["owner/name is gated", licence[0], licence[1]]),
        (status(403, "GatedRepo"), "resolve/", true, &["owner/name is gated", licence[0], licence[1]]),
        (status(403, ""), "resolve/", true, &["does not grant access", licence[0]]),
        (status(401, "RepoNotFound"), "/api/", false, &["no model owner/name", "check the name"]),
        (status(404, "EntryNotFound"), "model.safetensors", true, &["no file model.safetensors at main"]),
        (status(404, ""), "model.safetensors", true, &["no file model.safetensors at main"]),
        (status(418, ""), "/api/", true, &["418"]),
    ] {
        for method in ["GET", "HEAD"] {
            let server = Server::golden(MODEL);
            server.fault(method, path, usize::MAX, fault.clone());
            let mut setup = setup(&server);
            setup.settings.token = setup.settings.token.filter(|_| token);
            if (method, path) == ("HEAD", "/api/") {
                continue;
            }
            assert_says(&setup.pull(REPO).unwrap_err(), parts);
            assert_eq!(main_ref(&setup), None);
            let weights = &golden_files(MODEL)["model.safetensors"];
            assert!(!setup.blob("model.safetensors", weights).exists());
        }
    }
}

#[test]
fn models_and_revisions_that_are_not_there() {
    for codes in [true, false] {
        let server = Server::golden(MODEL);
        server.state().error_codes = codes;
        let setup = setup(&server);
        assert_says(
            &setup.pull("owner/other").unwrap_err(),
            &["no model owner/other on 127.0.0.1", "check the name"],
        );
        assert_says(&setup.pull("owner/other@v2").unwrap_err(), &["no model owner/other"]);
        assert_says(
            &setup.pull(&format!("{REPO}@v2")).unwrap_err(),
            &["owner/name has no revision v2", "@REVISION"],
        );
        assert!(setup.tree().is_empty(), "{:?}", setup.tree());
    }
    let server = Server::new([("README.md".to_string(), b"x".to_vec())].into());
    let setup = setup(&server);
    assert_says(&setup.pull(REPO).unwrap_err(), &["no weights that can be loaded", "GGUF"]);
    assert!(setup.tree().is_empty());
}

#[test]
fn redirects_end_and_lead_nowhere_else() {
    let to = |location: String| Fault::Status(302, vec![("location", location)]);
    let secret = tempfile::NamedTempFile::new().unwrap();
    let server = Server::golden(MODEL);
    let loops = format!("/{REPO}/resolve/{COMMIT}/config.json");
    for (location, says) in [
        (loops.clone(), "redirects more than 10 times"),
        (format!("{}{loops}", server.url()), "redirects more than 10 times"),
        ("http://hub.example.invalid/x".to_string(), "without TLS"),
        (format!("file://{}", secret.path().display()), "an address that is none"),
        ("ftp://127.0.0.1/x".to_string(), "an address that is none"),
        (String::new(), "an address that is none"),
        ("http://".to_string(), "an address that is none"),
    ] {
        for method in ["HEAD", "GET"] {
            server.clear();
            server.fault(method, "config.json", usize::MAX, to(location.clone()));
            let setup = setup(&server);
            assert_says(&setup.pull(REPO).unwrap_err(), &[says]);
            assert!(server.log().len() < 40);
            assert_token_stayed(&server);
            setup.assert_nothing_looks_complete();
        }
    }
}

/// The Hub that sends a file's request to another host of its own must not have the token sent along.
#[test]
fn the_token_stays_when_everything_is_redirected() {
    let server = Server::golden(MODEL);
    let elsewhere = |path: &str| {
        let location = format!("http://localhost:{}{path}", server.port);
        Fault::Status(307, vec![("location", location)])
    };
    server.fault("GET", "/api/models/", 1, elsewhere(&format!("/api/models/{REPO}/revision/main")));
    let setup = setup(&server);
    setup.pull(REPO).unwrap();
    assert!(server.log()[1].to_files(), "the list came from the other host");
    assert_token_stayed(&server);
}

fn list(sha: &str, names: &[&str]) -> Vec<u8> {
    let siblings: Vec<_> = names.iter().map(|name| json!({ "rfilename": name })).collect();
    json!({ "sha": sha, "siblings": siblings }).to_string().into_bytes()
}

fn listing(body: Vec<u8>) -> (Server, Setup) {
    let server = Server::golden(MODEL);
    server.fault("GET", "/api/models/", usize::MAX, Fault::Body(body));
    let setup = setup(&server);
    (server, setup)
}

#[test]
fn lists_that_are_none() {
    let many: Vec<String> = (0..100_001).map(|i| format!("f{i}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for body in [
        Vec::new(),
        b"null".to_vec(),
        b"<html>".to_vec(),
        b"\xff\xfe".to_vec(),
        b"{\"siblings\": []}".to_vec(),
        vec![b'['; 1 << 20],
        list("../../evil", &["config.json"]),
        list("", &["config.json"]),
        list("a/b", &["config.json"]),
        list(".git", &["config.json"]),
        list(COMMIT, &many),
        vec![b' '; (32 << 20) + 1],
    ] {
        let (_server, setup) = listing(body);
        assert_says(&setup.pull(REPO).unwrap_err(), &["HF_ENDPOINT"]);
        assert!(setup.tree().is_empty(), "{:?}", setup.tree());
    }
}

#[test]
fn names_that_lead_elsewhere() {
    let bad =
        ["../config.json", "/config.json", "..\\x.pth", "a/../../../x.pth", "/tmp/x.pth", ".pth", "\0.pth"];
    let (_server, one) = listing(list(COMMIT, &bad));
    assert_says(&one.pull(REPO).unwrap_err(), &["no weights"]);
    assert!(one.tree().is_empty(), "{:?}", one.tree());
    for shard in ["../../../../evil.safetensors", "/tmp/evil.safetensors", "a\\b.safetensors", "..", ""] {
        let index = json!({ "weight_map": { "w": shard } }).to_string().into_bytes();
        let mut files = golden_files(MODEL);
        files.remove("model.safetensors");
        files.insert("model.safetensors.index.json".into(), index);
        let server = Server::new(files);
        let setup = setup(&server);
        let error = setup.pull(REPO).unwrap_err().to_string();
        assert!(error.contains("model.safetensors.index.json") && error.contains("plain names"), "{error}");
        assert_eq!(main_ref(&setup), None);
        assert!(!setup.tree().iter().any(|name| name.contains("evil")));
    }
    // A name as it should be, of a file that is not there.
    let index = json!({ "weight_map": { "w": "gone.safetensors" } }).to_string().into_bytes();
    let mut files = golden_files(MODEL);
    files.remove("model.safetensors");
    files.insert("model.safetensors.index.json".into(), index);
    let server = Server::new(files);
    assert_says(
        &setup(&server).pull(REPO).unwrap_err(),
        &["names gone.safetensors", "which is not there", "not whole"],
    );
}

#[test]
fn etags_and_sizes_that_are_none() {
    let cases: &[(&str, &str, &str)] = &[
        ("x-linked-etag", "../../evil", "no etag"),
        ("x-linked-etag", "\"/etc/passwd\"", "no etag"),
        ("x-linked-etag", "abc.incomplete", "no etag"),
        ("x-linked-etag", "\"\"", "no etag"),
        ("x-linked-size", "-1", "no size"),
        ("x-linked-size", "1e9", "no size"),
        ("x-linked-size", "", "no size"),
        ("x-linked-size", "18446744073709551615", "are free"),
        ("x-repo-commit", "ffffffffffffffffffffffffffffffffffffffff", "another commit"),
    ];
    for (header, value, says) in cases {
        let server = Server::golden(MODEL);
        server.fault("HEAD", "model.safetensors", 1, Fault::Headers(vec![(header, value.to_string())]));
        let setup = setup(&server);
        let error = setup.pull(REPO).unwrap_err();
        assert!(error.to_string().contains(says), "{header}: {value}: {error}");
        setup.assert_nothing_looks_complete();
    }
}

/// A file larger than it was said to be does not fill the disk.
#[test]
fn bodies_longer_than_announced_are_cut() {
    let server = Server::golden(MODEL);
    let small = Fault::Headers(vec![("x-linked-size", "1000".into())]);
    server.fault("HEAD", "model.safetensors", 1, small);
    let setup = setup(&server);
    assert_says(&setup.pull(REPO).unwrap_err(), &["model.safetensors", "more bytes"]);
    let weights = &golden_files(MODEL)["model.safetensors"];
    let part = setup.blob("model.safetensors", weights).with_extension("incomplete");
    assert!(part.metadata().map_or(0, |m| m.len()) <= 1000);
    assert_eq!(main_ref(&setup), None);
}
