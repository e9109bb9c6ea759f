//! The command, from the Hub's name to text and back again without a network.

use std::process::{Command, Output};

use serde_json::Value;

use crate::common::{stderr, stdout};
use crate::server::{COMMIT, Fault, REPO, Server, golden_files};
use crate::{TOKEN, assert_token_stayed};

struct Home {
    dir: tempfile::TempDir,
    endpoint: String,
}

impl Home {
    fn new(server: &Server) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), endpoint: server.url() }
    }

    fn run(&self, args: &[&str], variables: &[(&str, &str)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_semisep"));
        for name in
            ["HF_HUB_CACHE", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "XDG_CACHE_HOME", "SEMISEP_ALLOW_HTTP"]
        {
            command.env_remove(name);
        }
        let output = command
            .args(args)
            .env("NO_COLOR", "1")
            .env("HF_HOME", self.dir.path())
            .env("HF_ENDPOINT", &self.endpoint)
            .env("HF_TOKEN", TOKEN)
            .envs(variables.iter().copied())
            .current_dir(self.dir.path())
            .output()
            .unwrap();
        let said = stdout(&output) + &stderr(&output);
        assert!(!said.contains("secret"), "{said}");
        output
    }

    #[track_caller]
    fn good(&self, args: &[&str], variables: &[(&str, &str)]) -> (String, String) {
        let output = self.run(args, variables);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
        (stdout(&output), stderr(&output))
    }
}

const OFFLINE: &[(&str, &str)] = &[("HF_HUB_OFFLINE", "1")];

#[test]
fn verify_then_offline() {
    for model in ["mamba2-orig", "rwkv7-pth", "hyenadna"] {
        let server = Server::golden(model);
        let home = Home::new(&server);
        let (first, said) = home.good(&["verify", REPO, "--dtype", "f64"], &[]);
        assert!(first.starts_with("name (") && first.contains("ok"), "{first}");
        assert!(said.contains("to download"), "{said}");
        assert_token_stayed(&server);
        server.clear();
        let (second, said) = home.good(&["verify", REPO, "--dtype", "f64"], OFFLINE);
        assert_eq!((second, said.as_str()), (first, ""));
        assert!(server.log().is_empty());
    }
}

/// A model of 256 tokens, bytes.
fn bytes_model() -> Server {
    let dir = crate::common::bytes_model();
    let read = |name: &str| (name.to_string(), std::fs::read(dir.path().join(name)).unwrap());
    Server::new([read("config.json"), read("model.safetensors")].into())
}

#[test]
fn generate_then_offline() {
    let server = bytes_model();
    let home = Home::new(&server);
    let args = ["generate", REPO, "--prompt", "abc", "-n", "8", "--allow-missing"];
    let (first, _) = home.good(&args, &[]);
    server.clear();
    assert_eq!(home.good(&args, OFFLINE).0, first);
    assert!(server.log().is_empty());
    // A server that does not answer: the copy, and a word about it.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (copy, said) = home.good(&args, &[("HF_ENDPOINT", &format!("http://{closed}"))]);
    assert!(copy == first && said.contains("using the copy in the cache"), "{said}");
}

#[test]
fn every_command_takes_a_name_of_the_hub() {
    let server = Server::golden("mamba2-orig");
    let home = Home::new(&server);
    let (pulled, _) = home.good(&["pull", REPO], &[]);
    let folder = home.dir.path().join("hub/models--owner--name/snapshots").join(COMMIT);
    assert_eq!(pulled.trim(), folder.to_str().unwrap());
    assert!(home.good(&["describe", REPO], &[]).0.starts_with("name: "));
    assert!(home.good(&["check", REPO], &[]).0.starts_with("owner/name: good (name, "));
    let (inspected, _) = home.good(&["inspect", REPO, "--tokens", "16", "--out", "pictures"], &[]);
    assert!(inspected.contains("mamba2"), "{inspected}");
    let bench = ["bench", &format!("{REPO}@{COMMIT}"), "--lengths", "16", "--seconds", "0"];
    assert!(home.good(&bench, &[]).0.contains(REPO));
}

