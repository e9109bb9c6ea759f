//! The first difference between two models, in words.

use std::collections::BTreeSet;

use semisep_models::normal::Architecture;
use serde_json::{Map, Value};

/// Where two models differ, and how: `layer 3, attention: qk_norm is {"eps":1e-6}, there it is nothing`; `None` if they are
/// the same. Both as [`settled`](super::settled::settled) has them.
pub(super) fn difference(ours: &Architecture, theirs: &Architecture) -> Option<String> {
    let (n, there) = (ours.layers.len(), theirs.layers.len());
    if n != there {
        return Some(format!("it has {n} layers, there it has {there}"));
    }
    let whole = ours.to_json();
    let (path, ours, theirs) = first(&whole, &theirs.to_json())?;
    Some(format!("{} is {}, there it is {}", place(&path, &whole), brief(&ours), brief(&theirs)))
}

/// The keys to the first values that differ, and these; plain values before objects and lists, so that a mixer's kind
/// comes before its options.
fn first<'a>(ours: &'a Value, theirs: &'a Value) -> Option<(Vec<String>, Value, Value)> {
    let children: Vec<(String, &'a Value, &'a Value)> = match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            let get = |map: &'a Map<String, Value>, key: &str| map.get(key).unwrap_or(&Value::Null);
            keys.into_iter().map(|key| (key.clone(), get(a, key), get(b, key))).collect()
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().map(|(i, (a, b))| (i.to_string(), a, b)).collect()
        }
        _ if ours == theirs => return None,
        _ => return Some((Vec::new(), ours.clone(), theirs.clone())),
    };
    let nested = |value: &Value| value.is_object() || value.is_array();
    let (deep, flat): (Vec<_>, Vec<_>) = children.into_iter().partition(|(_, a, b)| nested(a) && nested(b));
    flat.into_iter().chain(deep).find_map(|(key, a, b)| {
        let (mut path, ours, theirs) = first(a, b)?;
        path.insert(0, key);
        Some((path, ours, theirs))
    })
}

/// The keys in words.
fn place(path: &[String], whole: &Value) -> String {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    match path[..] {
        ["layers", layer, "stages", stage, "branches", branch, ref rest @ ..] => {
            let pointer = format!("/layers/{layer}/stages/{stage}/branches/{branch}/mixer");
            let kind = whole.pointer(&pointer).and_then(Value::as_str).unwrap_or("its mixer");
            let rest = rest.strip_prefix(&["config"]).unwrap_or(rest);
            format!("layer {layer}, {kind}: {}", rest.join("."))
        }
        ["layers", layer, "stages", ..] => format!("layer {layer}: {}", path[2..].join(".")),
        ["layers", layer, ref rest @ ..] => format!("layer {layer}: {}", rest.join(".")),
        ["model", ref rest @ ..] => format!("the model's {}", rest.join(".")),
        _ => path.join("."),
    }
}

/// A value as it is written, cut to a readable length.
fn brief(value: &Value) -> String {
    const SHOWN: usize = 60;
    if value.is_null() {
        return "nothing".into();
    }
    let text = value.to_string();
    let cut: String = text.chars().take(SHOWN).collect();
    if cut.len() < text.len() { cut + "…" } else { cut }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn kinds_before_options_and_nothing_like_null() {
        let branch =
            |kind: &str, config: Value| json!({ "mixer": kind, "config": config, "post_norm": null });
        let whole = |branch: Value| json!({ "layers": [{ "stages": [{ "branches": [branch] }] }] });
        let ours = whole(branch("attention", json!({ "rope": { "dim": 8 }, "qkv_bias": true })));
        let said = |theirs: Value| {
            first(&ours, &theirs).map(|(path, a, b)| (place(&path, &ours), brief(&a), brief(&b)))
        };
        let words = |place: &str, a: &str, b: &str| Some((place.into(), a.into(), b.into()));
        assert_eq!(
            said(whole(branch("mlp", json!({})))),
            words("layer 0, attention: mixer", "\"attention\"", "\"mlp\"")
        );
        assert_eq!(
            said(whole(branch("attention", json!({ "rope": { "dim": 4 }, "qkv_bias": true })))),
            words("layer 0, attention: rope.dim", "8", "4")
        );
        assert_eq!(
            said(whole(branch("attention", json!({ "qkv_bias": true })))),
            words("layer 0, attention: rope", "{\"dim\":8}", "nothing")
        );
        let same = json!({ "layers": [{ "stages": [{ "branches": [{ "mixer": "attention", "config":
            { "rope": { "dim": 8 }, "qkv_bias": true, "scale": null } }] }] }] });
        assert_eq!(said(same), None);
    }
}
