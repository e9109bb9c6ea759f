//! The parameters of one spelling of a model from those of another: other paths, and gated MLPs held as one map or as two.

use std::collections::BTreeMap;

use candle_core::Tensor;
use semisep_core::ParameterGroup;
use semisep_models::normal::{Architecture, Branch};

use crate::{Error, Result};

/// Rows of a parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rows {
    /// The parameter's place among those of the model that there is.
    pub parameter: usize,
    start: usize,
    len: usize,
}

/// For each parameter of the model to write, the rows that it is made of, one after the other.
pub(super) struct Recast(Vec<Vec<Rows>>);

impl Recast {
    /// From the parameters of one model to those of another, which differ in their spelling alone.
    ///
    /// # Errors
    /// If a parameter is not made of others, or one would be left over.
    pub(super) fn new(
        (from, have): (&Architecture, &[&ParameterGroup]),
        (to, want): (&Architecture, &[ParameterGroup]),
    ) -> Result<Self> {
        let prefixes = prefixes(from, to);
        let places: BTreeMap<&str, usize> =
            have.iter().enumerate().map(|(i, p)| (p.name.as_str(), i)).collect();
        let find = |name: &str| places.get(name).map(|&i| (i, rows(have[i])));
        let mut used = vec![0; have.len()];
        let mut all = Vec::with_capacity(want.len());
        for p in want {
            let name = renamed(&p.name, &prefixes);
            let made = match find(&name) {
                Some((parameter, len)) => Some(vec![Rows { parameter, start: 0, len }]),
                None => regrouped(&name, rows(p), &find),
            };
            let fits = |made: &Vec<Rows>| {
                let same = |r: &Rows| have[r.parameter].shape.get(1..) == p.shape.get(1..);
                made.iter().map(|r| r.len).sum::<usize>() == rows(p) && made.iter().all(same)
            };
            let made = made.filter(fits).ok_or_else(|| missing(p))?;
            made.iter().for_each(|r| used[r.parameter] += r.len);
            all.push(made);
        }
        match have.iter().zip(&used).find(|(p, used)| rows(p) != **used) {
            None => Ok(Self(all)),
            Some((p, _)) => Err(Error::new(format!("{} has no place of its own there", p.name))),
        }
    }

    /// What a parameter is made of.
    pub(super) fn rows(&self, i: usize) -> &[Rows] {
        &self.0[i]
    }

    /// The parameter; `read` gives those that it is made of.
    ///
    /// # Errors
    /// As of `read`.
    pub(super) fn tensor(&self, i: usize, read: &mut dyn FnMut(usize) -> Result<Tensor>) -> Result<Tensor> {
        let mut parts = Vec::new();
        for r in &self.0[i] {
            let whole = read(r.parameter)?;
            let cut = whole.rank() > 0 && whole.dim(0)? != r.len;
            parts.push(if cut { whole.narrow(0, r.start, r.len)? } else { whole });
        }
        match &parts[..] {
            [one] => Ok(one.clone()),
            several => Ok(Tensor::cat(several, 0)?),
        }
    }
}

fn missing(p: &ParameterGroup) -> Error {
    Error::new(format!("{} of shape {:?} is not made of the model's parameters", p.name, p.shape))
}

/// The first axis; 1 for a scalar.
fn rows(p: &ParameterGroup) -> usize {
    p.shape.first().copied().unwrap_or(1)
}

/// Paths of the model to write, each with that of the other.
fn prefixes(from: &Architecture, to: &Architecture) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for (i, (from, to)) in from.layers.iter().zip(&to.layers).enumerate() {
        let branches =
            from.stages.iter().zip(&to.stages).flat_map(|(a, b)| a.branches.iter().zip(&b.branches));
        for (from, to) in branches {
            let paths = |b: &Branch| [Some(b.path.clone()), b.pre_norm.clone(), b.post_norm.clone()];
            for (from, to) in paths(from).into_iter().zip(paths(to)) {
                if let Some((from, to)) = from.zip(to) {
                    all.push((format!("backbone.layers.{i}.{to}"), format!("backbone.layers.{i}.{from}")));
                }
            }
        }
    }
    all
}

/// The name by the longest path that it begins with.
fn renamed(name: &str, prefixes: &[(String, String)]) -> String {
    let rest = |to: &str| name.strip_prefix(to).filter(|rest| rest.is_empty() || rest.starts_with('.'));
    let fitting = prefixes.iter().filter_map(|(to, from)| Some((to.len(), from, rest(to)?)));
    fitting
        .max_by_key(|(len, ..)| *len)
        .map_or_else(|| name.into(), |(_, from, rest)| format!("{from}{rest}"))
}

/// A map of an MLP that is held as one there and as two here, or the other way round: `fc1` is `up_proj`, or
/// [`up_proj`, `gate_proj`]; `fc2` is `down_proj`.
fn regrouped(name: &str, want: usize, find: &dyn Fn(&str) -> Option<(usize, usize)>) -> Option<Vec<Rows>> {
    let (map, tensor) = name.rsplit_once('.')?;
    let (path, map) = map.rsplit_once('.')?;
    let other = |map: &str| find(&format!("{path}.{map}.{tensor}"));
    let whole = |(parameter, len)| Rows { parameter, start: 0, len };
    let half = |(parameter, len): (usize, usize), start| {
        (len == 2 * want).then_some(vec![Rows { parameter, start, len: want }])
    };
    match map {
        "fc1" => {
            let maps = [other("up_proj"), other("gate_proj")];
            Some(maps.into_iter().flatten().map(whole).collect())
        }
        "fc2" => Some(vec![whole(other("down_proj")?)]),
        "down_proj" => Some(vec![whole(other("fc2")?)]),
        "up_proj" => other("fc1")
            .filter(|fc1| fc1.1 == want)
            .map(|fc1| vec![whole(fc1)])
            .or_else(|| half(other("fc1")?, 0)),
        "gate_proj" => half(other("fc1")?, want),
        _ => None,
    }
}
