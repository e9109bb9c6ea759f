//! `[stack]`: the block of each layer, from one of four forms.

use std::collections::{BTreeMap, BTreeSet};

use super::document::Document;
use super::keys::{Every, StackKeys};
use super::suggest::advice;

/// Layers that a model may have.
pub(super) const MAX_LAYERS: usize = 4096;

/// The block of each layer; `None` if there are errors, which are reported. `doubtful` keys were wrong in themselves.
pub(super) fn layout(
    document: &mut Document<'_>,
    stack: &StackKeys,
    doubtful: &BTreeSet<String>,
    blocks: &BTreeSet<&str>,
) -> Option<Vec<String>> {
    let mut layout = Layout { document, stack, blocks, well: true };
    let form = layout.form(doubtful);
    layout.names(doubtful);
    if !doubtful.is_empty() {
        return None;
    }
    let bound = layout.n_layer();
    match (form?, bound?) {
        ("pattern", n) => {
            let pattern = layout.runs("stack.pattern", stack.pattern.as_ref()?)?;
            layout.no_default("pattern");
            let n = n.unwrap_or(pattern.len());
            layout.finish(pattern.into_iter().cycle().take(n).collect())
        }
        ("layers", n) => {
            let layers = layout.runs("stack.layers", stack.layers.as_ref()?)?;
            layout.no_default("layers");
            if let Some(n) = n.filter(|n| *n != layers.len()) {
                let message = format!("`n_layer` is {n}, but `layers` names {} layers", layers.len());
                layout.value("stack.n_layer", message, Some("leave `n_layer` out".into()));
            }
            layout.finish(layers)
        }
        (form, None) => {
            let message = format!("`{form}` needs `n_layer`, the number of layers");
            layout.document.absent("stack", message, None);
            None
        }
        ("at", Some(n)) => {
            let at = stack.at.as_ref()?.iter();
            let places = at.flat_map(|(block, all)| {
                let place = move |(i, layer): (usize, &usize)| {
                    (*layer, block.clone(), format!("stack.at.{block}[{i}]"))
                };
                all.iter().enumerate().map(place)
            });
            layout.fill(n, places.collect())
        }
        (_, Some(n)) => {
            let places = layout.every(n, stack.every.as_ref()?)?;
            layout.fill(n, places)
        }
    }
}

struct Layout<'l, 'd> {
    document: &'l mut Document<'d>,
    stack: &'l StackKeys,
    blocks: &'l BTreeSet<&'l str>,
    well: bool,
}

impl Layout<'_, '_> {
    fn value(&mut self, key: &str, message: impl Into<String>, help: Option<String>) {
        self.document.value(key, message, help);
        self.well = false;
    }

    fn finish(&self, layers: Vec<String>) -> Option<Vec<String>> {
        self.well.then_some(layers)
    }

