//! Our parameters as the tensors of another layout: [`Names`] read backwards.

use std::collections::BTreeMap;

use super::names::{Destination, Join, Names, Piece, Step};
use crate::checkpoint::View;

/// A tensor of another layout, and the parameters that its elements come from.
#[derive(Debug, Clone, PartialEq)]
pub struct Foreign {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Together all its elements.
    pub parts: Vec<Part>,
}

/// Elements of one parameter in a tensor of another layout.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// The parameter's place in the list that [`Names::backward`] got.
    pub parameter: usize,
    /// Its first element that goes there; those after it follow in row-major order.
    pub start: usize,
    /// Where they go.
    pub view: View,
    /// What was added to the stored elements.
    pub plus: f64,
}

/// A parameter's way into a stored tensor: whole, or as piece of a rule.
struct Way {
    parameter: usize,
    foreign: String,
    join: Option<(usize, usize)>,
}

impl Names {
    /// The tensors that hold these parameters (name and shape) in the other layout. `stored` knows shapes that do not
    /// follow from the rules (axes of size 1).
    ///
    /// # Errors
    /// Says which parameter has no place in the layout, or which tensor would have elements that no parameter gives.
    pub fn backward(
        &self,
        parameters: &[(&str, &[usize])],
        stored: &dyn Fn(&str) -> Option<Vec<usize>>,
    ) -> Result<Vec<Foreign>, String> {
        let mut ways = Vec::new();
        for (i, (name, _)) in parameters.iter().enumerate() {
            ways.extend(self.ways(i, name, stored)?);
        }
        let mut shapes: BTreeMap<&str, Sizes> = BTreeMap::new();
        for way in &ways {
            let sizes = match (stored(&way.foreign), way.join) {
                (Some(shape), _) => Sizes::known(&shape),
                (None, None) => {
                    let ones = vec![1; self.ones_before(&way.foreign)];
                    Sizes::known(&[&ones, parameters[way.parameter].1].concat())
                }
                (None, Some(join)) => self.sizes(join, parameters[way.parameter].1).unwrap_or_default(),
            };
            let so_far = shapes.entry(&way.foreign).or_insert_with(|| sizes.clone());
            so_far.merge(&sizes).ok_or_else(|| format!("{} would have two shapes", way.foreign))?;
        }
        let mut tensors: Vec<Foreign> = Vec::new();
        let mut places: BTreeMap<&str, usize> = BTreeMap::new();
        let mut starts = vec![0; parameters.len()];
        for way in &ways {
            let shape = shapes[way.foreign.as_str()].all();
            let (name, of) = parameters[way.parameter];
            let shape =
                shape.ok_or_else(|| format!("no shape of {} follows from {name} of {of:?}", way.foreign))?;
            let part = self.part(way, &shape, parameters[way.parameter].1, &mut starts)?;
            let place = *places.entry(&way.foreign).or_insert_with(|| {
                tensors.push(Foreign { name: way.foreign.clone(), shape, parts: Vec::new() });
                tensors.len() - 1
            });
            tensors[place].parts.push(part);
        }
        complete(&tensors, parameters, &starts)?;
        Ok(tensors)
    }

    /// Where a parameter goes: of several ways that which ends in stored tensors, else the first.
    fn ways(
        &self,
        parameter: usize,
        native: &str,
        stored: &dyn Fn(&str) -> Option<Vec<usize>>,
    ) -> Result<Vec<Way>, String> {
        let leads = |foreign: &str, join| {
            self.destinations(foreign).contains(&Destination { native: native.into(), join })
        };
        let by_rule = |rule: usize| {
            let pieces = self.rule(rule).map_or(0, |join| join.pieces.len());
            let ways = (0..pieces).map(|piece| {
                let join = Some((rule, piece));
                let foreign = self.foreign(native, (rule, piece)).filter(|foreign| leads(foreign, join))?;
                Some(Way { parameter, foreign, join })
            });
            ways.collect::<Option<Vec<_>>>()
        };
        let renamed = self.renamed_from(native).filter(|foreign| leads(foreign, None));
        let renamed = renamed.map(|foreign| vec![Way { parameter, foreign, join: None }]);
        let all: Vec<Vec<Way>> = (0..self.rules()).filter_map(by_rule).chain(renamed).collect();
        let there = |ways: &Vec<Way>| ways.iter().all(|way| stored(&way.foreign).is_some());
        let chosen = all.iter().position(there).unwrap_or(0);
        all.into_iter().nth(chosen).ok_or_else(|| format!("{native} has no name there"))
    }

