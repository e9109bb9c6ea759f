//! The trapezoidal recurrence as a scan with one decay a head and an input scale of its own.
//!
//! What token t reads of the past is `S_{t-1} = h_{t-1} + β_t u_{t-1}`, which is a plain scan over the inputs before it:
//!
//! ```text
//! S_0 = h_0 + β_1 u_0        S_t = α_t S_{t-1} + (γ_t + β_{t+1}) u_t        S_l = h_l, as no β follows
//! y_t = α_t S_{t-1} C_t + γ_t u_t C_t
//! ```
//! So the scan runs over l + 1 positions: the token before the first (u_0, from the state), then the tokens, each read by
//! the query of the one after. (Reading S_t with C_t and taking β_{t+1} off again would let rounding carry a trace of
//! the next token into this one.) The R inputs of a token stand one after the other, of which only the first decays the
//! state; query r meets the inputs up to r, and the others are added apart.

use candle_core::{D, Result, Tensor};
use semisep_core::lower_triangle;
use semisep_kernels::{
    ScalarDecayScan, ScalarDecayStateUpdate, scalar_decay_scan, scalar_decay_state_update,
};

use crate::tokens::Tokens;

/// Positions whose mixing matrix the scan forms at once, for the count of operations.
pub(crate) const CHUNK: usize = 128;

/// The token before the first: state h (sequences, h, p, n), keys (sequences, R, h, n), values (sequences, R, h, p).
pub(crate) struct Before {
    pub(crate) h: Tensor,
    pub(crate) k: Tensor,
    pub(crate) v: Tensor,
}

/// y (b, l, R, h, p) and the final state (sequences, h, p, n); `skip` is D, (h).
pub(crate) fn scan(
    tokens: &Tokens,
    skip: &Tensor,
    before: Option<&Before>,
    cu_seqlens: Option<&[usize]>,
) -> Result<(Tensor, Tensor)> {
    let Tokens { q, k, v, log_decay, beta, gamma, .. } = tokens;
    let (r, n, p) = (v.dim(2)?, k.dim(4)?, v.dim(4)?);
    let over = |t: &Tensor, first: Option<&Tensor>| extended(t, first, true, cu_seqlens);
    let keys = over(k, before.map(|b| &b.k))?; // (b, positions, R, h, n)
    let values = over(v, before.map(|b| &b.v))?;
    let queries = extended(q, None, false, cu_seqlens)?;
    let weight = (over(gamma, None)? + extended(beta, None, false, cu_seqlens)?)?; // (b, positions, h)
    let (b, positions, h) = weight.dims3()?;
    let first = over(log_decay, None)?.unsqueeze(2)?;
    let decays = if r == 1 { first } else { first.pad_with_zeros(2, 0, r - 1)? };
    let scale = weight.unsqueeze(2)?.broadcast_as((b, positions, r, h))?;
    let ranked = |t: &Tensor, width: usize| t.reshape((b, positions * r, h, width));
    let boundaries: Option<Vec<usize>> =
        cu_seqlens.map(|cu| cu.iter().enumerate().map(|(i, c)| (c + i) * r).collect());
    let (read, last) = scalar_decay_scan(&ScalarDecayScan {
        scale: Some(&scale.reshape((b, positions * r, h))?),
        state: before.map(|b| &b.h),
        cu_seqlens: boundaries.as_deref(),
        ..ScalarDecayScan::new(
            &ranked(&queries, n)?,
            &ranked(&keys, n)?,
            &ranked(&values, p)?,
            &decays.reshape((b, positions * r, h))?,
        )
    })?;
    let past = |t: &Tensor| without_last(t, cu_seqlens); // of the position before each token
    let mut read = past(&read.reshape((b, positions, r, h, p))?)?;
    if r > 1 {
        read = (read + unseen(q, &past(&keys)?, &past(&values)?, &past(&weight)?)?)?;
    }
    let alpha = log_decay.exp()?.unsqueeze(2)?.unsqueeze(4)?; // (b, l, 1, h, 1)
    Ok((read.broadcast_mul(&alpha)?.add(&own(tokens, skip)?)?, last))
}

/// One token: `state` (b, h, p, n) is advanced in place; y (b, 1, R, h, p). `k` and `v` are those of the token before,
/// (b, R, h, n) and (b, R, h, p), `skip` is D, (h).
pub(crate) fn step(tokens: &Tokens, skip: &Tensor, state: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let r = tokens.v.dim(2)?;
    let now = |t: &Tensor| t.squeeze(1);
    let (beta, gamma, decay) = (now(&tokens.beta)?, now(&tokens.gamma)?, now(&tokens.log_decay)?);
    let none = decay.zeros_like()?;
    let of = |t: &Tensor, i: usize| t.narrow(1, i, 1)?.squeeze(1);
    for i in 0..r {
        let (k, v) = (of(k, i)?, of(v, i)?);
        let before = ScalarDecayStateUpdate::new(&k, &k, &v, &none);
        scalar_decay_state_update(state, &ScalarDecayStateUpdate { scale: Some(&beta), ..before })?;
    }
    let (queries, keys, values) = (now(&tokens.q)?, now(&tokens.k)?, now(&tokens.v)?);
    let mut outputs = Vec::with_capacity(r);
    for i in 0..r {
        let (q, k, v) = (of(&queries, i)?, of(&keys, i)?, of(&values, i)?);
        let token = ScalarDecayStateUpdate::new(&q, &k, &v, if i == 0 { &decay } else { &none });
        let token = ScalarDecayStateUpdate { scale: Some(&gamma), ..token };
        outputs.push(scalar_decay_state_update(state, &token)?);
    }
    let skipped = tokens.v.broadcast_mul(&skip.unsqueeze(1)?)?;
    let y = Tensor::stack(&outputs, 1)?.unsqueeze(1)?.add(&skipped)?;
    if r == 1 { Ok(y) } else { y.add(&unseen(&tokens.q, &tokens.k, &tokens.v, &tokens.gamma)?) }
}