    /// The one form of the file.
    fn form(&mut self, doubtful: &BTreeSet<String>) -> Option<&'static str> {
        let s = self.stack;
        let forms = [
            ("at", s.at.is_some()),
            ("every", s.every.is_some()),
            ("layers", s.layers.is_some()),
            ("pattern", s.pattern.is_some()),
        ];
        let present = |name: &str, set: bool| set || doubtful.contains(name);
        let found: Vec<&'static str> =
            forms.into_iter().filter(|(name, set)| present(name, *set)).map(|(name, _)| name).collect();
        match found[..] {
            [form] => Some(form),
            [first, .., last] => {
                let message = format!("`{first}` and `{last}` both lay out the stack: expected one of them");
                self.document.key(&format!("stack.{last}"), message, None);
                None
            }
            [] if doubtful.is_empty() => {
                let help = "for example `pattern = [\"ssd*7\", \"attn\"]`".to_owned();
                let message = "[stack] needs one of `at`, `every`, `layers`, `pattern`";
                self.document.absent("stack", message, Some(help));
                None
            }
            [] => None,
        }
    }

    /// Checks that every name is a block's.
    fn names(&mut self, doubtful: &BTreeSet<String>) {
        let s = self.stack;
        let mut names: Vec<(String, bool, &str)> = vec![];
        names.extend(s.default.iter().map(|name| ("stack.default".into(), false, name.as_str())));
        let at = s.at.iter().flat_map(|at| at.keys());
        names.extend(at.map(|name| (format!("stack.at.{name}"), true, name.as_str())));
        let every = s.every.iter().flat_map(|every| every.keys());
        names.extend(every.map(|name| (format!("stack.every.{name}"), true, name.as_str())));
        for (key, runs) in [("pattern", &s.pattern), ("layers", &s.layers)] {
            // A wrong element was taken out: places in the file are then no longer known.
            let runs = runs.iter().flatten().filter(|_| !doubtful.contains(key)).enumerate();
            names.extend(runs.map(|(i, run)| (format!("stack.{key}[{i}]"), false, block_of(run))));
        }
        for (key, is_key, name) in names {
            if self.blocks.contains(name) {
                continue;
            }
            self.well = false;
            let help = advice(name, self.blocks.iter().copied());
            self.document.no_block(&key, is_key, name, help);
        }
    }

    /// `n_layer`, within its bounds.
    fn n_layer(&mut self) -> Option<Option<usize>> {
        let n = self.stack.n_layer;
        if let Some(n) = n.filter(|n| !(1..=MAX_LAYERS).contains(n)) {
            self.value("stack.n_layer", format!("expected 1 to {MAX_LAYERS} layers, found {n}"), None);
            return None;
        }
        Some(n)
    }

    fn no_default(&mut self, form: &str) {
        if self.stack.default.is_some() {
            self.document.key("stack.default", format!("`default` has no effect with `{form}`"), None);
            self.well = false;
        }
    }

    /// `["ssd*7", "attn"]` written out.
    fn runs(&mut self, key: &str, runs: &[String]) -> Option<Vec<String>> {
        let mut all = vec![];
        for (i, run) in runs.iter().enumerate() {
            let at = format!("{key}[{i}]");
            let count = match run.split_once('*') {
                None => 1,
                Some((_, count)) => match count.trim().parse() {
                    Ok(count) if (1..=MAX_LAYERS).contains(&count) => count,
                    _ => {
                        let message =
                            format!("expected 1 to {MAX_LAYERS} after `*`, found \"{}\"", count.trim());
                        self.value(&at, message, Some("for example \"ssd*7\"".into()));
                        return None;
                    }
                },
            };
            if all.len() + count > MAX_LAYERS {
                self.value(&at, format!("more than {MAX_LAYERS} layers"), None);
                return None;
            }
            all.extend(std::iter::repeat_n(block_of(run).to_owned(), count));
        }
        if all.is_empty() {
            self.value(key, "expected at least one layer, found none", None);
            return None;
        }
        Some(all)
    }

    fn every(&mut self, n: usize, every: &BTreeMap<String, Every>) -> Option<Vec<(usize, String, String)>> {
        let mut places = vec![];
        for (block, Every { period, offset }) in every {
            let key = format!("stack.every.{block}");
            if *period == 0 {
                self.value(&format!("{key}.period"), "expected a period of at least 1, found 0", None);
            } else if offset >= period {
                let message = format!("expected an offset less than the period {period}, found {offset}");
                let help = Some(format!("offset {} gives the same layers", offset % period));
                self.value(&format!("{key}.offset"), message, help);
            } else {
                places.extend((*offset..n).step_by(*period).map(|layer| (layer, block.clone(), key.clone())));
            }
        }
        self.well.then_some(places)
    }

    /// Layers at their places, the default elsewhere.
    fn fill(&mut self, n: usize, places: Vec<(usize, String, String)>) -> Option<Vec<String>> {
        let mut layers: Vec<Option<String>> = vec![None; n];
        for (layer, block, key) in places {
            match layers.get_mut(layer) {
                None => {
                    let message =
                        format!("layer {layer} does not exist: `n_layer` is {n}, and layers count from 0");
                    self.value(&key, message, None);
                }
                Some(Some(other)) => {
                    let message = format!("layer {layer} is \"{other}\" already");
                    self.value(&key, message, None);
                }
                Some(free) => *free = Some(block),
            }
        }
        let default = self.stack.default.as_deref();
        if let (None, Some(first)) = (default, layers.iter().position(Option::is_none)) {
            let message = format!("layer {first} has no block: [stack] needs `default`");
            self.document.absent("stack", message, None);
            self.well = false;
        }
        let layers = layers.into_iter().map(|block| block.or_else(|| default.map(String::from)));
        let layers = layers.collect::<Option<Vec<String>>>()?;
        self.finish(layers)
    }
}

/// The name in `name` or `name*7`.
fn block_of(run: &str) -> &str {
    run.split_once('*').map_or(run, |(name, _)| name).trim()
}