    /// What a rule says of the shape of a piece's tensor, for a parameter of this shape.
    fn sizes(&self, (rule, piece): (usize, usize), native: &[usize]) -> Option<Sizes> {
        let Join { pieces, .. } = self.rule(rule)?;
        // One after the other along a new axis, or along the first one.
        let stacked = native.len() > 1 && native[0] == pieces.len() && pieces.iter().all(Piece::is_plain);
        if stacked {
            return Some(Sizes::known(&native[1..]));
        }
        // Stacks of parameters have more axes than one of them.
        const MORE: usize = 2;
        (0..=MORE).find_map(|more| Sizes::of_pieces(pieces, native, more)?.into_iter().nth(piece))
    }

    /// The part of a tensor of this shape that a parameter fills.
    fn part(
        &self,
        way: &Way,
        shape: &[usize],
        native: &[usize],
        starts: &mut [usize],
    ) -> Result<Part, String> {
        let whole = View::whole(shape);
        let (view, plus) = match way.join.and_then(|(rule, piece)| Some((self.rule(rule)?, piece))) {
            None => (Some(whole), 0.0),
            Some((join, piece)) => (join.pieces.get(piece).and_then(|p| p.view(whole)), join.plus),
        };
        let view = view.ok_or_else(|| format!("{} cannot have the shape {shape:?}", way.foreign))?;
        let start = starts[way.parameter];
        starts[way.parameter] += view.elements();
        if starts[way.parameter] > native.iter().product() {
            return Err(format!("{} of shape {shape:?} asks for more than {native:?} holds", way.foreign));
        }
        Ok(Part { parameter: way.parameter, start, view, plus })
    }
}

/// Every parameter goes somewhere, and every element comes from somewhere.
fn complete(tensors: &[Foreign], parameters: &[(&str, &[usize])], given: &[usize]) -> Result<(), String> {
    for ((name, shape), given) in parameters.iter().zip(given) {
        let elements: usize = shape.iter().product();
        if *given != elements {
            return Err(format!("{given} of the {elements} elements of {name} have a place there"));
        }
    }
    for tensor in tensors {
        let filled: usize = tensor.parts.iter().map(|part| part.view.elements()).sum();
        let elements: usize = tensor.shape.iter().product();
        if filled != elements {
            return Err(format!("{filled} of the {elements} elements of {} are given", tensor.name));
        }
    }
    Ok(())
}

/// What is known of a shape.
#[derive(Debug, Clone, Default)]
struct Sizes(Vec<Size>);

#[derive(Debug, Clone, Copy, Default)]
struct Size {
    known: Option<usize>,
    /// At least so many, where nothing more is known.
    least: usize,
}

/// An axis on the way through a piece's steps: its size, and the axis of the tensor that it still is.
type Axis = (Option<usize>, Option<usize>);

impl Sizes {
    fn known(shape: &[usize]) -> Self {
        Self(shape.iter().map(|&d| Size { known: Some(d), least: d }).collect())
    }

