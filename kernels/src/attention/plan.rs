//! Checked arguments, and which query sees which key.

use std::ops::Range;

use candle_core::{Result, Tensor, bail};

use super::{Attention, Weighting, WindowMode};
use crate::segments::segments;

/// One sequence: its queries in q and its keys in k and v.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sequence {
    pub(super) q_row: usize,
    pub(super) q_start: usize,
    pub(super) lq: usize,
    pub(super) k_row: usize,
    pub(super) k_start: usize,
    pub(super) lk: usize,
}

/// What to compute, without the data.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) sequences: Vec<Sequence>,
    /// Rows and positions of the query tensor.
    pub(super) b: usize,
    pub(super) lq: usize,
    /// Query heads and those that share a key head.
    pub(super) h: usize,
    pub(super) group: usize,
    pub(super) p: usize,
    pub(super) pv: usize,
    pub(super) causal: bool,
    pub(super) window: Option<usize>,
    pub(super) window_mode: WindowMode,
    pub(super) exclude_self: bool,
    pub(super) weighting: Weighting,
    pub(super) softcap: Option<f64>,
    pub(super) scale: f64,
}

impl Plan {
    pub(super) fn new(args: &Attention) -> Result<Self> {
        let (b, lq, h, p) = dims(args.q, "q")?;
        let (k_rows, lk, h_kv, k_p) = dims(args.k, "k")?;
        let (v_rows, v_lk, v_heads, pv) = dims(args.v, "v")?;
        check_tensors(args)?;
        if k_p != p || p == 0 {
            bail!("attention: q has heads of {p}, k of {k_p}: expected the same, at least 1");
        }
        if (v_rows, v_lk, v_heads) != (k_rows, lk, h_kv) {
            bail!("attention: v has shape {:?}, expected ({k_rows}, {lk}, {h_kv}, ..), as k", args.v.shape());
        }
        if pv == 0 {
            bail!("attention: v has heads of 0, expected at least 1");
        }
        if h_kv == 0 || !h.is_multiple_of(h_kv) {
            bail!("attention: k has {h_kv} heads, expected a divisor of q's {h}");
        }
        if args.window == Some(0) {
            bail!("attention: window is 0, expected at least 1 (the query's own position)");
        }
        if args.softcap.is_some_and(|c| !(c.is_finite() && c > 0.0)) {
            bail!("attention: softcap is {:?}, expected a positive number", args.softcap);
        }
        if args.exclude_self && !args.causal {
            bail!("attention: exclude_self without causal: expected causal attention");
        }
        check_bias(args, h)?;
        let scale = args.scale.unwrap_or(1.0 / (p as f64).sqrt());
        if !scale.is_finite() {
            bail!("attention: scale is {scale}, expected a finite number");
        }
        Ok(Self {
            sequences: sequences(args, (b, lq), (k_rows, lk))?,
            b,
            lq,
            h,
            group: h / h_kv,
            p,
            pv,
            causal: args.causal,
            window: args.window,
            window_mode: args.window_mode,
            exclude_self: args.exclude_self,
            weighting: args.weighting,
            softcap: args.softcap,
            scale,
        })
    }

    /// Row of the output, as (b · lq · h, pv), for query `i` of a sequence and the first query head of key head `g`.
    pub(super) fn row(&self, s: &Sequence, i: usize, g: usize) -> usize {
        (s.q_row * self.lq + s.q_start + i) * self.h + g * self.group
    }

    /// Keys that query `i` of a sequence sees.
    pub(super) fn keys(&self, s: &Sequence, i: usize) -> Range<usize> {
        // The query's position plus one, and never negative: lq > lk is legal without causality.
        let end = (s.lk + i + 1).saturating_sub(s.lq);
        let (first, last) = match (self.window, self.window_mode) {
            (None, _) => (0, s.lk),
            (Some(w), WindowMode::Sliding) => (end.saturating_sub(w), s.lk),
            (Some(w), WindowMode::Block) => {
                let first = end.saturating_sub(1) / w * w;
                (first, first.saturating_add(w).min(s.lk))
            }
        };
        let last = if self.causal { end - usize::from(self.exclude_self) } else { last };
        first..last.max(first)
    }

    /// Queries that see key `t` of a sequence: [`Plan::keys`] the other way round.
    pub(super) fn queries(&self, s: &Sequence, t: usize) -> Range<usize> {
        // The query at a position, or the first one where it stands earlier.
        let at = |position: usize| position.saturating_add(s.lq).saturating_sub(s.lk).min(s.lq);
        let block = self.window.filter(|_| self.window_mode == WindowMode::Block);
        let first = match block {
            _ if self.causal => at(t + usize::from(self.exclude_self)),
            Some(w) => at(t / w * w),
            None => 0,
        };
        let end = match (self.window, block) {
            (_, Some(w)) => at((t / w + 1).saturating_mul(w)),
            (Some(w), None) => at(t.saturating_add(w)),
            (None, None) => s.lq,
        };
        first..end.max(first)
    }

    /// Distances that occur between a query and the keys before it that it sees.
    pub(super) fn reach(&self) -> usize {
        let longest = self.sequences.iter().map(|s| s.lk).max().unwrap_or(0);
        self.window.map_or(longest, |w| w.min(longest))
    }
}

