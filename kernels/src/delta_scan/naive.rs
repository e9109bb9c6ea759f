//! The definitions: the recurrences token by token, in tensor operations that autograd differentiates.

use candle_core::{Result, Tensor};

use super::args::{DeltaScan, GatedDeltaRule, Op, Rule};
use crate::host::state_dtype;
use crate::selective_scan::naive::stack_or_empty;

/// [`delta_scan`](super::delta_scan), slowly, on any device: the reference for the fast one.
///
/// # Errors
/// As the fast one.
pub fn delta_scan(args: &DeltaScan) -> Result<(Tensor, Tensor)> {
    scan(&args.op())
}

/// [`gated_delta_rule`](super::gated_delta_rule), slowly, on any device: the reference for the fast one.
///
/// # Errors
/// As the fast one.
pub fn gated_delta_rule(args: &GatedDeltaRule) -> Result<(Tensor, Tensor)> {
    scan(&args.op())
}

/// One token's tensors: columns (h, n, 1) and rows (h, 1, p).
struct Token {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    /// (h, n, 1) or (h, 1, 1)
    decay: Option<Tensor>,
    rule: TokenRule,
}

enum TokenRule {
    Plain { a: Tensor, b: Tensor },
    Correct { beta: Tensor },
}

impl Token {
    fn new(op: &Op, t: usize) -> Result<Self> {
        let work = state_dtype(op.v.dtype());
        let token = |x: &Tensor| x.flatten(0, 1)?.get(t)?.to_dtype(work);
        let column = |x: &Tensor| token(x)?.unsqueeze(2);
        let h = op.q.dim(2)?;
        Ok(Self {
            q: (column(op.q)? * op.scale)?,
            k: column(op.k)?,
            v: token(op.v)?.unsqueeze(1)?,
            decay: op.log_decay.map(|g| token(g)?.exp()?.reshape((h, (), 1))).transpose()?,
            rule: match op.rule {
                Rule::Plain { a, b } => TokenRule::Plain { a: column(a)?, b: column(b)? },
                Rule::Correct { beta } => TokenRule::Correct { beta: token(beta)?.reshape((h, 1, 1))? },
            },
        })
    }

    /// The state (h, n, p) after this token.
    fn advance(&self, state: &Tensor) -> Result<Tensor> {
        let decayed = match &self.decay {
            Some(decay) => state.broadcast_mul(decay)?,
            None => state.clone(),
        };
        match &self.rule {
            TokenRule::Plain { a, b } => {
                let read = state.broadcast_mul(a)?.sum_keepdim(1)?; // aᵀ S, (h, 1, p)
                (decayed + b.broadcast_mul(&read)?)? + self.k.broadcast_mul(&self.v)?
            }
            TokenRule::Correct { beta } => {
                let old = decayed.broadcast_mul(&self.k)?.sum_keepdim(1)?;
                let new = (&self.v - old)?.broadcast_mul(beta)?;
                decayed + self.k.broadcast_mul(&new)?
            }
        }
    }
}

fn scan(op: &Op) -> Result<(Tensor, Tensor)> {
    let dims = op.check()?;
    let work = state_dtype(op.v.dtype());
    let (mut outputs, mut states) = (Vec::new(), Vec::new());
    for (k, segment) in dims.segments.iter().enumerate() {
        let mut state = match op.initial_state {
            Some(state) => state.get(k)?.to_dtype(work)?,
            None => Tensor::zeros((dims.h, dims.n, dims.p), work, op.q.device())?,
        };
        for t in segment.start..segment.start + segment.len {
            let token = Token::new(op, t)?;
            state = token.advance(&state)?;
            outputs.push(state.broadcast_mul(&token.q)?.sum(1)?);
        }
        states.push(state);
    }
    let y = stack_or_empty(&outputs, op.v)?;
    let states = if states.is_empty() {
        Tensor::zeros((0, dims.h, dims.n, dims.p), work, op.q.device())?
    } else {
        Tensor::stack(&states, 0)?
    };
    Ok((y.to_dtype(op.v.dtype())?, states))
}
