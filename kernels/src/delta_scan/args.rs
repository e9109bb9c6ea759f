//! Arguments of the delta-rule scans and of their one-token steps, and their checks.

use candle_core::{Result, Tensor, bail};

use crate::check::{optional, positive, shape, tuple};
use crate::segments::{Segment, segments};

/// Arguments of [`delta_scan`](super::delta_scan). Floating-point dtypes may differ from each other.
#[derive(Debug, Clone, Copy)]
pub struct DeltaScan<'a> {
    /// Queries (RWKV-7's r), (b, l, h, n).
    pub q: &'a Tensor,
    /// Keys, (b, l, h, n).
    pub k: &'a Tensor,
    /// Values, (b, l, h, p).
    pub v: &'a Tensor,
    /// Logarithms of the decays, one a key channel (b, l, h, n) or one a head (b, l, h); no decay if absent.
    pub log_decay: Option<&'a Tensor>,
    /// What is read of the state before the token, (b, l, h, n).
    pub a: &'a Tensor,
    /// Where what was read is added, (b, l, h, n).
    pub b: &'a Tensor,
    /// Factor on the queries.
    pub scale: f64,
    /// State before the first token, (b or n_seq, h, n, p); zero if absent.
    pub initial_state: Option<&'a Tensor>,
    /// Packed sequences: `[0, l0, l0 + l1, ..., l]`, with b = 1.
    pub cu_seqlens: Option<&'a [usize]>,
}

impl<'a> DeltaScan<'a> {
    /// The scan without decay, from a zero state.
    pub fn new(q: &'a Tensor, k: &'a Tensor, v: &'a Tensor, a: &'a Tensor, b: &'a Tensor) -> Self {
        Self { q, k, v, log_decay: None, a, b, scale: 1.0, initial_state: None, cu_seqlens: None }
    }

    pub(super) fn op(&self) -> Op<'a> {
        let Self { q, k, v, log_decay, a, b, scale, initial_state, cu_seqlens } = *self;
        let rule = Rule::Plain { a, b };
        Op { name: "delta_scan", q, k, v, log_decay, rule, scale, initial_state, cu_seqlens }
    }
}

/// Arguments of [`gated_delta_rule`](super::gated_delta_rule). Floating-point dtypes may differ from each other.
#[derive(Debug, Clone, Copy)]
pub struct GatedDeltaRule<'a> {
    /// Queries, (b, l, h, n).
    pub q: &'a Tensor,
    /// Keys, (b, l, h, n); of length at most one (and `beta` below two) where the state is to stay bounded.
    pub k: &'a Tensor,
    /// Values, (b, l, h, p).
    pub v: &'a Tensor,
    /// How far the old value under a key moves towards the new one, (b, l, h).
    pub beta: &'a Tensor,
    /// Logarithms of the decays, one a head (b, l, h) (gated DeltaNet) or one a key channel (b, l, h, n) (Kimi delta
    /// attention); no decay if absent (DeltaNet).
    pub log_decay: Option<&'a Tensor>,
    /// Factor on the queries; the field uses 1/√n.
    pub scale: f64,
    /// State before the first token, (b or n_seq, h, n, p); zero if absent.
    pub initial_state: Option<&'a Tensor>,
    /// Packed sequences: `[0, l0, l0 + l1, ..., l]`, with b = 1.
    pub cu_seqlens: Option<&'a [usize]>,
}

impl<'a> GatedDeltaRule<'a> {
    /// The plain delta rule, queries scaled by 1/√n, from a zero state.
    pub fn new(q: &'a Tensor, k: &'a Tensor, v: &'a Tensor, beta: &'a Tensor) -> Self {
        let scale = 1.0 / (q.dims().last().copied().unwrap_or(1).max(1) as f64).sqrt();
        Self { q, k, v, beta, log_decay: None, scale, initial_state: None, cu_seqlens: None }
    }

    pub(super) fn op(&self) -> Op<'a> {
        let Self { q, k, v, beta, log_decay, scale, initial_state, cu_seqlens } = *self;
        let rule = Rule::Correct { beta };
        Op { name: "gated_delta_rule", q, k, v, log_decay, rule, scale, initial_state, cu_seqlens }
    }
}

/// Arguments of [`delta_update`](super::delta_update): one token of [`DeltaScan`].
#[derive(Debug, Clone, Copy)]
pub struct DeltaUpdate<'a> {
    /// Queries, (b, h, n).
    pub q: &'a Tensor,
    /// Keys, (b, h, n).
    pub k: &'a Tensor,
    /// Values, (b, h, p).
    pub v: &'a Tensor,
    /// Logarithms of the decays, (b, h, n) or (b, h).
    pub log_decay: Option<&'a Tensor>,
    /// What is read of the state before the token, (b, h, n).
    pub a: &'a Tensor,
    /// Where what was read is added, (b, h, n).
    pub b: &'a Tensor,
    /// Factor on the queries.
    pub scale: f64,
}

impl<'a> DeltaUpdate<'a> {
    /// The step without decay.
    pub fn new(q: &'a Tensor, k: &'a Tensor, v: &'a Tensor, a: &'a Tensor, b: &'a Tensor) -> Self {
        Self { q, k, v, log_decay: None, a, b, scale: 1.0 }
    }

    pub(super) fn op(&self) -> Op<'a> {
        let Self { q, k, v, log_decay, a, b, scale } = *self;
        let (rule, name) = (Rule::Plain { a, b }, "delta_update");
        Op { name, q, k, v, log_decay, rule, scale, initial_state: None, cu_seqlens: None }
    }
}