/// To describe, check or import, a configuration is enough; offline too.
#[test]
fn configurations_come_without_weights() {
    let server = Server::golden("mamba2-orig");
    let home = Home::new(&server);
    let (described, _) = home.good(&["describe", REPO, "--json"], &[]);
    home.good(&["check", REPO], &[]);
    let (toml, _) = home.good(&["import", REPO], OFFLINE);
    assert!(toml.contains("mixer = \"mamba2\""), "{toml}");
    let of_weights = |r: &crate::server::Request| r.path.contains("/model.safetensors");
    assert!(!server.log().iter().any(of_weights));
    let offline = home.run(&["verify", REPO], OFFLINE);
    assert!(stderr(&offline).contains("only a part of it"), "{}", stderr(&offline));
    home.good(&["export", REPO, "--out", "out"], &[]);
    assert_eq!(home.good(&["describe", REPO, "--json"], OFFLINE).0, described);
    // Weights without a configuration are the configuration.
    let server = Server::golden("rwkv7-pth");
    server.state().commits.get_mut(COMMIT).unwrap().remove("model.safetensors");
    let home = Home::new(&server);
    assert!(home.good(&["describe", REPO], &[]).0.contains("rwkv7"));
}

#[test]
fn pull_says_what_it_does() {
    let server = Server::golden("mamba2-orig");
    let home = Home::new(&server);
    let (json, said) = home.good(&["pull", REPO, "--revision", "main", "--json"], &[]);
    let pulled: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((pulled["commit"].as_str(), pulled["files"].as_array().unwrap().len()), (Some(COMMIT), 5));
    assert!(said.contains(&format!("owner/name at {}: 5 files", &COMMIT[..7])), "{said}");
    let (_, said) = home.good(&["pull", REPO], &[]);
    assert!(said.contains("all 5 files are in the cache"), "{said}");
    for (args, says) in [
        (&["pull", "owner/other"][..], "no model owner/other"),
        (&["pull", "name"], "expected OWNER/NAME"),
        (&["pull", "owner/name@x", "--revision", "y"], "expected one revision, found two"),
        (&["pull", "owner/name", "--revision", "a/../b"], "expected a branch, tag or commit"),
        (&["pull", "owner/name", "--file", "no.pth"], "has no file"),
        (&["verify", "owner/name@v9"], "no revision v9"),
        (&["verify", "nothing-here"], "expected a folder with a checkpoint"),
    ] {
        let output = home.run(args, &[]);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let said = stderr(&output);
        assert!(said.contains(says) && said.contains("help:"), "{args:?}: {said}");
    }
}

/// A folder that exists wins, and a blueprint's file that does not is no model of the Hub.
#[test]
fn folders_come_first() {
    let server = Server::golden("mamba2-orig");
    let home = Home::new(&server);
    let folder = home.dir.path().join("owner/name");
    std::fs::create_dir_all(&folder).unwrap();
    for (name, bytes) in golden_files("mamba-orig") {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
    let (verified, _) = home.good(&["verify", REPO, "--dtype", "f64"], &[]);
    assert!(verified.contains("state-spaces"), "{verified}");
    let output = home.run(&["describe", "blueprints/none.toml"], &[]);
    assert!(output.status.code() == Some(2) && stderr(&output).contains("cannot be opened"));
    assert!(server.log().is_empty());
}

#[test]
fn the_token_may_be_in_its_file() {
    let server = Server::golden("mamba2-orig");
    let home = Home::new(&server);
    std::fs::write(home.dir.path().join("token"), format!("{TOKEN}\n")).unwrap();
    home.good(&["pull", REPO], &[("HF_TOKEN", "")]);
    assert_token_stayed(&server);
    server.clear();
    server.fault("GET", "/api/", 9, Fault::Status(403, vec![("x-error-code", "GatedRepo".into())]));
    let output = home.run(&["pull", REPO], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("accept its licence"), "{}", stderr(&output));
}

#[test]
fn the_environment_is_checked() {
    let server = Server::golden("mamba2-orig");
    let home = Home::new(&server);
    for (name, value, says) in [
        ("HF_ENDPOINT", "http://hub.example.invalid", "HF_ENDPOINT: expected https"),
        ("HF_ENDPOINT", "nonsense", "HF_ENDPOINT: expected an address"),
        ("HF_TOKEN", "hf_secret with spaces", "HF_TOKEN: expected a token"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "soon", "HF_HUB_DOWNLOAD_TIMEOUT: expected seconds"),
        ("HF_HOME", "/proc/none", "/proc/none"),
    ] {
        let output = home.run(&["pull", REPO], &[(name, value)]);
        assert_eq!(output.status.code(), Some(2), "{name}");
        assert!(stderr(&output).contains(says), "{name}: {}", stderr(&output));
    }
    let cache = home.dir.path().join("elsewhere");
    home.good(&["pull", REPO], &[("HF_HUB_CACHE", cache.to_str().unwrap())]);
    assert!(cache.join("models--owner--name/refs/main").is_file());
}