    /// The shapes of the tensors of these pieces, which have so many axes more than the parameter; `None` if they cannot.
    fn of_pieces(pieces: &[Piece], native: &[usize], more: usize) -> Option<Vec<Self>> {
        let all: Option<Vec<_>> = pieces.iter().map(|piece| Self::of(piece, native, more)).collect();
        let mut all = all?;
        let known: usize = all.iter().filter_map(|(_, rows, open)| open.is_none().then_some(*rows)).sum();
        let open = all.iter().filter(|(_, _, open)| open.is_some()).count();
        // Pieces that nothing is said of are of the same size.
        let left = native.first()?.checked_sub(known)?;
        if open == 0 && left > 0 {
            return None;
        }
        for (sizes, rows, axis) in &mut all {
            if let Some(axis) = axis {
                let each = left / open;
                sizes.0[*axis].known = each.is_multiple_of(*rows).then_some(each / (*rows).max(1));
                sizes.0[*axis].known?;
            }
        }
        Some(all.into_iter().map(|(sizes, ..)| sizes).collect())
    }

    /// What a piece's steps say of its tensor, whose last axes are the parameter's; how many rows it gives, or how many
    /// times those of the axis that nothing is said of, and which this is.
    fn of(piece: &Piece, native: &[usize], more: usize) -> Option<(Self, usize, Option<usize>)> {
        let mut sizes = Self::known(native);
        *sizes.0.first_mut()? = Size::default();
        sizes.0.splice(0..0, vec![Size::default(); more]);
        let mut axes: Vec<Axis> = sizes.0.iter().enumerate().map(|(i, s)| (s.known, Some(i))).collect();
        for step in piece.steps() {
            match step {
                Step::Split { axis, sizes: parts } => {
                    let whole: usize = parts.iter().product();
                    let (size, root) = *axes.get(*axis)?;
                    if size.is_some_and(|size| size != whole) {
                        return None;
                    }
                    if let Some(root) = root {
                        sizes.0[root].known = Some(whole);
                    }
                    axes.splice(axis..=axis, parts.iter().map(|&d| (Some(d), None)));
                }
                Step::Take { axis, start, len } => {
                    if let (None, Some(root)) = *axes.get(*axis)? {
                        sizes.0[root].least = sizes.0[root].least.max(start + len);
                    }
                    *axes.get_mut(*axis)? = (Some(*len), None);
                }
                Step::Swap(a, b) if (*a).max(*b) < axes.len() => axes.swap(*a, *b),
                Step::Swap(..) => return None,
            }
        }
        let (first, last) = axes.split_at(axes.len().checked_sub(native.len() - 1)?);
        if last.iter().zip(&native[1..]).any(|((size, _), d)| *size != Some(*d)) {
            return None;
        }
        let mut open = first.iter().filter(|(size, _)| size.is_none()).map(|(_, root)| *root);
        let (one, another) = (open.next().flatten(), open.next());
        let rows = first.iter().filter_map(|(size, _)| *size).product();
        another.is_none().then_some((sizes, rows, one))
    }