/// Arguments of [`gated_delta_rule_update`](super::gated_delta_rule_update): one token of [`GatedDeltaRule`].
#[derive(Debug, Clone, Copy)]
pub struct GatedDeltaRuleUpdate<'a> {
    /// Queries, (b, h, n).
    pub q: &'a Tensor,
    /// Keys, (b, h, n).
    pub k: &'a Tensor,
    /// Values, (b, h, p).
    pub v: &'a Tensor,
    /// How far the old value under a key moves towards the new one, (b, h).
    pub beta: &'a Tensor,
    /// Logarithms of the decays, (b, h) or (b, h, n).
    pub log_decay: Option<&'a Tensor>,
    /// Factor on the queries.
    pub scale: f64,
}

impl<'a> GatedDeltaRuleUpdate<'a> {
    /// The plain delta rule, queries scaled by 1/√n.
    pub fn new(q: &'a Tensor, k: &'a Tensor, v: &'a Tensor, beta: &'a Tensor) -> Self {
        let GatedDeltaRule { scale, .. } = GatedDeltaRule::new(q, k, v, beta);
        Self { q, k, v, beta, log_decay: None, scale }
    }

    pub(super) fn op(&self) -> Op<'a> {
        let Self { q, k, v, beta, log_decay, scale } = *self;
        let (rule, name) = (Rule::Correct { beta }, "gated_delta_rule_update");
        Op { name, q, k, v, log_decay, rule, scale, initial_state: None, cu_seqlens: None }
    }
}

/// What the rank-one terms of a token are.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rule<'a> {
    /// `b (aᵀ S) + k vᵀ`, a reading the state before its decay.
    Plain { a: &'a Tensor, b: &'a Tensor },
    /// `k (β (v - Sᵀ k))ᵀ`, k reading the decayed state.
    Correct { beta: &'a Tensor },
}

/// Either op, over whole sequences or (without the l dimension) one token.
#[derive(Debug, Clone, Copy)]
pub(super) struct Op<'a> {
    pub(super) name: &'static str,
    pub(super) q: &'a Tensor,
    pub(super) k: &'a Tensor,
    pub(super) v: &'a Tensor,
    pub(super) log_decay: Option<&'a Tensor>,
    pub(super) rule: Rule<'a>,
    pub(super) scale: f64,
    pub(super) initial_state: Option<&'a Tensor>,
    pub(super) cu_seqlens: Option<&'a [usize]>,
}

impl Op<'_> {
    /// The sizes and sequences of a scan, if all shapes fit.
    pub(super) fn check(&self) -> Result<Dims> {
        let (b, l, h, n) = self.q.dims4()?;
        let p = self.v.dims4()?.3;
        self.check_tokens(&[b, l], h, n, p)?;
        let segments = segments(self.name, b, l, self.cu_seqlens)?;
        let expected = [segments.len(), h, n, p];
        optional(self.name, "initial_state", self.initial_state, &expected, "(sequences, h, n, p)")?;
        Ok(Dims { b, l, h, p, n, segments })
    }

    /// The sizes of a step, as of a scan over one token, if all shapes fit.
    pub(super) fn check_step(&self, state: &Tensor) -> Result<Dims> {
        let (b, h, n) = self.q.dims3()?;
        let p = self.v.dims3()?.2;
        self.check_tokens(&[b], h, n, p)?;
        shape(self.name, "state", state, &[b, h, n, p], "(b, h, n, p)")?;
        Ok(Dims { b, l: 1, h, p, n, segments: segments(self.name, b, 1, None)? })
    }

    fn check_tokens(&self, tokens: &[usize], h: usize, n: usize, p: usize) -> Result<()> {
        let name = self.name;
        let of = |rest: &[usize]| [tokens, rest].concat();
        let (keys, heads) = (of(&[h, n]), of(&[h]));
        shape(name, "q", self.q, &keys, "(.., h, n)")?;
        shape(name, "k", self.k, &keys, "as q")?;
        shape(name, "v", self.v, &of(&[h, p]), "as q but for its last dimension")?;
        positive(name, &[("the number of heads", h), ("the key dimension", n), ("the value dimension", p)])?;
        match self.rule {
            Rule::Plain { a, b } => {
                shape(name, "a", a, &keys, "as q")?;
                shape(name, "b", b, &keys, "as q")?;
            }
            Rule::Correct { beta } => shape(name, "beta", beta, &heads, "one a token and head")?,
        }
        match self.log_decay {
            Some(g) if g.dims() != heads && g.dims() != keys => bail!(
                "{name}: log_decay has shape {}, expected {} (one a head) or {} (one a key channel)",
                tuple(g.dims()),
                tuple(&heads),
                tuple(&keys)
            ),
            Some(g) if !g.dtype().is_float() => {
                bail!("{name}: log_decay has dtype {:?}, expected a floating-point one", g.dtype())
            }
            _ if !self.scale.is_finite() => {
                bail!("{name}: scale is {}, expected a finite number", self.scale)
            }
            _ => Ok(()),
        }
    }
}

/// Sizes of a scan.
#[derive(Debug, Clone)]
pub(super) struct Dims {
    pub(super) b: usize,
    pub(super) l: usize,
    pub(super) h: usize,
    pub(super) p: usize,
    pub(super) n: usize,
    pub(super) segments: Vec<Segment>,
}
