//! The max-plus scan on the CPU: a thread a sequence, one pass over its tokens. A few numbers a token: the projections
//! around it cost a thousand times as much.

use super::{Dims, Views};
use crate::host::{self, Disjoint};
use crate::simd::Real;

/// Factors on the state (tokens, h), on what it takes in, the maximum, and that after each sequence (sequences, h).
pub(super) fn forward<T: Real>(v: &Views<T>, dims: &Dims) -> [Vec<T>; 4] {
    let h = dims.h;
    let mut tokens: [Vec<T>; 3] = std::array::from_fn(|_| host::zeros(dims.b * dims.l * h));
    let mut last = vec![T::ZERO; dims.segments.len() * h];
    {
        let [keep, gain, max] = tokens.each_mut().map(|t| Disjoint::new(t));
        let lasts = Disjoint::new(&mut last);
        host::parallel(dims.segments.len(), |i| {
            let segment = dims.segments[i];
            // SAFETY: this task alone holds this sequence.
            let m = unsafe { lasts.slice(i * h, h) };
            if let Some(state) = v.state {
                m.copy_from_slice(&state[i * h..][..h]);
            }
            for t in segment.start..segment.start + segment.len {
                // SAFETY: as above.
                let [keep, gain, max] = [&keep, &gain, &max].map(|d| unsafe { d.slice(t * h, h) });
                let (decays, gains) = (v.log_decay.row(t), v.log_gain.row(t));
                for j in 0..h {
                    let carried = decays[j] + m[j];
                    m[j] = if carried >= gains[j] { carried } else { gains[j] };
                    keep[j] = carried + -m[j];
                    gain[j] = gains[j] + -m[j];
                    max[j] = m[j];
                }
            }
        });
    }
    let [keep, gain, max] = tokens;
    [keep, gain, max, last]
}

/// Gradients of the decays, the gains and the states, from those of the outputs (`None` for zero).
pub(super) fn backward<T: Real>(v: &Views<T>, dims: &Dims, grads: [Option<&[T]>; 4]) -> [Vec<T>; 3] {
    let h = dims.h;
    let max = {
        let [_, _, max, _] = forward(v, dims);
        max
    };
    let mut decay = host::zeros::<T>(dims.b * dims.l * h);
    let mut gain = host::zeros::<T>(dims.b * dims.l * h);
    let mut state = vec![T::ZERO; dims.segments.len() * h];
    let (decays, gains, states) =
        (Disjoint::new(&mut decay), Disjoint::new(&mut gain), Disjoint::new(&mut state));
    let [gkeep, ggain, gmax, glast] = grads;
    host::parallel(dims.segments.len(), |i| {
        let segment = dims.segments[i];
        // SAFETY: this task alone holds this sequence.
        let gm = unsafe { states.slice(i * h, h) };
        if let Some(last) = glast {
            gm.copy_from_slice(&last[i * h..][..h]);
        }
        for t in (segment.start..segment.start + segment.len).rev() {
            // SAFETY: as above.
            let [gdecay, ggains] = [&decays, &gains].map(|d| unsafe { d.slice(t * h, h) });
            let at = |grad: Option<&[T]>, j: usize| grad.map_or(T::ZERO, |g| g[t * h + j]);
            for j in 0..h {
                let (keep, gain) = (at(gkeep, j), at(ggain, j));
                let m = gm[j] + at(gmax, j) + -(keep + gain);
                let before = match v.state {
                    _ if t > segment.start => max[(t - 1) * h + j],
                    Some(state) => state[i * h + j],
                    None => T::ZERO,
                };
                let first = v.log_decay.row(t)[j] + before >= v.log_gain.row(t)[j];
                gdecay[j] = if first { keep + m } else { keep };
                ggains[j] = if first { gain } else { gain + m };
                gm[j] = gdecay[j];
            }
        }
    });
    [decay, gain, state]
}
