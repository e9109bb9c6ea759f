//! Tensors of which these files hold the parts apart.

use std::collections::BTreeMap;

use super::change::Undone;
use crate::checkpoint::{Stored, View};

/// Which part of a tensor something is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub(super) index: usize,
    /// How many there are.
    pub(super) of: usize,
    /// Parts have a first axis, of heads, which the tensor has not.
    pub(super) flat: bool,
}

/// The tensors, those of which there are parts put together: rows of the first part, of the second and so on, for each place
/// of an axis before the rows, if there is one.
///
/// # Errors
/// If a part is missing or there twice, or has another shape than the others.
pub(super) fn join(undone: Vec<Undone>) -> Result<Vec<Stored>, String> {
    let (mut whole, mut parts) = (Vec::with_capacity(undone.len()), BTreeMap::<String, Vec<_>>::new());
    for Undone { stored, part } in undone {
        match part {
            None => whole.push(stored),
            Some(part) => parts.entry(stored.name.clone()).or_default().push((part, stored)),
        }
    }
    for (name, mut parts) in parts {
        parts.sort_by_key(|(part, _)| part.index);
        let of = parts.first().map_or(0, |(part, _)| part.of);
        if !parts.iter().map(|(part, _)| part.index).eq(0..of) {
            return Err(format!("{name}: expected {of} parts of it, found {}", parts.len()));
        }
        let flat = parts.iter().any(|(part, _)| part.flat);
        let parts: Vec<Stored> = parts.into_iter().map(|(_, stored)| stored).collect();
        let shapes: Vec<Vec<usize>> = parts.iter().map(|part| part.shape.clone()).collect();
        let joined = joined(&name, &parts, flat);
        whole.push(
            joined.ok_or_else(|| format!("{name}: expected parts that fit together, found {shapes:?}"))?,
        );
    }
    Ok(whole)
}

fn joined(name: &str, parts: &[Stored], flat: bool) -> Option<Stored> {
    let first = parts.first()?;
    let (axis, outer) = match first.shape.as_slice() {
        [_, _] => (0, 1),
        [outer, _, _] => (1, *outer),
        _ => return None,
    };
    let mut shape = first.shape.clone();
    shape[axis] = 0;
    for part in parts {
        if part.shape.len() != shape.len()
            || part.shape[..axis] != shape[..axis]
            || part.shape[axis + 1..] != shape[axis + 1..]
        {
            return None;
        }
        shape[axis] = shape[axis].checked_add(part.shape[axis])?;
    }
    // Every piece is a record of its own.
    if outer > super::change::MAX_EXPERTS {
        return None;
    }
    let piece = |i: usize| {
        let (part, place) = (&parts[i % parts.len()], i / parts.len());
        let each = part.elements / outer.max(1);
        let start = part.view().start + place * each;
        Stored { elements: each, order: Some(View { start, ..View::whole(&[each]) }), ..part.clone() }
    };
    let pieces: Vec<Stored> = (0..outer * parts.len()).map(piece).collect();
    let shape = if flat { vec![shape[0].checked_mul(shape[1])?, shape[2]] } else { shape };
    let elements = parts.iter().try_fold(0usize, |n, part| n.checked_add(part.elements))?;
    Some(Stored { name: name.into(), order: None, shape, elements, pieces, ..first.clone() })
}
