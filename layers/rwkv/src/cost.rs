//! What the layers cost.

use semisep_core::{Cost, ParameterGroup};

/// The cost of `rows` tokens: every matrix meets every token once, and so do `extra` further operations.
pub(crate) fn cost(
    groups: &[ParameterGroup],
    rows: usize,
    extra: usize,
    element: usize,
    state_bytes: usize,
) -> Cost {
    let matrices = groups.iter().filter(|g| g.shape.len() == 2 && g.shape.iter().all(|&n| n > 1));
    let (mut weights, mut activations) = (0, 0);
    for matrix in matrices {
        weights += matrix.elements();
        activations += matrix.shape.iter().sum::<usize>();
    }
    let parameters: usize = groups.iter().map(ParameterGroup::elements).sum();
    Cost {
        parameters: parameters as u64,
        flops: rows as u64 * (2 * weights + extra) as u64,
        bytes: ((parameters + rows * activations) * element) as u64,
        state_bytes: state_bytes as u64,
        ..Cost::default()
    }
}
