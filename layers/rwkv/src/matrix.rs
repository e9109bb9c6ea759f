//! The matrices that the scans multiply by, materialised.

use candle_core::{Result, Tensor};
use semisep_core::lower_triangle;

/// RWKV-4: a softmax over `s ≤ t` of `k_s + (t-1-s) w`, of `u + k_t` at `s = t`. k is (b, l, c); (b, c, l, l).
pub(crate) fn averaged(k: &Tensor, w: &Tensor, u: &Tensor) -> Result<Tensor> {
    let (_, l, _) = k.dims3()?;
    let (dtype, device) = (k.dtype(), k.device());
    let age: Vec<f64> = (0..l * l).map(|i| (i / l.max(1)) as f64 - (i % l.max(1)) as f64 - 1.0).collect();
    let age = Tensor::from_vec(age, (l, l), device)?.to_dtype(dtype)?;
    let eye = Tensor::eye(l, dtype, device)?;
    let lower = lower_triangle(l, dtype, device)?;
    let per_channel = |t: &Tensor| t.reshape((t.elem_count(), 1, 1));
    // (c, t, s): what is added to the key of token s.
    let past = (&lower - &eye)?.mul(&age)?.unsqueeze(0)?.broadcast_mul(&per_channel(w)?)?;
    let added = past.broadcast_add(&eye.unsqueeze(0)?.broadcast_mul(&per_channel(u)?)?)?;
    let hidden = ((&lower - 1.0)? * 1e30)?;
    let scores = k.transpose(1, 2)?.unsqueeze(2)?.broadcast_add(&added)?.broadcast_add(&hidden)?;
    let scores = scores.broadcast_sub(&scores.max_keepdim(3)?)?.exp()?;
    scores.broadcast_div(&scores.sum_keepdim(3)?)
}

/// RWKV-5, 6: `Σ_n r_t[n] k_s[n] Π_{s<j<t} w_j[n]` below the diagonal, `Σ_n r_t[n] u[n] k_t[n]` on it. r, k and log_decay
/// are (b, l, h, n); (b, h, l, l).
pub(crate) fn decayed(r: &Tensor, k: &Tensor, log_decay: &Tensor, bonus: &Tensor) -> Result<Tensor> {
    rows(k, |t, reach| {
        let own = at(k, t)?.broadcast_mul(bonus)?.unsqueeze(3)?; // (b, h, n, 1)
        let row = read(&at(r, t)?, &put(reach, t, &own)?)?;
        let next = reach.broadcast_mul(&at(log_decay, t)?.exp()?.unsqueeze(3)?)?;
        Ok((row, put(&next, t, &at(k, t)?.unsqueeze(3)?)?))
    })
}

/// RWKV-7: `r_tᵀ (Π_{s<j≤t} A_j) k_s` with `A_j = diag(w_j) + b_j a_jᵀ`. All are (b, l, h, n); (b, h, l, l).
pub(crate) fn delta(r: &Tensor, k: &Tensor, log_decay: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    rows(k, |t, reach| {
        let removed = at(b, t)?.unsqueeze(3)?.broadcast_mul(&read(&at(a, t)?, reach)?.unsqueeze(2)?)?;
        let kept = reach.broadcast_mul(&at(log_decay, t)?.exp()?.unsqueeze(3)?)?;
        let next = put(&(kept + removed)?, t, &at(k, t)?.unsqueeze(3)?)?;
        Ok((read(&at(r, t)?, &next)?, next))
    })
}

/// Rows of a matrix from what has become of each key by then, (b, h, n, l): `step` gives row t (b, h, l) and the next.
fn rows(k: &Tensor, step: impl Fn(usize, &Tensor) -> Result<(Tensor, Tensor)>) -> Result<Tensor> {
    let (b, l, h, n) = k.dims4()?;
    let mut reach = Tensor::zeros((b, h, n, l), k.dtype(), k.device())?;
    let mut rows = Vec::with_capacity(l);
    for t in 0..l {
        let (row, next) = step(t, &reach)?;
        rows.push(row);
        reach = next;
    }
    if rows.is_empty() { Tensor::zeros((b, h, 0, 0), k.dtype(), k.device()) } else { Tensor::stack(&rows, 2) }
}

/// Token t of (b, l, h, n): (b, h, n).
fn at(x: &Tensor, t: usize) -> Result<Tensor> {
    x.narrow(1, t, 1)?.squeeze(1)?.contiguous()
}

/// `Σ_n q[n] reach[n, s]`: (b, h, n) and (b, h, n, l) -> (b, h, l).
fn read(q: &Tensor, reach: &Tensor) -> Result<Tensor> {
    reach.broadcast_mul(&q.unsqueeze(3)?)?.sum(2)
}

/// Column t replaced by (b, h, n, 1).
fn put(reach: &Tensor, t: usize, column: &Tensor) -> Result<Tensor> {
    let l = reach.dim(3)?;
    Tensor::cat(&[&reach.narrow(3, 0, t)?, column, &reach.narrow(3, t + 1, l - t - 1)?], 3)
}
