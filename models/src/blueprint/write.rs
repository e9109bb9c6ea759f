//! From the normal form back to TOML.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::compose::norm_paths;
use super::hash::{layer_json, sorted};
use super::is_name;
use super::keys::Placement;
use crate::normal::{Architecture, Branch, Input, Layer, Merge, Output, Stage};

/// The lines of a table.
type Lines = Vec<(String, Value)>;

impl Architecture {
    /// A blueprint that parses to this architecture. Blocks keep their names, save where two that differ have the same;
    /// control characters of its name are left out.
    pub fn to_toml(&self) -> String {
        let mut writer = Writer::default();
        let names: Vec<String> = self.layers.iter().map(|layer| writer.layer(layer)).collect();
        let name: String = self.name.chars().filter(|c| !c.is_control()).collect();
        let name = if name.trim().is_empty() { "unnamed" } else { name.as_str() };
        let mut text = format!("name = {}\n", value(&json!(name)));
        table(&mut text, "model", &object(&sorted(&json!(self.model))));
        for (name, lines) in &writer.blocks {
            table(&mut text, &format!("blocks.{name}"), lines);
        }
        table(&mut text, "stack", &stack(&names));
        text
    }
}

#[derive(Default)]
struct Writer {
    blocks: Vec<(String, Lines)>,
    taken: BTreeSet<String>,
    /// The block of each layer written so far, by all that the layer is.
    written: BTreeMap<String, String>,
}

impl Writer {
    fn layer(&mut self, layer: &Layer) -> String {
        let identity = json!([layer.block, layer.share, layer_json(&layer.stages)]).to_string();
        if let Some(name) = self.written.get(&identity) {
            return name.clone();
        }
        let name = self.name(&layer.block);
        self.written.insert(identity, name.clone());
        // The block stands before its parts.
        let place = self.blocks.len();
        let mut lines = match &layer.stages[..] {
            [first] if simple(first) => branch(&first.branches[0], "mixer", 0),
            [first, second] if simple(first) && simple(second) => {
                let mut lines = branch(&first.branches[0], "mixer", 0);
                let mlp = branch(&second.branches[0], "mlp", 1);
                lines.push(("mlp".into(), Value::Object(mlp.into_iter().collect())));
                lines
            }
            [only] if !alone(only) => self.parallel(&name, only),
            stages => {
                let parts = stages.iter().map(|stage| self.stage(&name, stage));
                vec![("series".into(), parts.collect())]
            }
        };
        match &layer.share {
            Some(id) if *id == name => lines.push(("share".into(), true.into())),
            Some(id) => lines.push(("share".into(), json!(id))),
            None => {}
        }
        self.blocks.insert(place, (name.clone(), lines));
        name
    }

    /// A block for one stage of a series.
    fn stage(&mut self, block: &str, stage: &Stage) -> String {
        if alone(stage) {
            return self.part(block, &stage.branches[0]);
        }
        let name = self.name(&format!("{block}_parallel"));
        let lines = self.parallel(&name, stage);
        self.blocks.push((name.clone(), lines));
        name
    }

    fn parallel(&mut self, block: &str, stage: &Stage) -> Lines {
        let parts = stage.branches.iter().map(|b| self.part(block, b)).collect();
        let mut lines = vec![("parallel".into(), parts)];
        if stage.merge != Merge::Sum {
            lines.push(("merge".into(), json!(stage.merge)));
        }
        lines
    }

    /// A block for one mixer of a composed block, with every path given.
    fn part(&mut self, block: &str, branch: &Branch) -> String {
        let name = self.name(&format!("{block}_{}", branch.path));
        let mut lines = with_paths(branch, "", ("".into(), "".into()));
        lines.extend(branch.share.iter().map(|id| ("share".into(), json!(id))));
        self.blocks.push((name.clone(), lines));
        name
    }

    /// A name like this that no block has.
    fn name(&mut self, like: &str) -> String {
        let plain: String =
            like.chars().map(|c| if is_name(&c.to_string()) { c } else { '_' }).take(48).collect();
        let plain = if plain.is_empty() { "block".to_owned() } else { plain };
        let names = std::iter::once(plain.clone()).chain((2..).map(|i| format!("{plain}_{i}")));
        let free = names.into_iter().find(|name| !self.taken.contains(name)).unwrap_or(plain);
        self.taken.insert(free.clone());
        free
    }
}

/// A stage of one mixer.
fn alone(stage: &Stage) -> bool {
    stage.branches.len() == 1 && stage.merge == Merge::Sum
}

