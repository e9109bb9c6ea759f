//! `semisep list`, as a process.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{semisep, stderr, stdout};
use serde_json::Value;

fn list(args: &[&str]) -> Vec<Value> {
    let output = semisep(&[&["list", "--json"], args].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let value: Value = serde_json::from_str(&stdout(&output)).unwrap();
    value.as_array().unwrap().clone()
}

#[test]
fn figures_and_filters() {
    let all = list(&[]);
    assert!(all.len() > 150);
    let one = list(&["--search", "state-spaces/mamba2-130m"]);
    assert_eq!(one.len(), 1);
    assert_eq!(one[0]["parameters"], 128_989_632);
    assert_eq!(one[0]["weight_bytes"], 2 * 128_989_632);
    assert_eq!(
        (one[0]["layers"]["mamba2"].as_u64(), one[0]["kinds"][0].as_str()),
        (Some(24), Some("mamba2"))
    );
    assert_eq!(
        (one[0]["download_bytes"].as_u64(), one[0]["download_known"].as_str()),
        (Some(2 * 128_989_632), Some("about"))
    );
    let wide = list(&["--search", "state-spaces/mamba2-130m", "--dtype", "f64"]);
    assert_eq!(wide[0]["weight_bytes"], 8 * 128_989_632);
    let small = list(&["--max-params", "1B", "--kind", "attention", "--licence", "APACHE-2.0"]);
    assert!(!small.is_empty());
    for model in &small {
        assert!(model["parameters"].as_u64().unwrap() <= 1_000_000_000);
        assert!(model["kinds"].as_array().unwrap().contains(&"attention".into()));
    }
    assert!(all.iter().all(|model| model["fits"].is_boolean() && model["download_bytes"].is_u64()));
    let fitting = list(&["--fits"]);
    assert!(fitting.iter().all(|model| model["fits"] == true) && fitting.len() < all.len());
}

/// What the catalogue derives, our own count of parameters gives for a blueprint of the same model.
#[test]
fn derived_figures_are_our_own() {
    let names =
        ["mamba-130m", "mamba-370m", "mamba-790m", "mamba-1.4b", "mamba-2.8b", "mamba2-130m", "mamba2-370m"];
    for name in names.into_iter().chain(["mamba2-780m", "mamba2-1.3b", "mamba2-2.7b", "mamba2attn-2.7b"]) {
        let repo = format!("state-spaces/{name}");
        let output = semisep(&["describe", name, "--json"]);
        let described: Value = serde_json::from_str(&stdout(&output)).unwrap();
        let listed = list(&["--search", &repo]);
        let entry = listed.iter().find(|model| model["repo"] == repo.as_str()).unwrap();
        assert_eq!(described["total"]["parameters"], entry["parameters"], "{repo}");
        let mut layers = std::collections::BTreeMap::<&str, u64>::new();
        for layer in described["layers"].as_array().unwrap() {
            *layers.entry(layer["kind"].as_str().unwrap()).or_default() += 1;
        }
        assert_eq!(serde_json::to_value(layers).unwrap(), entry["layers"], "{repo}");
    }
}

/// A size that is published in round numbers is that of the blueprint, rounded.
#[test]
fn approximate_figures_are_near_ours() {
    let output = semisep(&["describe", "transformerpp-2.7b", "--json"]);
    let described: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let listed = list(&["--search", "state-spaces/transformerpp-2.7b"]);
    assert_eq!(listed[0]["approximate"][0], "parameters");
    let (ours, published) =
        (described["total"]["parameters"].as_f64().unwrap(), listed[0]["parameters"].as_f64().unwrap());
    assert_eq!((ours / 1e8).round(), published / 1e8);
}

#[test]
fn a_table_says_what_fits() {
    let output = semisep(&["list", "--family", "zamba2"]);
    let text = stdout(&output);
    assert!(text.contains("Zyphra/Zamba2-1.2B") && text.contains("9 models; weights in bf16"), "{text}");
    let text = stdout(&semisep(&["list", "--search", "recurrentgemma-2b"]));
    assert!(text.contains("18 rg_lru") && text.contains("gemma, gated"), "{text}");
    assert!(text.contains("~5.4 GB"), "{text}");
    let text = stdout(&semisep(&["list", "--search", "rwkv7-g1-0.1b"]));
    assert!(text.contains("rwkv7-g1-0.1b-20250307-ctx4096.pth"), "{text}");
    assert!(text.contains("~191 M") && text.contains(" 382 MB"), "{text}");
    let text = stdout(&semisep(&["list", "--search", "state-spaces/mamba-130m"]));
    assert!(text.contains("<517 MB") && text.contains("EleutherAI/gpt-neox-20b"), "{text}");
}

#[test]
fn catalogues_of_ones_own() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mine.toml");
    let word = path.to_str().unwrap();
    std::fs::write(&path, "[[model]]\nrepo = \"me/mine\"\nfamily = \"mamba2\"\nparameters = 1000\n").unwrap();
    let models = list(&["--catalogue", word, "--fits"]);
    assert_eq!((models.len(), models[0]["repo"].as_str()), (1, Some("me/mine")));
    for (text, says) in [
        ("[[model]]\nrepo = \"me/mine\"\nfamily = \"x\"\nsize = 1\n", "line 4"),
        ("[[model]]\nrepo = \"../mine\"\nfamily = \"x\"\n", "line 1"),
        ("\u{feff}[", "mine.toml"),
    ] {
        std::fs::write(&path, text).unwrap();
        let output = semisep(&["list", "--catalogue", word]);
        assert_eq!(output.status.code(), Some(2));
        assert!(
            stderr(&output).contains(says) && stderr(&output).contains("mine.toml"),
            "{}",
            stderr(&output)
        );
    }
    for args in
        [&["list", "--family", "mamba9"][..], &["list", "--kind", "x"], &["list", "--max-params", "many"]]
    {
        assert_eq!(semisep(args).status.code(), Some(2), "{args:?}");
    }
}
