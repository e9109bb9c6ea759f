//! A model's logits against those of its reference implementation.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, IndexOp, Tensor};
use semisep_models::LanguageModel;
use serde::Serialize;

use crate::checkpoint::Checkpoint;
use crate::import::{number, read_json};
use crate::{Error, Result};

/// Tokens and the logits that they should give.
pub struct Expected {
    input_ids: Vec<Vec<u32>>,
    decode_start: Option<usize>,
    /// (b, l, V) f64
    logits: Tensor,
    /// (b, l - decode_start, V) f64
    decode_logits: Option<Tensor>,
    /// How close a float64 computation can come.
    f64_tolerance: f64,
}

/// How one way to compute the logits compares.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// `parallel`, `chunked` or `step`.
    pub form: &'static str,
    /// Largest absolute difference.
    pub max_abs: f64,
    /// That over the largest absolute logit.
    pub relative: f64,
    /// Positions where another token is the likeliest, though the two best differ by more than the tolerance.
    pub argmax_disagreements: usize,
    /// Positions compared.
    pub positions: usize,
    /// Whether the difference is within the tolerance and no position disagrees.
    pub ok: bool,
}

/// The tolerance on the relative difference for weights of this dtype; `f64_tolerance` is the reference's own accuracy.
pub fn tolerance(dtype: DType, f64_tolerance: f64) -> f64 {
    let own = match dtype {
        DType::F64 => return f64_tolerance,
        DType::F32 => 3e-4,
        _ => 3e-2,
    };
    f64::max(own, f64_tolerance)
}

impl Expected {
    /// Reads `tokens` (`{"input_ids": [[...]], "decode_start": n}`) and `expected` (safetensors with `logits` and
    /// perhaps `decode_logits`); `meta.json` beside the latter may hold `f64_tolerance`.
    ///
    /// # Errors
    /// If a file is missing or damaged, or the two do not belong together.
    pub fn open(tokens: &Path, expected: &Path) -> Result<Self> {
        let (input_ids, decode_start) = read_tokens(tokens)?;
        let length = input_ids.first().map_or(0, Vec::len);
        let checkpoint = Checkpoint::open_files(&[PathBuf::from(expected)])?;
        let read = |name: &str, length: usize| -> Result<Option<Tensor>> {
            let Some(stored) = checkpoint.get(name) else { return Ok(None) };
            let shape = stored.shape.clone();
            if shape.len() != 3 || shape[..2] != [input_ids.len(), length] || shape[2] == 0 {
                let message =
                    format!("{name}: expected shape ({}, {length}, V), found {shape:?}", input_ids.len());
                return Err(Error::at(expected, message)
                    .hint("the tokens and the expected values do not belong together"));
            }
            let read = checkpoint.read(name, &shape, DType::F64, &Device::Cpu)?;
            if read.non_finite > 0 {
                return Err(Error::at(
                    expected,
                    format!("{name} has {} values that are not finite", read.non_finite),
                ));
            }
            Ok(Some(read.tensor))
        };
        let logits = read("logits", length)?
            .ok_or_else(|| Error::at(expected, "expected a tensor named logits, found none"))?;
        let decode_logits = match decode_start {
            Some(start) => read("decode_logits", length - start)?,
            None => None,
        };
        if let Some(decode) = &decode_logits
            && decode.dim(2)? != logits.dim(2)?
        {
            let (expected_size, found) = (logits.dim(2)?, decode.dim(2)?);
            let message =
                format!("decode_logits: expected {expected_size} tokens as in logits, found {found}");
            return Err(Error::at(expected, message));
        }
        same_tokens(&checkpoint, &input_ids, tokens)?;
        let f64_tolerance = f64_tolerance(&expected.with_file_name("meta.json"))?;
        Ok(Self { input_ids, decode_start, logits, decode_logits, f64_tolerance })
    }

    /// How close a float64 computation can come to the expected values.
    pub fn f64_tolerance(&self) -> f64 {
        self.f64_tolerance
    }

