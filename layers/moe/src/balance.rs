//! How evenly the experts are used.

use candle_core::{D, Result, Tensor};

use crate::indices;
use crate::route::Routes;

/// The load of the experts over some tokens.
#[derive(Debug, Clone)]
pub struct Balance {
    /// Each expert's share of the choices; they sum to one.
    pub shares: Vec<f64>,
    /// `experts · Σ_e share_e · mean score_e`, scores normed to a sum of one for each token: 1 for an even load, up to the
    /// number of experts; differentiable through the scores alone (Fedus et al. 2022, eq. 4).
    pub loss: Tensor,
}

impl Balance {
    /// Of these routes, and the scores (t, experts) behind them.
    pub(crate) fn new(routes: &Routes, scores: &Tensor) -> Result<Self> {
        let counts: Vec<u32> = routes.tokens.iter().map(|part| part.len() as u32).collect();
        let all = counts.iter().sum::<u32>().max(1);
        let shares = (indices(&counts, scores.device())?.to_dtype(scores.dtype())? / f64::from(all))?;
        let probabilities = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?.mean(0)?;
        Ok(Self {
            shares: counts.iter().map(|&n| f64::from(n) / f64::from(all)).collect(),
            loss: ((shares * probabilities)?.sum_all()? * counts.len() as f64)?,
        })
    }
}
