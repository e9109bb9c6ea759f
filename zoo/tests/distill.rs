//! `--distill`: Hyena at constant cost a token, with the error told.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{golden, semisep, stderr, stdout};
use serde_json::Value;

fn verify(modes: &str, tolerance: &str) -> (Option<i32>, Value, String) {
    let folder = golden("hyenadna");
    let output = semisep(&[
        "verify",
        folder.to_str().unwrap(),
        "--dtype",
        "f64",
        "--json",
        "--distill",
        modes,
        "--tolerance",
        tolerance,
    ]);
    let json = serde_json::from_str(&stdout(&output)).unwrap_or_default();
    (output.status.code(), json, stderr(&output))
}

/// Every layer says how far its filters are off; the logits follow, in the parallel form, in pieces and step by step.
#[test]
fn a_checkpoint_says_what_distilling_costs() {
    let (code, json, told) = verify("16", "0.05");
    assert_eq!(code, Some(0), "{json} {told}");
    for layer in ["[layer 0 (hyena): 16 modes a channel; filters off by ", "[layer 1 (hyena): 16 modes"] {
        assert!(told.contains(layer), "{told}");
    }
    let off = |told: &str| -> f64 {
        let rest = told.split("off by ").nth(1).unwrap();
        rest.split(',').next().unwrap().parse().unwrap()
    };
    let (code, json, coarse) = verify("2", "0.05");
    assert_eq!(code, Some(1), "two modes are too few: {json}");
    assert!(off(&coarse) > 4.0 * off(&told), "{coarse} {told}");
}

#[test]
fn only_hyena_is_distilled() {
    let run = |folder: &str, modes: &str| {
        let folder = golden(folder);
        semisep(&["generate", folder.to_str().unwrap(), "--prompt", "A", "--distill", modes])
    };
    let refused = run("mamba2-orig", "4");
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("no layer of this model can be distilled"), "{}", stderr(&refused));
    let none = run("hyenadna", "0");
    assert_eq!(none.status.code(), Some(2));
    assert!(stderr(&none).contains("expected at least 1 mode"), "{}", stderr(&none));
}