    /// Compares every form: the parallel one, prefill in pieces of odd lengths, and prefill followed by single steps.
    ///
    /// # Errors
    /// If a token is outside the vocabulary, the model has another one, or it cannot compute.
    pub fn compare(&self, model: &LanguageModel, tolerance: f64) -> Result<Vec<Comparison>> {
        let rows = model.config().padded_vocab();
        for (b, row) in self.input_ids.iter().enumerate() {
            if let Some((i, id)) = row.iter().enumerate().find(|&(_, &id)| id as usize >= rows) {
                let message = format!("input_ids[{b}][{i}] is {id}, expected a token below {rows}");
                return Err(
                    Error::new(message).hint("the tokens are of another model, or its vocabulary is larger")
                );
            }
        }
        let vocab = self.logits.dim(2)?;
        if vocab != rows && vocab != model.config().vocab_size {
            return Err(Error::new(format!("expected logits of {rows} tokens, found {vocab}"))
                .hint("the expected values are of another model"));
        }
        let mut comparisons = vec![
            compare("parallel", &self.parallel(model)?, &self.logits, tolerance)?,
            compare("chunked", &self.chunked(model)?, &self.logits, tolerance)?,
        ];
        // Where no decoding was recorded, it has to give what the parallel form gives.
        let (start, expected) = match (self.decode_start, &self.decode_logits) {
            (Some(start), Some(expected)) => (start, expected.clone()),
            _ => {
                let start = self.length() / 2;
                (start, self.logits.narrow(1, start, self.length() - start)?)
            }
        };
        if expected.elem_count() > 0 {
            comparisons.push(compare("step", &self.stepped(model, start)?, &expected, tolerance)?);
        }
        Ok(comparisons)
    }

    /// Tokens `start..end` of every row, (b, end - start).
    fn ids(&self, start: usize, end: usize) -> Result<Tensor> {
        let rows: Vec<&[u32]> = self.input_ids.iter().map(|row| &row[start..end]).collect();
        Ok(Tensor::from_vec(rows.concat(), (rows.len(), end - start), &Device::Cpu)?)
    }

    fn length(&self) -> usize {
        self.input_ids.first().map_or(0, Vec::len)
    }

    fn parallel(&self, model: &LanguageModel) -> Result<Tensor> {
        Ok(model.forward(&self.ids(0, self.length())?, None)?)
    }

    fn chunked(&self, model: &LanguageModel) -> Result<Tensor> {
        let mut state = model.new_state(self.input_ids.len())?;
        let mut pieces = Vec::new();
        let (mut start, mut next) = (0, 1);
        while start < self.length() {
            let end = (start + next).min(self.length());
            pieces.push(model.forward(&self.ids(start, end)?, Some(&mut state))?);
            (start, next) = (end, next + 2);
        }
        Ok(Tensor::cat(&pieces, 1)?)
    }

    fn stepped(&self, model: &LanguageModel, start: usize) -> Result<Tensor> {
        let mut state = model.new_state(self.input_ids.len())?;
        if start > 0 {
            model.prefill(&self.ids(0, start)?, Some(&mut state))?;
        }
        let steps = (start..self.length()).map(|t| {
            let column: Vec<u32> = self.input_ids.iter().map(|row| row[t]).collect();
            model.step(&column, &mut state)?.unsqueeze(1)
        });
        Ok(Tensor::cat(&steps.collect::<candle_core::Result<Vec<_>>>()?, 1)?)
    }
}

fn compare(form: &'static str, found: &Tensor, expected: &Tensor, tolerance: f64) -> Result<Comparison> {
    let (b, l, vocab) = expected.dims3()?;
    let found = found.i((.., .., ..vocab))?.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
    let found = found.reshape((b * l, vocab))?.to_vec2::<f64>()?;
    let expected = expected.reshape((b * l, vocab))?.to_vec2::<f64>()?;
    // Unlike f64::max, NaN wins: one NaN logit must not pass.
    let worst = |a: f64, b: f64| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) };
    let difference =
        |(f, e): (&Vec<f64>, &Vec<f64>)| f.iter().zip(e).map(|(f, e)| (f - e).abs()).fold(0.0, worst);
    let max_abs = found.iter().zip(&expected).map(difference).fold(0.0, worst);
    let scale = expected.iter().flatten().fold(0.0, |m: f64, v| m.max(v.abs()));
    let relative = if max_abs == 0.0 { 0.0 } else { max_abs / scale };
    let disagree = |(f, e): (&Vec<f64>, &Vec<f64>)| {
        let (best, gap) = best_and_gap(e);
        gap > tolerance * scale && best_and_gap(f).0 != best
    };
    let argmax_disagreements = found.iter().zip(&expected).filter(|&pair| disagree(pair)).count();
    let ok = relative <= tolerance && argmax_disagreements == 0;
    Ok(Comparison { form, max_abs, relative, argmax_disagreements, positions: b * l, ok })
}

