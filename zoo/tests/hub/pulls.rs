//! Pulls that go well: what comes, what does not, what is asked again.

use std::collections::BTreeMap;

use semisep_zoo::hub::{Event, PullOptions};

use crate::common::{read_safetensors, write_shards};
use crate::server::{COMMIT, LATER, REPO, Server, golden_files};
use crate::{Setup, assert_says, assert_token_stayed, is_commit, main_ref, setup};

const FILES: &[&str] =
    &["config.json", "expected.safetensors", "meta.json", "model.safetensors", "tokens.json"];

fn with_others() -> BTreeMap<String, Vec<u8>> {
    let mut files = golden_files("mamba2-orig");
    let others =
        [".gitattributes", "README.md", "model.gguf", "flax_model.msgpack", "onnx.onnx", "tf_model.h5"];
    others.iter().for_each(|name| {
        files.insert((*name).into(), b"not needed".to_vec());
    });
    files
}

#[test]
fn what_is_needed_comes_and_nothing_else() {
    let files = with_others();
    let server = Server::new(files.clone());
    let setup = setup(&server);
    let (pulled, events) = setup.pull_events(REPO, &PullOptions::default());
    let pulled = pulled.unwrap();
    setup.assert_holds(COMMIT, &files, FILES);
    assert!(is_commit(&main_ref(&setup)));
    assert_token_stayed(&server);
    let bytes: u64 = FILES.iter().map(|name| files[*name].len() as u64).sum();
    assert_eq!((pulled.commit.as_str(), pulled.downloaded), (COMMIT, bytes));
    assert_eq!(pulled.files.iter().map(|f| f.bytes).sum::<u64>(), bytes);
    assert_eq!(pulled.folder, setup.repository().join("snapshots").join(COMMIT));
    // The size is told before the first byte, and the bytes that are told add up to it.
    let first = events.iter().position(|e| matches!(e, Event::Came(_))).unwrap();
    let planned = Event::Planned {
        model: REPO.into(),
        commit: COMMIT.into(),
        files: FILES.len(),
        total: bytes,
        missing: bytes,
    };
    assert!(events[..first].contains(&planned));
    let came: u64 = events.iter().map(|e| if let Event::Came(n) = e { *n } else { 0 }).sum();
    assert_eq!(came, bytes);
    let log = server.log();
    assert!(log.iter().any(|r| r.to_files()), "large files come from another host");
    assert!(log.iter().all(|r| r.headers["accept-encoding"] == "identity"));
}

#[test]
fn a_second_pull_asks_for_the_list_alone() {
    let server = Server::new(with_others());
    let setup = setup(&server);
    let first = setup.pull(REPO).unwrap();
    server.clear();
    let second = setup.pull(REPO).unwrap();
    assert_eq!((second.downloaded, &second.folder, &second.files), (0, &first.folder, &first.files));
    let paths: Vec<String> = server.log().into_iter().map(|r| r.path).collect();
    assert_eq!(paths, [format!("/api/models/{REPO}/revision/main")]);
    // A commit never changes: nothing is asked.
    server.clear();
    assert_eq!(setup.pull(&format!("{REPO}@{COMMIT}")).unwrap().folder, first.folder);
    assert!(server.log().is_empty());
}

#[test]
fn shards_come_by_their_index() {
    let dir = tempfile::tempdir().unwrap();
    let golden = crate::common::golden("mamba2-orig");
    write_shards(dir.path(), &read_safetensors(&golden.join("model.safetensors")));
    let mut files = golden_files("mamba2-orig");
    files.remove("model.safetensors");
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        files.insert(entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap());
    }
    files.insert("model-00009-of-00009.safetensors".into(), b"of another checkpoint".to_vec());
    let server = Server::new(files.clone());
    let setup = setup(&server);
    setup.pull(REPO).unwrap();
    let index = "model.safetensors.index.json";
    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let names =
        ["config.json", "expected.safetensors", "meta.json", shards[0], shards[1], index, "tokens.json"];
    setup.assert_holds(COMMIT, &files, &names);
    // Without one of its shards a copy is no copy.
    std::fs::remove_file(setup.repository().join("snapshots").join(COMMIT).join(shards[1])).unwrap();
    let mut offline = Setup { settings: setup.settings.clone(), ..setup };
    offline.settings.offline = true;
    assert_says(
        &offline.pull(REPO).unwrap_err(),
        &["HF_HUB_OFFLINE", "only a part", "semisep pull owner/name"],
    );
}