/// A stage of one mixer that may stand in a block beside others.
fn simple(stage: &Stage) -> bool {
    alone(stage) && stage.branches[0].share.is_none()
}

/// The keys of a mixer whose stage has this index in a plain block.
fn branch(branch: &Branch, path: &str, stage: usize) -> Lines {
    with_paths(branch, path, norm_paths(stage, None, true))
}

fn with_paths(branch: &Branch, path: &str, (pre, post): (String, String)) -> Lines {
    let mut lines = vec![("mixer".into(), json!(branch.mixer.kind()))];
    lines.extend(object(&sorted(&branch.mixer.to_json())));
    let mut put = |key: &str, value: Value| lines.push((key.into(), value));
    if let placement @ ("post" | "both" | "none") =
        Placement::name(branch.pre_norm.is_some(), branch.post_norm.is_some())
    {
        put("norm", placement.into());
    }
    for (key, factor) in
        [("input_multiplier", branch.input_multiplier), ("output_multiplier", branch.output_multiplier)]
    {
        if factor != 1.0 {
            put(key, json!(factor));
        }
    }
    if branch.input != Input::Stream {
        put("input", json!(branch.input));
    }
    if branch.output != Output::Stream {
        put("output", json!(branch.output));
    }
    let paths = [
        ("path", Some(&branch.path), path),
        ("norm_path", branch.pre_norm.as_ref(), &pre),
        ("post_norm_path", branch.post_norm.as_ref(), &post),
    ];
    for (key, found, default) in paths {
        if let Some(found) = found.filter(|found| *found != default) {
            put(key, json!(found));
        }
    }
    lines
}

/// The shortest of the layouts that shows the structure.
fn stack(names: &[String]) -> Lines {
    let n_layer = ("n_layer".to_owned(), json!(names.len()));
    let period = (1..=names.len()).find(|p| names.iter().zip(&names[*p..]).all(|(a, b)| a == b));
    let period = period.unwrap_or(names.len());
    let cycle = runs(&names[..period]);
    if period * 2 <= names.len() || period == 1 {
        return vec![n_layer, ("pattern".into(), json!(cycle))];
    }
    let mut count: BTreeMap<&str, usize> = BTreeMap::new();
    names.iter().for_each(|name| *count.entry(name).or_default() += 1);
    let most = count.iter().max_by_key(|(_, n)| **n).map(|(name, n)| (*name, *n));
    match most {
        Some((default, n)) if 2 * n > names.len() => {
            let mut at: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
            for (i, name) in names.iter().enumerate().filter(|(_, name)| *name != default) {
                at.entry(name).or_default().push(i);
            }
            vec![n_layer, ("default".into(), json!(default)), ("at".into(), json!(at))]
        }
        _ => vec![("layers".into(), json!(runs(names)))],
    }
}

fn runs(names: &[String]) -> Vec<String> {
    let run = |same: &[String]| match same {
        [one] => one.clone(),
        several => format!("{}*{}", several[0], several.len()),
    };
    names.chunk_by(|a, b| a == b).map(run).collect()
}

fn object(value: &Value) -> Lines {
    value.as_object().into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect()
}

fn table(text: &mut String, header: &str, lines: &Lines) {
    let _ = writeln!(text, "\n[{header}]");
    for (key, v) in lines {
        let _ = writeln!(text, "{} = {}", bare(key), value(v));
    }
}

fn bare(key: &str) -> String {
    if is_name(key) { key.into() } else { value(&json!(key)) }
}

/// A value on one line.
fn value(json: &Value) -> String {
    let joined = |all: Vec<String>| all.join(", ");
    match json {
        // JSON has no infinity, and TOML no null: a bound that is null is no bound.
        Value::Null => "inf".into(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(n) if n.is_f64() => format!("{:?}", n.as_f64().unwrap_or_default()),
        Value::Number(n) => n.to_string(),
        // The escapes of JSON are TOML's; DEL must be escaped here only.
        Value::String(_) => json.to_string().replace('\x7f', "\\u007F"),
        Value::Array(all) => format!("[{}]", joined(all.iter().map(value).collect())),
        Value::Object(map) if map.is_empty() => "{}".into(),
        Value::Object(map) => {
            let entries = map.iter().map(|(k, v)| format!("{} = {}", bare(k), value(v)));
            format!("{{ {} }}", joined(entries.collect()))
        }
    }
}