/// The index of the largest value, and how far the second is below it.
fn best_and_gap(values: &[f64]) -> (usize, f64) {
    let (mut best, mut first, mut second) = (0, f64::NEG_INFINITY, f64::NEG_INFINITY);
    for (i, &v) in values.iter().enumerate() {
        if v > first {
            (best, second, first) = (i, first, v);
        } else if v > second {
            second = v;
        }
    }
    (best, first - second)
}

/// Rows of equal length, and where decoding starts.
fn read_tokens(path: &Path) -> Result<(Vec<Vec<u32>>, Option<usize>)> {
    let json = read_json(path)?;
    let wrong = |message: String| Error::at(path, message);
    let rows = json.get("input_ids").and_then(|v| v.as_array());
    let rows =
        rows.ok_or_else(|| wrong("input_ids: expected a list of rows of token ids, found none".into()))?;
    let mut input_ids = Vec::with_capacity(rows.len());
    for (b, row) in rows.iter().enumerate() {
        let items =
            row.as_array().ok_or_else(|| wrong(format!("input_ids[{b}]: expected a list, found {row}")))?;
        let ids = items.iter().enumerate().map(|(i, item)| {
            let id = item.as_u64().and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| wrong(format!("input_ids[{b}][{i}]: expected a token id, found {item}")))
        });
        input_ids.push(ids.collect::<Result<Vec<u32>>>()?);
    }
    let length = input_ids.first().map_or(0, Vec::len);
    if length == 0 || input_ids.iter().any(|row| row.len() != length) {
        let lengths: Vec<usize> = input_ids.iter().map(Vec::len).collect();
        return Err(wrong(format!("input_ids: expected rows of one length, found lengths {lengths:?}")));
    }
    let decode_start = match json.get("decode_start") {
        None | Some(serde_json::Value::Null) => None,
        Some(value) => {
            let start = value.as_u64().filter(|&s| s <= length as u64).map(|s| s as usize);
            Some(start.ok_or_else(|| {
                wrong(format!("decode_start: expected a whole number up to {length}, found {value}"))
            })?)
        }
    };
    Ok((input_ids, decode_start))
}

/// Refuses expected values that say they are for other tokens.
fn same_tokens(expected: &Checkpoint, input_ids: &[Vec<u32>], tokens: &Path) -> Result<()> {
    let Some(stored) = expected.get("input_ids") else { return Ok(()) };
    let read = expected.read("input_ids", &stored.shape, DType::F64, &Device::Cpu)?;
    let there = read.tensor.flatten_all()?.to_vec1::<f64>()?;
    let here: Vec<f64> = input_ids.iter().flatten().map(|&id| f64::from(id)).collect();
    if there == here {
        return Ok(());
    }
    let path = expected.path(stored).display();
    Err(Error::at(tokens, format!("input_ids differ from those in {path}"))
        .hint("the tokens and the expected values do not belong together"))
}

fn f64_tolerance(meta: &Path) -> Result<f64> {
    const DEFAULT: f64 = 1e-5;
    if !meta.exists() {
        return Ok(DEFAULT);
    }
    match read_json(meta)?.get("f64_tolerance") {
        None => Ok(DEFAULT),
        Some(value) => number(value).filter(|t| (0.0..1.0).contains(t)).ok_or_else(|| {
            Error::at(meta, format!("f64_tolerance: expected a number from 0 to 1, found {value}"))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(values: &[f64]) -> Tensor {
        Tensor::from_slice(values, (1, values.len() / 2, 2), &Device::Cpu).unwrap()
    }

    #[test]
    fn differences_disagreements_and_nan() {
        let expected = logits(&[2.0, 1.0, -4.0, 0.0]);
        let run = |found: &[f64]| compare("parallel", &logits(found), &expected, 0.1).unwrap();
        assert!(run(&[2.0, 1.0, -4.0, 0.0]).ok);
        let near = run(&[2.0, 1.0, -3.8, 0.0]);
        assert!((near.max_abs - 0.2).abs() < 1e-12 && (near.relative - 0.05).abs() < 1e-12 && near.ok);
        let swapped = run(&[1.0, 2.0, -4.0, 0.0]);
        assert_eq!((swapped.argmax_disagreements, swapped.ok), (1, false));
        assert!(!run(&[f64::NAN, 1.0, -4.0, 0.0]).ok);
        assert!(run(&[f64::NAN, 1.0, -4.0, 0.0]).relative.is_nan());
    }

    #[test]
    fn tolerances_by_dtype() {
        assert_eq!([DType::F64, DType::F32, DType::BF16].map(|d| tolerance(d, 1e-5)), [1e-5, 3e-4, 3e-2]);
        assert_eq!(tolerance(DType::F64, 1e-4), 1e-4);
    }
}