    /// Adds what another piece of the same tensor says; `None` if they disagree.
    fn merge(&mut self, other: &Self) -> Option<()> {
        if self.0.is_empty() {
            *self = other.clone();
        }
        if other.0.is_empty() {
            return Some(());
        }
        if self.0.len() != other.0.len() {
            return None;
        }
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            if mine.known.zip(theirs.known).is_some_and(|(a, b)| a != b) {
                return None;
            }
            mine.known = mine.known.or(theirs.known);
            mine.least = mine.least.max(theirs.least);
        }
        Some(())
    }

    fn all(&self) -> Option<Vec<usize>> {
        let size = |s: &Size| s.known.or((s.least > 0).then_some(s.least));
        (!self.0.is_empty()).then(|| self.0.iter().map(size).collect())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backward(names: &Names, parameters: &[(&str, &[usize])]) -> Result<Vec<Foreign>, String> {
        names.backward(parameters, &|_| None)
    }

    #[test]
    fn renamed_joined_sliced_and_swapped() {
        let (heads, p, d) = (2, 3, 4);
        let part = |i| Piece::of("m.*.qkv").split(0, &[heads, 3, p]).take(1, i, 1);
        let names = Names::new()
            .rename("m.*.out", "layers.*.out_proj")
            .rename("m.*.embed", "layers.*.embedding")
            .join("layers.*.q", [part(0)])
            .join("layers.*.k", [part(1)])
            .join("layers.*.v", [part(2)])
            .join(
                "layers.*.kv",
                [Piece::of("m.*.keys").split(0, &[2]), Piece::of("m.*.values").split(0, &[5])],
            )
            .join("layers.*.turned", [Piece::of("m.*.flat").split(0, &[4, 3]).swap(0, 1)])
            .join("layers.*.first", [Piece::of("m.*.stack").take(0, 0, 2)])
            .join("layers.*.second", [Piece::of("m.*.stack").take(0, 2, 3)])
            .plus("m.*.norm", "layers.*.norm", 1.0);
        let parameters: Vec<(&str, &[usize])> = vec![
            ("layers.7.out_proj.weight", &[4, 4]),
            ("other.weight", &[3]),
            ("layers.7.q.weight", &[6, 4]),
            ("layers.7.k.weight", &[6, 4]),
            ("layers.7.v.weight", &[6, 4]),
            ("layers.7.kv.weight", &[7, 4]),
            ("layers.7.turned.bias", &[12]),
            ("layers.7.first.weight", &[2, 9]),
            ("layers.7.second.weight", &[3, 9]),
            ("layers.7.norm.weight", &[5]),
        ];
        let found = backward(&names, &parameters).unwrap();
        let shapes: Vec<(&str, &[usize])> = found.iter().map(|f| (&f.name[..], &f.shape[..])).collect();
        assert_eq!(
            shapes,
            [
                ("m.7.out.weight", &[4, 4][..]),
                ("other.weight", &[3]),
                ("m.7.qkv.weight", &[heads * 3 * p, d]),
                ("m.7.keys.weight", &[2, 4]),
                ("m.7.values.weight", &[5, 4]),
                ("m.7.flat.bias", &[12]),
                ("m.7.stack.weight", &[5, 9]),
                ("m.7.norm.weight", &[5]),
            ]
        );
        assert_eq!(found[2].parts.len(), 3);
        assert_eq!((found[4].parts[0].start, found[7].parts[0].plus), (8, 1.0));
    }

    /// Stacks have an axis more than what is taken of them, also where another reading has the same number of elements.
    #[test]
    fn stacks_and_axes_of_one() {
        let (experts, hidden) = (2, 3);
        let mut names = Names::new().ones("m.mix", 2).rename("m.mix", "mix");
        for e in 0..experts {
            let rows = |start| {
                Piece::of("m.stack")
                    .split(0, &[experts])
                    .take(0, e, 1)
                    .split(1, &[2, hidden])
                    .take(1, start, 1)
            };
            names = names.join(format!("experts.{e}"), [rows(1), rows(0)]);
        }
        for d in [4, 2 * hidden] {
            let shape = [2 * hidden, d];
            let parameters: [(&str, &[usize]); 3] =
                [("experts.0.weight", &shape), ("experts.1.weight", &shape), ("mix", &[5])];
            let found = backward(&names, &parameters).unwrap();
            assert_eq!(
                (&found[0].name[..], &found[0].shape[..]),
                ("m.stack.weight", &[experts, 2 * hidden, d][..])
            );
            assert_eq!((&found[1].name[..], &found[1].shape[..]), ("m.mix", &[1, 1, 5][..]));
        }
    }

    #[test]
    fn what_has_no_place() {
        let names = Names::new()
            .rename("a", "layers.a")
            .join("layers.half", [Piece::of("b").split(0, &[2, 3]).take(0, 1, 1)]);
        // The name is taken there by another parameter.
        let message = backward(&names, &[("a.weight", &[2])]).unwrap_err();
        assert_eq!(message, "a.weight has no name there");
        let message = backward(&names, &[("layers.half.weight", &[3])]).unwrap_err();
        assert_eq!(message, "3 of the 6 elements of b.weight are given");
        let message = backward(&names, &[("layers.half.weight", &[4])]).unwrap_err();
        assert_eq!(message, "no shape of b.weight follows from layers.half.weight of [4]");
    }
}
