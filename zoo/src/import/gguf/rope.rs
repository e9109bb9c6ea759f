//! How rotary positions are stretched.
//!
//! What Llama 3 does to frequencies is not in the metadata but in a tensor, `rope_freqs`: what each frequency is divided by.

use std::f64::consts::TAU;

use candle_core::{DType, Device};
use serde_json::{Value as Json, json};

use super::Facts;
use crate::checkpoint::Value;

/// Where the factors are, under the name that the family's old files have for frequencies.
const FACTORS: &str = "model.layers.0.self_attn.rotary_emb.inv_freq.weight";

/// Most factors: one for two features of a head.
const MAX_FACTORS: usize = 1 << 12;

/// `rope_scaling`, or null.
pub(super) fn scaling(facts: &Facts<'_>) -> Json {
    let number = |key: &str| facts.number(&format!("rope.scaling.{key}"));
    match facts.metadata.own("rope.scaling.type") {
        Some(Value::Text(kind)) if kind != "none" => {
            let pairs = [
                ("rope_type", json!(kind)),
                ("factor", number("factor")),
                ("original_max_position_embeddings", number("original_context_length")),
                ("attention_factor", number("yarn_attn_factor")),
                ("beta_fast", number("yarn_beta_fast")),
                ("beta_slow", number("yarn_beta_slow")),
            ];
            pairs.into_iter().filter(|(_, value)| !value.is_null()).map(|(k, v)| (k.to_string(), v)).collect()
        }
        _ => factors(facts).map_or(Json::Null, |factors| {
            let base = facts.metadata.number("rope.freq_base").unwrap_or(10_000.0);
            llama3(&factors, base).unwrap_or_else(|| json!({"rope_type": "factors that are not Llama 3's"}))
        }),
    }
}

/// The factors, if there are any that change something.
fn factors(facts: &Facts<'_>) -> Option<Vec<f64>> {
    let stored = facts.checkpoint.get(FACTORS).filter(|stored| stored.elements <= MAX_FACTORS)?;
    let read = facts.checkpoint.read(FACTORS, &stored.shape, DType::F64, &Device::Cpu).ok()?;
    let factors = read.tensor.flatten_all().and_then(|t| t.to_vec1::<f64>()).ok()?;
    factors.iter().any(|factor| *factor != 1.0).then_some(factors)
}

/// The parameters that give these factors: frequencies that turn more than `high` times in the original length stay, those
/// that turn less than `low` times are divided by `factor`, and between them is a line. The length and the two bounds are
/// known up to a common factor only.
fn llama3(factors: &[f64], base: f64) -> Option<Json> {
    let turns: Vec<f64> =
        (0..factors.len()).map(|j| base.powf(-(j as f64) / factors.len() as f64) / TAU).collect();
    let factor = factors.iter().copied().fold(0.0, f64::max);
    let line = |f: f64| (1.0 / f - 1.0 / factor) / (1.0 - 1.0 / factor);
    let between: Vec<(f64, f64)> = factors
        .iter()
        .zip(&turns)
        .filter(|(f, _)| **f > 1.0 + 1e-6 && **f < factor * (1.0 - 1e-6))
        .map(|(f, turns)| (*turns, line(*f)))
        .collect();
    let mut candidates = vec![(1.0, 4.0, 8192.0)];
    if let (Some((x0, y0)), Some((x1, y1))) = (between.first(), between.last())
        && x0 != x1
    {
        let slope = (y1 - y0) / (x1 - x0);
        let length = (3.0 * slope).round();
        let low = (slope * x0 - y0) * length / slope;
        candidates.push((low, low + length / slope, length));
    }
    let fits = |&(low, high, length): &(f64, f64, f64)| {
        factors.iter().zip(&turns).all(|(f, turns)| {
            let smooth = ((length * turns - low) / (high - low)).clamp(0.0, 1.0);
            let expected = 1.0 / ((1.0 - smooth) / factor + smooth);
            (f - expected).abs() <= 1e-4 * expected
        })
    };
    let (low, high, length) = candidates.into_iter().find(fits)?;
    Some(json!({
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": length as u64,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Llama 3.1's parameters and others are found again from the factors that they give.
    #[test]
    fn parameters_of_factors() {
        for (factor, low, high, length, base, n) in [
            (8.0, 1.0, 4.0, 8192.0, 5e5, 64),
            (32.0, 1.0, 4.0, 8192.0, 5e5, 32),
            (4.0, 1.0, 6.0, 512.0, 1e4, 32),
        ] {
            let factors: Vec<f64> = (0..n)
                .map(|j| {
                    let turns = length * f64::powf(base, -f64::from(j) / f64::from(n)) / TAU;
                    let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    f64::from((1.0 / ((1.0 - smooth) / factor + smooth)) as f32)
                })
                .collect();
            let found = llama3(&factors, base).unwrap();
            let number = |key: &str| found[key].as_f64().unwrap();
            let ratio = number("original_max_position_embeddings") / length;
            assert!((number("factor") - factor).abs() < 1e-6);
            assert!((number("low_freq_factor") / ratio - low).abs() < 1e-2, "{found}");
            assert!((number("high_freq_factor") / ratio - high).abs() < 1e-2, "{found}");
        }
        assert_eq!(llama3(&[1.0, 5.0, 2.0, 8.0], 1e4), None);
    }
}
