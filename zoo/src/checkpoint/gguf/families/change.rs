//! What llama.cpp does to tensors when it writes them, and how it is undone.

use super::{Facts, join::Part};
use crate::checkpoint::{Stored, View};

/// What was done to a tensor.
#[derive(Debug, Clone, Copy)]
pub(super) enum Change {
    Nothing,
    /// `-exp(x)` in the stead of x.
    NegativeExp,
    /// One was added.
    LessOne,
    /// Two axes of one.
    Flat,
    /// Heads and their features in one axis.
    Heads,
    /// The last two axes in the other order.
    Transposed,
    /// Queries or keys, whose features i and i + p/2 were put side by side for another kind of rotation; the number of heads
    /// is at this key.
    Paired(&'static str),
    /// Queries, keys and values of all heads one after the other, where they should be for each head.
    Trio,
    /// Queries, keys and values in one tensor, under their names in the stead of the `%`; as [`Change::Paired`] or not.
    Qkv {
        paired: bool,
    },
    /// Several vectors in one tensor, under these names in the stead of the `%`.
    Several(&'static [&'static str]),
    /// Matrices of experts in one tensor, by number in the stead of the `%`.
    Experts,
    /// The same, of `gate_proj` and `up_proj` one after the other.
    GateAndUp,
    /// This one of so many parts of a tensor, or for each expert of it.
    Part(usize, usize),
    /// Of maps of a delta rule that are one for each head of keys: queries, keys and values of all heads, or gates.
    PartOfHeads {
        gate: bool,
    },
}

use Change::{
    Experts, Flat, GateAndUp, Heads, LessOne, NegativeExp, Nothing, Paired, Part as Parted, PartOfHeads, Qkv,
    Several, Transposed, Trio,
};

/// Most experts of a tensor.
pub(super) const MAX_EXPERTS: usize = 1 << 14;

/// A tensor as it was, or a part of one.
pub(super) struct Undone {
    pub(super) stored: Stored,
    pub(super) part: Option<Part>,
}

/// The tensor as it was; `None` if its shape does not allow it.
pub(super) fn undo(facts: &Facts<'_>, stored: Stored, change: Change) -> Option<Vec<Undone>> {
    let tensors = match change {
        Nothing => vec![stored],
        NegativeExp => vec![Stored { log_negative: true, ..stored }],
        LessOne => vec![Stored { plus: -1.0, ..stored }],
        Flat => vec![Stored { shape: vec![stored.elements], ..stored }],
        Heads => {
            let size = facts.size("wkv.head_size")?;
            let heads = stored.elements.checked_div(size).filter(|h| h * size == stored.elements)?;
            vec![Stored { shape: vec![heads, size], ..stored }]
        }
        Transposed => {
            let rank = stored.shape.len().checked_sub(2)?;
            let view = View::whole(&stored.shape).swap(rank, rank + 1)?;
            vec![Stored { shape: view.shape.clone(), order: Some(view), ..stored }]
        }
        Paired(key) => vec![unpaired(stored, facts.heads(key)?)?],
        Trio => {
            let heads = facts.size("attention.head_count")?;
            let features = stored.shape.first()?.checked_div(3 * heads)?;
            let view = View::whole(&stored.shape).split(0, &[3, heads, features])?.swap(0, 1)?;
            vec![Stored { order: Some(view), ..stored }]
        }
        Qkv { paired } => qkv(facts, &stored, paired)?,
        Several(names) => {
            let each = stored.elements / names.len();
            if each * names.len() != stored.elements {
                return None;
            }
            let part = |(i, name): (usize, &&str)| slice(&stored, name, i * each, &[each]);
            names.iter().enumerate().map(part).collect()
        }
        Experts => {
            let (experts, matrix) = experts(&stored)?;
            let each: usize = matrix.iter().product();
            (0..experts).map(|e| slice(&stored, &e.to_string(), e * each, matrix)).collect()
        }
        GateAndUp => {
            let (experts, matrix) = experts(&stored)?;
            let (rows, columns) = (matrix[0] / 2, matrix[1]);
            let part = |i: usize| {
                let name = format!("{}.{}", i / 2, ["gate_proj", "up_proj"][i % 2]);
                slice(&stored, &name, i * rows * columns, &[rows, columns])
            };
            (2 * rows == matrix[0]).then(|| (0..2 * experts).map(part).collect())?
        }
        Parted(index, of) => {
            let part = Some(Part { index, of, flat: false });
            return Some(vec![Undone { stored, part }]);
        }
        PartOfHeads { gate } => return heads_of_keys(facts, &stored, gate),
    };
    Some(tensors.into_iter().map(|stored| Undone { stored, part: None }).collect())
}

