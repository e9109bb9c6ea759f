//! Which tensors of a checkpoint make which parameter.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::report::Mismatch;
use crate::checkpoint::{Checkpoint, Stored, View};
use crate::import::{Destination, Join, Names};
use crate::{Error, Result};

/// The parameters that a checkpoint's tensors make.
pub(super) struct Tensors {
    pub(super) checkpoint: Arc<Checkpoint>,
    names: Names,
    recipes: BTreeMap<String, Recipe>,
    /// Tensors that are known and not needed.
    pub(super) ignored: Vec<String>,
}

/// The tensors of one parameter.
enum Recipe {
    /// One as it is.
    Whole(String),
    /// Those of this rule, by piece; `None` where the checkpoint lacks one.
    Joined { rule: usize, stored: Vec<Option<String>> },
}

/// The parts that a parameter is read from.
pub(super) struct Parts<'a> {
    pub(super) parts: Vec<(&'a Stored, View)>,
    /// Added to every element.
    pub(super) plus: f64,
    /// Whether the parameter is one tensor as it is.
    pub(super) whole: bool,
}

/// Why a parameter cannot be read.
pub(super) enum Misfit {
    /// There is no tensor for it, or none of this name for a part of it.
    Missing(Option<String>),
    /// Another shape.
    Shape(Mismatch),
}

impl Tensors {
    /// # Errors
    /// If two tensors stand for one parameter.
    pub(super) fn new(checkpoint: Arc<Checkpoint>, names: &Names) -> Result<Self> {
        let (mut recipes, mut ignored) = (BTreeMap::new(), Vec::new());
        for stored in checkpoint.tensors() {
            let mut destinations = names.destinations(&stored.name);
            destinations.retain(|d| names.tied().is_none_or(|(alias, _)| alias != d.native));
            if destinations.is_empty() {
                ignored.push(stored.name.clone());
            }
            for destination in destinations {
                if let Some(other) = enter(&mut recipes, names, &destination, &stored.name) {
                    let message =
                        format!("{other} and {} both stand for {}", stored.name, destination.native);
                    return Err(Error::at(checkpoint.path(stored), message));
                }
            }
        }
        Ok(Self { checkpoint, names: names.clone(), recipes, ignored })
    }

    /// The layout.
    pub(super) fn names(&self) -> &Names {
        &self.names
    }

    /// Whether some tensor stands for this parameter.
    pub(super) fn contains(&self, parameter: &str) -> bool {
        self.recipes.contains_key(parameter)
    }

    /// The tensors behind a parameter, as far as they are there.
    pub(super) fn behind(&self, parameter: &str) -> Vec<&str> {
        match self.recipes.get(parameter) {
            None => Vec::new(),
            Some(Recipe::Whole(name)) => vec![name],
            Some(Recipe::Joined { stored, .. }) => stored.iter().flatten().map(String::as_str).collect(),
        }
    }

    /// Every tensor that some parameter would be made of.
    pub(super) fn named(&self) -> impl Iterator<Item = &str> {
        self.recipes.keys().flat_map(|parameter| self.behind(parameter))
    }