/// `D v_r + γ Σ_{r'} (C_r · B_{r'}) v_{r'}`: what a token gives itself.
fn own(Tokens { q, k, v, gamma, .. }: &Tokens, skip: &Tensor) -> Result<Tensor> {
    if v.dim(2)? == 1 {
        let dots = ((q * k)?.sum(D::Minus1)? * gamma.unsqueeze(2)?)?; // (b, l, 1, h)
        return v.broadcast_mul(&dots.broadcast_add(skip)?.unsqueeze(4)?);
    }
    v.broadcast_mul(&skip.unsqueeze(1)?)? + between(q, k, v, gamma, None)?
}

/// `w Σ_{r' > r} (C_r · B_{r'}) v_{r'}`: the inputs that stand behind the query of rank r.
fn unseen(q: &Tensor, k: &Tensor, v: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let r = v.dim(2)?;
    let behind = lower_triangle(r, v.dtype(), v.device())?.affine(-1.0, 1.0)?;
    between(q, k, v, weight, Some(&behind))
}

/// `w Σ_{r'} mask_{r,r'} (C_r · B_{r'}) v_{r'}` at each position, with w (b, l, h).
fn between(q: &Tensor, k: &Tensor, v: &Tensor, weight: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let (b, l, r, h, p) = v.dims5()?;
    let by_head = |t: &Tensor| t.transpose(2, 3)?.contiguous()?.flatten_to(2); // (b l h, R, ·)
    let mut dots = by_head(q)?.matmul(&by_head(k)?.t()?.contiguous()?)?; // (b l h, r, r')
    if let Some(mask) = mask {
        dots = dots.broadcast_mul(mask)?;
    }
    let sums = dots.broadcast_mul(&weight.reshape((b * l * h, 1, 1))?)?.matmul(&by_head(v)?)?;
    sums.reshape((b, l, h, r, p))?.transpose(2, 3)
}

/// One more position for each sequence, before its tokens or behind: t (b, l, ...) with `extra` (sequences, ...) or 0.
fn extended(t: &Tensor, extra: Option<&Tensor>, front: bool, cu_seqlens: Option<&[usize]>) -> Result<Tensor> {
    let sequences = cu_seqlens.map_or(t.dim(0)?, |cu| cu.len().saturating_sub(1));
    let extra = match extra {
        Some(extra) => extra.to_dtype(t.dtype())?,
        None => Tensor::zeros([&[sequences], &t.dims()[2..]].concat(), t.dtype(), t.device())?,
    };
    let extra = extra.unsqueeze(1)?;
    let joined = |t: Tensor, extra: Tensor| if front { [extra, t] } else { [t, extra] };
    match cu_seqlens {
        None => joined_over_time(&joined(t.clone(), extra)),
        Some(cu) => {
            let parts = cu
                .windows(2)
                .enumerate()
                .map(|(i, w)| Ok(joined(t.narrow(1, w[0], w[1] - w[0])?, extra.narrow(0, i, 1)?)));
            joined_over_time(&parts.collect::<Result<Vec<_>>>()?.concat())
        }
    }
}

/// Undoes [`extended`]: without the last position of each sequence.
fn without_last(t: &Tensor, cu_seqlens: Option<&[usize]>) -> Result<Tensor> {
    match cu_seqlens {
        None => t.narrow(1, 0, t.dim(1)? - 1),
        Some(cu) => {
            let parts = cu.windows(2).enumerate().map(|(i, w)| t.narrow(1, w[0] + i, w[1] - w[0]));
            joined_over_time(&parts.collect::<Result<Vec<_>>>()?)
        }
    }
}

/// (b, l_i, ...) -> (b, Σ l_i, ...); candle does not take empty parts.
fn joined_over_time(parts: &[Tensor]) -> Result<Tensor> {
    let whole: Vec<&Tensor> = parts.iter().filter(|t| t.elem_count() > 0).collect();
    match (&whole[..], parts) {
        ([], [empty, ..]) => Ok(empty.clone()),
        _ => Tensor::cat(&whole, 1),
    }
}

/// The last token's value of each sequence, what was `before` of those without tokens: (b, l, ...) -> (sequences, ...).
pub(crate) fn last(t: &Tensor, before: &Tensor, cu_seqlens: Option<&[usize]>) -> Result<Tensor> {
    match (cu_seqlens, t.dim(1)?) {
        (None, 0) => Ok(before.clone()),
        (None, l) => t.narrow(1, l - 1, 1)?.squeeze(1),
        (Some(cu), _) => {
            let rows = cu.windows(2).enumerate().map(|(i, w)| match w[1] > w[0] {
                true => t.narrow(1, w[1] - 1, 1)?.squeeze(1),
                false => before.narrow(0, i, 1),
            });
            Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)
        }
    }
}
