//! Models in several files.

use std::path::Path;

use candle_core::DType;
use semisep_zoo::load::{LoadOptions, plan};
use semisep_zoo::tokenizer::Tokenizer;
use tempfile::TempDir;

use crate::common::{semisep, stderr};
use crate::conversion::gguf;
use crate::error;
use crate::tokenizer::with_tokenizer;

fn name(i: usize) -> String {
    format!("model-{i:05}-of-00003.gguf")
}

fn parts() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (i, bytes) in with_tokenizer(gguf("mamba-hf", false), 104).parts(3).into_iter().enumerate() {
        std::fs::write(dir.path().join(name(i + 1)), bytes).unwrap();
    }
    dir
}

fn message(path: &Path) -> String {
    let Err(refused) = plan(path, &LoadOptions::default()) else { panic!("{} was read", path.display()) };
    refused.to_string()
}

/// By the folder, the first part or any other; the vocabulary is in the first.
#[test]
fn all_parts_are_one_model() {
    let dir = parts();
    for path in [dir.path().to_path_buf(), dir.path().join(name(1)), dir.path().join(name(3))] {
        let found = error(&path, "mamba-hf", DType::F64);
        assert!(found < 2e-5, "{}: {found}", path.display());
        let model = plan(&path, &LoadOptions::default()).unwrap().architecture.model;
        assert_eq!(Tokenizer::open(&path, &model).unwrap().encode("the").unwrap(), [95, 69]);
    }
}

#[test]
fn parts_that_are_missing_or_mixed() {
    let dir = parts();
    let at = |i| dir.path().join(name(i));
    std::fs::rename(at(2), dir.path().join("kept")).unwrap();
    for path in [dir.path().to_path_buf(), at(1), at(3)] {
        let found = message(&path);
        assert!(
            found.contains("part 2 of 3 of this model, model-00002-of-00003.gguf, cannot be had"),
            "{found}"
        );
    }
    let output = semisep(&["describe", at(1).to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("put all parts into one folder"), "{}", stderr(&output));
    std::fs::copy(at(3), at(2)).unwrap();
    let found = message(&at(1));
    assert!(found.contains("expected split.no 1 and split.count 3, found split.no 2"), "{found}");
    std::fs::copy(at(1), dir.path().join("whole.gguf")).unwrap();
    let found = message(&dir.path().join("whole.gguf"));
    assert!(found.contains("expected the name of one of 3 parts, found \"whole.gguf\""), "{found}");
    assert!(message(dir.path()).contains("expected one .gguf file, found several"));
}

/// A part of another model has tensors of other names, or too few.
#[test]
fn parts_of_another_model() {
    let dir = parts();
    let other = gguf("mamba2-hf", false).parts(3);
    std::fs::write(dir.path().join(name(2)), &other[1]).unwrap();
    let found = message(&dir.path().join(name(1)));
    assert!(found.contains("tensors in all 3 parts, found"), "{found}");
}

#[cfg(unix)]
#[test]
fn no_part_is_outside_of_the_folder() {
    let (dir, other) = (parts(), tempfile::tempdir().unwrap());
    let away = other.path().join("away.gguf");
    std::fs::rename(dir.path().join(name(2)), &away).unwrap();
    std::os::unix::fs::symlink(&away, dir.path().join(name(2))).unwrap();
    let found = message(&dir.path().join(name(1)));
    assert!(found.contains("a link that leads out of it"), "{found}");
}
