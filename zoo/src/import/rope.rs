//! Rotary positions as transformers' configurations have them.
//!
//! Older files say `rope_theta` and `rope_scaling` (whose kind is `rope_type`, or `type` in the oldest), newer ones
//! `rope_parameters` with all of it. Kinds: default, linear, llama3, yarn. With the kinds that depend on the length of the
//! input (dynamic, longrope) keys in a cache turn by other angles than those of a longer prefill: they are refused.

use semisep_core::{RotaryConfig, RotaryScaling};
use serde_json::Value;

use super::Fields;

/// The positions of heads of `head_dim` features, half-split; `theta` and `partial` (the part of a head that turns) where
/// the configuration says nothing of them.
pub(super) fn rope(config: &Fields, head_dim: usize, theta: f64, partial: f64) -> RotaryConfig {
    let parameters = config.section("rope_parameters");
    let scaling = match config.get("rope_scaling") {
        Some(_) => config.section("rope_scaling"),
        None => config.section("rope_parameters"),
    };
    if let Some(Value::Object(sets)) = config.get("rope_parameters")
        && sets.values().any(Value::is_object)
    {
        config.problem("rope_parameters", "expected one set for all layers, found several (not supported)");
    }
    let number = |key: &str| parameters.number(key).or_else(|| config.number(key));
    let partial = number("partial_rotary_factor").unwrap_or(partial);
    if !(partial > 0.0 && partial <= 1.0) {
        config.problem("partial_rotary_factor", format!("expected a number in (0, 1], found {partial}"));
    }
    let rope = RotaryConfig {
        dim: (partial != 1.0).then_some((head_dim as f64 * partial) as usize),
        theta: number("rope_theta").unwrap_or(theta),
        interleaved: false,
        scaling: kind(config, &scaling),
    };
    if config.ok()
        && let Some(issue) = rope.check("rope_theta", head_dim)
    {
        config.issues(vec![issue]);
    }
    rope
}

fn kind(config: &Fields, scaling: &Fields) -> Option<RotaryScaling> {
    let key = if scaling.get("rope_type").is_some() { "rope_type" } else { "type" };
    match scaling.text(key)? {
        "default" => None,
        "linear" => Some(RotaryScaling::Linear { factor: required(scaling, "factor") }),
        "llama3" => Some(RotaryScaling::Llama3 {
            factor: required(scaling, "factor"),
            low_freq_factor: required(scaling, "low_freq_factor"),
            high_freq_factor: required(scaling, "high_freq_factor"),
            original_max_position_embeddings: scaling.size("original_max_position_embeddings"),
        }),
        "yarn" => Some(yarn(config, scaling)),
        other => {
            let found = format!("expected \"default\", \"linear\", \"llama3\" or \"yarn\", found {other:?}");
            scaling.problem(key, found);
            None
        }
    }
}

fn required(fields: &Fields, key: &str) -> f64 {
    fields.number(key).unwrap_or_else(|| {
        fields.problem(key, "expected a number, found nothing");
        1.0
    })
}

fn yarn(config: &Fields, scaling: &Fields) -> RotaryScaling {
    let original = scaling.size_from("original_max_position_embeddings", 1);
    let original = original.unwrap_or_else(|| config.size_or("max_position_embeddings", 1));
    let factor = match scaling.number("factor") {
        Some(factor) => factor,
        None => config.size_or("max_position_embeddings", original) as f64 / original as f64,
    };
    let mscale = |key| {
        let weight = scaling.number(key).filter(|&weight| weight != 0.0);
        weight.map(|weight| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 })
    };
    let ratio = mscale("mscale").zip(mscale("mscale_all_dim")).map(|(all, dim)| all / dim);
    RotaryScaling::Yarn {
        factor,
        original_max_position_embeddings: original,
        beta_fast: scaling.number("beta_fast").unwrap_or(32.0),
        beta_slow: scaling.number("beta_slow").unwrap_or(1.0),
        attention_factor: scaling.number("attention_factor").or(ratio),
        truncate: scaling.flag_or("truncate", true),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn read(text: &str) -> Result<RotaryConfig, String> {
        let config = Fields::new(Path::new("config.json"), serde_json::from_str(text).unwrap());
        let rope = rope(&config, 64, 10_000.0, 1.0);
        config.finish().map(|()| rope).map_err(|e| e.to_string())
    }

    #[test]
    fn both_generations() {
        let plain = RotaryConfig { theta: 5e5, ..RotaryConfig::default() };
        assert_eq!(read(r#"{"rope_theta": 5e5, "rope_scaling": null}"#), Ok(plain));
        let new = r#"{"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}"#;
        assert_eq!(read(new), Ok(plain));
        let half = RotaryConfig { dim: Some(32), ..plain };
        assert_eq!(read(r#"{"rope_theta": 5e5, "partial_rotary_factor": 0.5}"#), Ok(half));
        let linear = RotaryConfig { scaling: Some(RotaryScaling::Linear { factor: 2.0 }), ..plain };
        let old = r#"{"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}}"#;
        assert_eq!(read(old), Ok(linear));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            (r#"{"rope_scaling": {"type": "dynamic", "factor": 2}}"#, "rope_scaling.type: expected"),
            (r#"{"rope_parameters": {"rope_type": "longrope"}}"#, "rope_parameters.rope_type: expected"),
            (r#"{"rope_scaling": {"rope_type": "linear"}}"#, "rope_scaling.factor: expected a number"),
            (r#"{"rope_parameters": {"full": {"rope_theta": 1}}}"#, "rope_parameters: expected one set"),
            (r#"{"rope_scaling": []}"#, "rope_scaling: expected an object"),
            (r#"{"rope_theta": -1}"#, "rope_theta: expected theta > 0"),
            (r#"{"rope_theta": "1e4"}"#, "rope_theta: expected a number"),
            (r#"{"partial_rotary_factor": 2}"#, "partial_rotary_factor: expected"),
        ];
        for (text, part) in cases {
            let message = read(text).unwrap_err();
            assert!(message.contains(part), "{message:?} lacks {part:?}");
        }
    }
}