    /// What a parameter of this shape is read from.
    pub(super) fn parts(&self, parameter: &str, shape: &[usize]) -> Result<Parts<'_>, Misfit> {
        match self.recipes.get(parameter) {
            None => Err(Misfit::Missing(None)),
            Some(Recipe::Whole(name)) => {
                let stored = self.checkpoint.get(name).ok_or(Misfit::Missing(None))?;
                if !same_but_ones(&stored.shape, shape) {
                    return Err(mismatch(shape, &[stored]));
                }
                Ok(Parts { parts: vec![(stored, stored.view())], plus: 0.0, whole: true })
            }
            Some(Recipe::Joined { rule, stored }) => self.joined(parameter, shape, *rule, stored),
        }
    }

    fn joined(
        &self,
        parameter: &str,
        shape: &[usize],
        rule: usize,
        names: &[Option<String>],
    ) -> Result<Parts<'_>, Misfit> {
        let join: &Join = self.names.rule(rule).ok_or(Misfit::Missing(None))?;
        let mut stored = Vec::with_capacity(names.len());
        for (piece, name) in names.iter().enumerate() {
            let found = name.as_ref().and_then(|name| self.checkpoint.get(name));
            stored.push(found.ok_or_else(|| Misfit::Missing(self.names.foreign(parameter, (rule, piece))))?);
        }
        let views = join.pieces.iter().zip(&stored).map(|(piece, stored)| piece.view(stored.view()));
        let views: Option<Vec<View>> = views.collect();
        let views = views.filter(|views| fits(views, shape)).ok_or_else(|| mismatch(shape, &stored))?;
        Ok(Parts { parts: stored.into_iter().zip(views).collect(), plus: join.plus, whole: false })
    }
}

/// Notes what a tensor is for; gives the tensor that has that place already, if there is one.
fn enter(
    recipes: &mut BTreeMap<String, Recipe>,
    names: &Names,
    destination: &Destination,
    name: &str,
) -> Option<String> {
    let Some((rule, piece)) = destination.join else {
        return match recipes.insert(destination.native.clone(), Recipe::Whole(name.into()))? {
            Recipe::Whole(other) => Some(other),
            Recipe::Joined { stored, .. } => stored.into_iter().flatten().next(),
        };
    };
    let pieces = names.rule(rule).map_or(0, |join| join.pieces.len());
    let empty = || Recipe::Joined { rule, stored: vec![None; pieces] };
    match recipes.entry(destination.native.clone()).or_insert_with(empty) {
        Recipe::Joined { rule: other, stored } if *other == rule => {
            stored.get_mut(piece)?.replace(name.into())
        }
        Recipe::Joined { stored, .. } => stored.iter().flatten().next().cloned(),
        Recipe::Whole(other) => Some(other.clone()),
    }
}

/// Whether these, one after the other along the first axis, have this shape: each ends in all axes but the first.
fn fits(views: &[View], shape: &[usize]) -> bool {
    let Some((&rows, row)) = shape.split_first() else { return false };
    let no_ones = |dims: &[usize]| dims.iter().copied().filter(|&d| d != 1).collect::<Vec<_>>();
    let (row, elements) = (no_ones(row), row.iter().product::<usize>());
    let mut total = 0usize;
    for view in views {
        if elements == 0 || !no_ones(&view.shape).ends_with(&row) {
            return false;
        }
        total = total.saturating_add(view.elements() / elements);
    }
    total == rows
}

fn mismatch(expected: &[usize], stored: &[&Stored]) -> Misfit {
    Misfit::Shape(Mismatch {
        stored_as: stored.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(" + "),
        expected: expected.into(),
        found: stored.iter().map(|s| s.shape.clone()).collect(),
    })
}

fn same_but_ones(a: &[usize], b: &[usize]) -> bool {
    let rest = |shape: &[usize]| shape.iter().copied().filter(|&d| d != 1).collect::<Vec<_>>();
    a == b || rest(a) == rest(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joined_shapes() {
        let view = |shape: &[usize]| View::whole(shape);
        assert!(fits(&[view(&[4, 6]), view(&[2, 6])], &[6, 6]));
        assert!(fits(&[view(&[4, 1, 3]), view(&[2, 3])], &[6, 1, 3]));
        assert!(fits(&[view(&[2, 3])], &[6]));
        assert!(fits(&[view(&[1, 4, 6])], &[4, 6]));
        assert!(!fits(&[view(&[6, 4])], &[4, 6]));
        assert!(!fits(&[view(&[4, 6]), view(&[2, 6])], &[7, 6]));
        assert!(!fits(&[view(&[3, 8])], &[4, 6]));
        assert!(!fits(&[view(&[4, 0])], &[4, 0]));
    }
}