fn dims(t: &Tensor, name: &str) -> Result<(usize, usize, usize, usize)> {
    let &[b, l, h, p] = t.dims() else {
        bail!("attention: {name} has shape {:?}, expected (batch, length, heads, head dimension)", t.shape())
    };
    Ok((b, l, h, p))
}

fn check_bias(args: &Attention, h: usize) -> Result<()> {
    let Some(bias) = args.bias else { return Ok(()) };
    if bias.dims().len() != 2 || bias.dims()[0] != h || bias.dims()[1] == 0 {
        bail!(
            "attention: bias has shape {:?}, expected ({h}, distances), at least one distance",
            bias.shape()
        );
    }
    if !bias.dtype().is_float() || !bias.device().is_cpu() {
        bail!("attention: bias is {:?} on {:?}, expected a float on the CPU", bias.dtype(), bias.device());
    }
    if !args.causal {
        bail!("attention: bias without causal: its table has no distances to later keys");
    }
    if args.softcap.is_some() {
        bail!("attention: bias and softcap together: expected one of them");
    }
    Ok(())
}

fn check_tensors(args: &Attention) -> Result<()> {
    for (t, name) in [(args.q, "q"), (args.k, "k"), (args.v, "v")] {
        if !t.dtype().is_float() || t.dtype() != args.q.dtype() {
            bail!("attention: {name} is {:?}, expected q's {:?}, a float", t.dtype(), args.q.dtype());
        }
        if !t.device().is_cpu() {
            bail!("attention: {name} is on {:?}: there is no CUDA path yet, only the CPU's", t.device());
        }
    }
    Ok(())
}

fn sequences(
    args: &Attention,
    (b, lq): (usize, usize),
    (k_rows, lk): (usize, usize),
) -> Result<Vec<Sequence>> {
    let packed = args.cu_seqlens.is_some();
    let pieces = segments("attention", b, lq, args.cu_seqlens)?;
    match args.kv_lens {
        Some(lens) if lens.len() != pieces.len() || k_rows != pieces.len() => bail!(
            "attention: {} sequences, {} kv_lens, {k_rows} cache rows: expected as many of each",
            pieces.len(),
            lens.len()
        ),
        None if k_rows != b || (packed && lk != lq) => bail!(
            "attention: k has shape {:?}, expected {b} rows{} as q",
            args.k.shape(),
            if packed { format!(" of {lq}") } else { String::new() }
        ),
        _ => {}
    }
    let mut result = Vec::with_capacity(pieces.len());
    for (n, piece) in pieces.iter().enumerate() {
        let (q_row, q_start) = if packed { (0, piece.start) } else { (n, 0) };
        let (k_row, k_start, len) = match args.kv_lens {
            Some(lens) => (n, 0, lens[n]),
            None if packed => (0, piece.start, piece.len),
            None => (n, 0, lk),
        };
        if len > lk {
            bail!("attention: kv_lens[{n}] is {len}, but the cache has capacity {lk}");
        }
        if args.causal && piece.len > len {
            bail!(
                "attention: sequence {n} has {} queries and {len} keys: causal queries are the last positions of \
                 their keys",
                piece.len
            );
        }
        if args.window.is_some() && args.window_mode == WindowMode::Block && piece.len > len {
            bail!(
                "attention: sequence {n} has {} queries and {len} keys: block windows need as many keys",
                piece.len
            );
        }
        result.push(Sequence { q_row, q_start, lq: piece.len, k_row, k_start, lk: len });
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn keys_and_queries_are_one_relation() -> Result<()> {
        let windows = [None, Some(1), Some(3), Some(100), Some(usize::MAX)];
        for (lq, lk) in [(5, 5), (3, 9), (1, 4), (4, 0), (7, 3), (6, 12)] {
            for (causal, exclude_self) in [(false, false), (true, false), (true, true)] {
                for window_mode in [WindowMode::Sliding, WindowMode::Block] {
                    if lq > lk && (causal || window_mode == WindowMode::Block) {
                        continue;
                    }
                    for window in windows {
                        let q = Tensor::zeros((1, lq, 1, 2), DType::F32, &Device::Cpu)?;
                        let k = Tensor::zeros((1, lk, 1, 2), DType::F32, &Device::Cpu)?;
                        let plain = Attention::new(&q, &k, &k);
                        let args = Attention { causal, window, window_mode, exclude_self, ..plain };
                        one_relation(&args, (lq, lk))?;
                    }
                }
            }
        }
        Ok(())
    }

    fn one_relation(args: &Attention, (lq, lk): (usize, usize)) -> Result<()> {
        let plan = Plan::new(args)?;
        let s = &plan.sequences[0];
        for (i, t) in (0..lq).flat_map(|i| (0..lk).map(move |t| (i, t))) {
            let position = lk as i64 - lq as i64 + i as i64;
            let distance = position - t as i64;
            let near = args.window.is_none_or(|w| {
                let w = i64::try_from(w).unwrap_or(i64::MAX);
                match args.window_mode {
                    WindowMode::Sliding => distance < w,
                    WindowMode::Block => position / w == t as i64 / w,
                }
            });
            let seen = near && !(args.causal && distance < 0) && !(args.exclude_self && distance == 0);
            assert_eq!(plan.keys(s, i).contains(&t), seen, "{lq} {lk} {i} {t} {args:?}");
            assert_eq!(plan.queries(s, t).contains(&i), seen, "{lq} {lk} {i} {t} {args:?}");
        }
        Ok(())
    }
}