#[test]
fn the_only_pth_file_is_the_weights() {
    let files = golden_files("rwkv7-pth");
    let only: BTreeMap<_, _> = files.clone().into_iter().filter(|(name, _)| name == "model.pth").collect();
    let server = Server::new(only.clone());
    let setup_one = setup(&server);
    setup_one.pull(REPO).unwrap();
    setup_one.assert_holds(COMMIT, &only, &["model.pth"]);
    let mut two = only;
    two.insert("other.pth".into(), files["model.pth"].clone());
    let server = Server::new(two.clone());
    let setup = setup(&server);
    assert_says(&setup.pull(REPO).unwrap_err(), &["2 models", "--file NAME: model.pth, other.pth"]);
    setup.assert_nothing_looks_complete();
    let options = PullOptions { file: Some("other.pth".into()), ..PullOptions::default() };
    setup.pull_events(REPO, &options).0.unwrap();
    setup.assert_holds(COMMIT, &two, &["other.pth"]);
    // The one that was chosen is the model from then on.
    assert_eq!(setup.pull(REPO).unwrap().files[0].name, "other.pth");
}

#[test]
fn a_branch_that_moves_leaves_the_old_commit() {
    let old = with_others();
    let server = Server::new(old.clone());
    let setup = setup(&server);
    setup.pull(REPO).unwrap();
    let mut new = old.clone();
    new.insert("config.json".into(), [&old["config.json"][..], b"\n"].concat());
    server.state().commits.insert(LATER.into(), new.clone());
    server.state().revisions.insert("main".into(), LATER.into());
    server.clear();
    let pulled = setup.pull(REPO).unwrap();
    assert_eq!(pulled.downloaded, new["config.json"].len() as u64, "the weights are there already");
    setup.assert_holds(LATER, &new, FILES);
    setup.assert_holds(COMMIT, &old, FILES);
    assert_eq!(main_ref(&setup).as_deref(), Some(LATER));
    assert_eq!(setup.pull(&format!("{REPO}@{COMMIT}")).unwrap().commit, COMMIT);
}

#[test]
fn branches_with_a_slash() {
    let files = with_others();
    let server = Server::new(files.clone());
    server.state().revisions.insert("refs/pr/1".into(), COMMIT.into());
    let setup = setup(&server);
    setup.pull(&format!("{REPO}@refs/pr/1")).unwrap();
    setup.assert_holds(COMMIT, &files, FILES);
    let reference = setup.repository().join("refs/refs/pr/1");
    assert_eq!(std::fs::read_to_string(reference).unwrap(), COMMIT);
    assert_eq!(main_ref(&setup), None);
}

#[test]
fn offline_takes_the_copy_and_connects_to_nothing() {
    let server = Server::new(with_others());
    let mut setup = setup(&server);
    setup.settings.offline = true;
    assert_says(&setup.pull(REPO).unwrap_err(), &["HF_HUB_OFFLINE", "nothing of it", "semisep pull"]);
    setup.settings.offline = false;
    let online = setup.pull(REPO).unwrap();
    server.clear();
    setup.settings.offline = true;
    for word in [REPO, &format!("{REPO}@{COMMIT}")] {
        let offline = setup.pull(word).unwrap();
        assert_eq!((offline.folder, offline.downloaded), (online.folder.clone(), 0));
    }
    assert!(setup.pull(&format!("{REPO}@v2")).is_err());
    assert!(server.log().is_empty());
}

/// A server that is not there: a pull says so, a command that needs the model takes the copy and says that.
#[test]
fn without_a_server_the_copy_does() {
    let server = Server::new(with_others());
    let mut setup = setup(&server);
    let pulled = setup.pull(REPO).unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    setup.settings.endpoint = semisep_zoo::hub::Endpoint::new(&format!("http://{closed}"), false).unwrap();
    assert_says(&setup.pull(REPO).unwrap_err(), &["cannot be reached"]);
    let options = PullOptions { cached_if_unreachable: true, ..PullOptions::default() };
    let (copy, events) = setup.pull_events(REPO, &options);
    assert_eq!(copy.unwrap().folder, pulled.folder);
    let said = |e: &Event| matches!(e, Event::Note(text) if text.contains("using the copy in the cache"));
    assert!(events.iter().any(said), "{events:?}");
}

/// As many processes as there are threads: each content comes once.
#[test]
fn two_at_once_download_once() {
    let files = with_others();
    let server = Server::new(files.clone());
    let setup = setup(&server);
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..4).map(|_| scope.spawn(|| setup.pull(REPO).unwrap())).collect();
        let downloaded: u64 = all.into_iter().map(|one| one.join().unwrap().downloaded).sum();
        assert_eq!(downloaded, FILES.iter().map(|name| files[*name].len() as u64).sum::<u64>());
    });
    setup.assert_holds(COMMIT, &files, FILES);
    let contents = server.log().iter().filter(|r| r.to_files() && r.method == "GET").count();
    assert_eq!(contents, 2, "model.safetensors and expected.safetensors");
}
