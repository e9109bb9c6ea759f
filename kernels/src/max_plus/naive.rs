//! The definition: token by token, in tensor operations that autograd differentiates.

use candle_core::{Result, Tensor};

use super::{MaxPlusScan, Stabilized};
use crate::host::state_dtype;
use crate::selective_scan::naive::stack_or_empty;

/// [`max_plus_scan`](fn@super::max_plus_scan), slowly, on any device: the reference for the fast one.
///
/// # Errors
/// As the fast one.
pub fn max_plus_scan(args: &MaxPlusScan) -> Result<Stabilized> {
    let dims = args.check()?;
    let work = state_dtype(args.log_decay.dtype());
    let tokens = |t: &Tensor| t.to_dtype(work)?.flatten(0, 1); // (b, l, h) -> (b l, h)
    let (decays, gains) = (tokens(args.log_decay)?, tokens(args.log_gain)?);
    let (mut keep, mut gain, mut max, mut last) = (vec![], vec![], vec![], vec![]);
    for (i, segment) in dims.segments.iter().enumerate() {
        let mut m = match args.state {
            Some(state) => state.get(i)?.to_dtype(work)?,
            None => Tensor::zeros(dims.h, work, decays.device())?,
        };
        for t in segment.start..segment.start + segment.len {
            let carried = (decays.get(t)? + m)?;
            m = carried.maximum(&gains.get(t)?)?;
            keep.push((carried - &m)?);
            gain.push((gains.get(t)? - &m)?);
            max.push(m.clone());
        }
        last.push(m);
    }
    let like = args.log_decay.to_dtype(work)?;
    let last = match last.is_empty() {
        true => Tensor::zeros((0, dims.h), work, decays.device())?,
        false => Tensor::stack(&last, 0)?,
    };
    Ok(Stabilized {
        log_decay: stack_or_empty(&keep, &like)?,
        log_gain: stack_or_empty(&gain, &like)?,
        max: stack_or_empty(&max, &like)?,
        last,
    })
}