/// Part of a tensor, in this shape from this element on, with this in its name.
fn slice(whole: &Stored, name: &str, start: usize, shape: &[usize]) -> Stored {
    let order = View { start, ..View::whole(shape) };
    Stored {
        name: whole.name.replacen('%', name, 1),
        shape: shape.into(),
        elements: order.elements(),
        order: Some(order),
        ..whole.clone()
    }
}

/// How many there are, and the shape of each.
fn experts(stored: &Stored) -> Option<(usize, &[usize])> {
    let (&experts, matrix) = stored.shape.split_first().filter(|(_, matrix)| matrix.len() == 2)?;
    (experts <= MAX_EXPERTS).then_some((experts, matrix))
}

/// Rows of heads with the features i and i + p/2 apart again.
fn unpaired(stored: Stored, heads: usize) -> Option<Stored> {
    let start = stored.order.as_ref().map_or(0, |order| order.start);
    let half = stored.shape.first()?.checked_div(2 * heads)?;
    let view = View { start, ..View::whole(&stored.shape) }.split(0, &[heads, half, 2])?.swap(1, 2)?;
    Some(Stored { order: Some(view), ..stored })
}

fn qkv(facts: &Facts<'_>, stored: &Stored, paired: bool) -> Option<Vec<Stored>> {
    let (heads, kv_heads) = (facts.heads("attention.head_count")?, facts.heads("attention.head_count_kv")?);
    let (&rows, rest) = stored.shape.split_first()?;
    let features = rows / (heads + 2 * kv_heads);
    if features * (heads + 2 * kv_heads) != rows {
        return None;
    }
    let row: usize = rest.iter().product();
    let mut first = 0;
    let maps = [("q_proj", heads, paired), ("k_proj", kv_heads, paired), ("v_proj", kv_heads, false)];
    let map = |(name, heads, paired): (&str, usize, bool)| {
        let rows = heads * features;
        let map = slice(stored, name, first * row, &[&[rows][..], rest].concat());
        first += rows;
        if paired { unpaired(map, heads) } else { Some(map) }
    };
    maps.into_iter().map(map).collect()
}

/// The parts for each head of keys: its queries, its keys, and the values and gates of the heads that share them.
fn heads_of_keys(facts: &Facts<'_>, stored: &Stored, gate: bool) -> Option<Vec<Undone>> {
    let (heads, keys, inner) =
        (facts.size("ssm.group_count")?, facts.size("ssm.state_size")?, facts.size("ssm.inner_size")?);
    let (&[rows, columns], values) = (stored.shape.as_slice(), inner / heads) else { return None };
    let widths: &[(usize, usize)] = if gate { &[(3, values)] } else { &[(0, keys), (1, keys), (2, values)] };
    let total: usize = widths.iter().map(|(_, width)| width * heads).sum();
    if heads > MAX_EXPERTS || values * heads != inner || total != rows {
        return None;
    }
    let mut first = 0;
    let part = |&(index, width): &(usize, usize)| {
        let stored = slice(stored, "", first * columns, &[heads, width, columns]);
        first += heads * width;
        Undone { stored, part: Some(Part { index, of: 4, flat: true }) }
    };
    Some(widths.iter().map(part).collect())
}
