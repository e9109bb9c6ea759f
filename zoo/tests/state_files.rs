//! States kept in files, by the library for every golden model, and by the command.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use candle_core::DType;
use common::{GOLDEN, bytes_model, golden, semisep, stderr, stdout};
use semisep_models::Session;
use semisep_models::generate::{Flow, GenerateOptions};
use semisep_zoo::load::{LoadOptions, Loaded, load};
use semisep_zoo::state_file;
use serde_json::Value;

fn open(name: &str) -> Loaded {
    load(&golden(name), &LoadOptions { dtype: DType::F64, ..Default::default() }).unwrap()
}

fn prompt(name: &str) -> Vec<u32> {
    let text = std::fs::read_to_string(golden(name).join("tokens.json")).unwrap();
    let tokens: Value = serde_json::from_str(&text).unwrap();
    let ids = tokens["input_ids"][0].as_array().unwrap();
    ids.iter().take(24).map(|id| id.as_u64().unwrap() as u32).collect()
}

fn continued(session: &mut Session, loaded: &Loaded) -> Vec<u32> {
    let options = GenerateOptions { max_tokens: 6, prefill_chunk: 5, ..Default::default() };
    session.generate(&loaded.model, &options, &mut |_, _| Flow::Continue).unwrap().tokens.concat()
}

/// Reading half of a prompt, keeping the state in a file, and reading the rest from there changes nothing.
#[test]
fn every_golden_model_goes_on_from_a_file() {
    let dir = tempfile::tempdir().unwrap();
    for name in GOLDEN {
        let (loaded, ids) = (open(name), prompt(name));
        let expected =
            continued(&mut Session::new(&loaded.model, std::slice::from_ref(&ids)).unwrap(), &loaded);
        let path = dir.path().join(format!("{name}.state"));
        let path = path.with_extension("safetensors");
        let mut first = Session::new(&loaded.model, &[ids[..11].to_vec()]).unwrap();
        first.read(&loaded.model, 4).unwrap();
        state_file::save(&path, &first, &loaded.architecture).unwrap();
        let mut second = state_file::load(&path, &loaded.model, &loaded.architecture).unwrap();
        second.extend(&[ids[11..].to_vec()]).unwrap();
        assert_eq!(continued(&mut second, &loaded), expected, "{name}");
        // What was generated is part of the state that is kept next.
        state_file::save(&path, &second, &loaded.architecture).unwrap();
        let third = state_file::load(&path, &loaded.model, &loaded.architecture).unwrap();
        assert_eq!(third.tokens(), [[ids, expected].concat()], "{name}");
    }
}

#[test]
fn forks_and_cuts() {
    let loaded = open("mamba2attn-orig");
    let ids = prompt("mamba2attn-orig");
    let mut session = Session::new(&loaded.model, &[ids.clone(), ids[..7].to_vec()]).unwrap();
    let mut fork = session.fork().unwrap();
    let expected = continued(&mut session, &loaded);
    assert_eq!(continued(&mut fork, &loaded), expected, "a copy goes its own way");
    assert_eq!(session.tokens()[1].len(), 13);
    // A recurrence cannot be undone; tokens that nothing has read can.
    assert!(session.truncate(9).unwrap_err().to_string().contains("recurrent"));
    let mut unread = Session::new(&loaded.model, &[ids.clone(), ids.clone()]).unwrap();
    unread.truncate(7).unwrap();
    assert_eq!(unread.tokens(), [&ids[..7], &ids[..7]]);
    // A sequence that ends first leaves a state that is not its own.
    let options = GenerateOptions { max_tokens: 4, ..Default::default() };
    let mut rows = [0, 0];
    let mut uneven = Session::new(&loaded.model, &[ids.clone(), ids]).unwrap();
    uneven
        .generate(&loaded.model, &options, &mut |row, _| {
            rows[row] += 1;
            if row == 0 && rows[0] == 2 { Flow::Stop } else { Flow::Continue }
        })
        .unwrap();
    assert_eq!(rows, [2, 4]);
    for error in [uneven.state().map(drop), uneven.extend(&[vec![1], vec![1]]), uneven.read(&loaded.model, 8)]
    {
        assert!(error.unwrap_err().to_string().contains("ended before others"));
    }
}

#[test]
fn by_the_command() {
    let dir = bytes_model();
    let folder = dir.path().to_str().unwrap();
    let state = dir.path().join("a.safetensors");
    let state = state.to_str().unwrap();
    let run = |args: &[&str]| {
        let output = semisep(&[&["generate", folder, "--allow-missing", "--dtype", "f64"], args].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        stdout(&output)
    };
    let whole = run(&["-p", "a long prompt, and more", "-n", "12"]);
    run(&["-p", "a long prompt,", "-n", "0", "--save-state", state]);
    assert_eq!(run(&["--load-state", state, "-p", " and more", "-n", "12"]), whole);
    // Without a new prompt the text goes on where it was left.
    run(&["-p", "a long prompt, and more", "-n", "5", "--save-state", state]);
    let rest = run(&["--load-state", state, "-n", "7"]);
    assert!(whole.trim_end_matches('\n').ends_with(rest.trim_end_matches('\n')), "{whole:?} {rest:?}");
    // The file of another model, no state file, a damaged one, no folder.
    let other = golden("mamba2-orig");
    let refused = |args: &[&str], part: &str| {
        let output = semisep(&[&["generate"], args].concat());
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(part) && !text.contains("panicked"), "{text:?} lacks {part:?}");
    };
    let there = dir.path().join("b/c").display().to_string();
    refused(&[folder, "--allow-missing", "-p", "x", "--save-state", &there], "expected a folder");
    let weights = other.join("model.safetensors");
    refused(&[folder, "--allow-missing", "--load-state", weights.to_str().unwrap()], "expected a state file");
    let two = [folder, "--allow-missing", "--load-state", state, "-p", "a", "-p", "b"];
    refused(&two, "the state has 1 sequences");
    common::edit_config(dir.path(), |config| {
        config.insert("rms_norm".into(), false.into());
    });
    refused(&[folder, "--allow-missing", "--load-state", state], "expected the state of architecture");
    let bytes = std::fs::read(state).unwrap();
    std::fs::write(state, &bytes[..bytes.len() - 9]).unwrap();
    refused(&[folder, "--allow-missing", "--load-state", state], "a.safetensors");
}
