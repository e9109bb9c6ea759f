//! Mixture of experts (Shazeer et al. 2017, arXiv 1701.06538): a channel mixer of many MLPs, of which each token passes
//! through a few.
//!
//! ```text
//! s = softmax(W x)  or  σ(W x)                            scores, one an expert
//! E(x) = the k experts of largest s (+ a bias that chooses but does not weigh), in the best groups of experts
//! w_e = s_e                                               then, optionally, over Σ_{E(x)} s; times a factor
//! y = Σ_{e in E(x)} w_e MLP_e(x)  +  [σ(W_s x)] MLP_shared(x)
//! latent_size:  the first sum is  W_2 Σ w_e MLP_e(W_1 x)
//! ```
//! | model | options |
//! |---|---|
//! | Jamba | softmax |
//! | Granite 4 | softmax, `norm_topk_prob` (a softmax over the chosen alone is the same), `shared_d_intermediate` |
//! | Qwen3-Next | the same with `shared_gate` |
//! | Nemotron-H | sigmoid, `expert_bias`, `norm_topk_prob`, `n_group`, `routed_scaling_factor`, ungated relu² experts, shared |
//! | Nemotron 3 Super | the same with `latent_size` |
//! | LFM2 | sigmoid, `expert_bias`, `norm_topk_prob`, `norm_topk_eps` = 1e-6 |
//!
//! | symbol | parameters | shape |
//! |---|---|---|
//! | W | `gate.weight` | (experts, d), in full precision: a rounded score may choose another expert |
//! | bias | `gate.e_score_correction_bias` | (experts), a buffer: trainers move it by the experts' load, no gradient does |
//! | MLP_e | `experts.E.fc1`, `.fc2`; or `.up_proj`, `.gate_proj`, `.down_proj` | as of the mixer `mlp` |
//! | W_1, W_2 | `fc1_latent_proj.weight`, `fc2_latent_proj.weight` | (latent, d), (d, latent) |
//! | MLP_shared | `shared_expert.fc1`, `.fc2`; `shared_expert_gate.weight` | as of `mlp`; (1, d) |
//!
//! Tokens are gathered by expert, and an expert without tokens costs nothing: no token is dropped, none is padded. Which
//! experts a token takes is a constant of the gradient.

mod balance;
mod config;
mod route;

pub use balance::Balance;
use candle_core::{D, Device, Result, Tensor};
pub use config::{MoeConfig, Scoring};
use route::Routes;
use semisep_core::{
    Context, Cost, Init, Linear, Mixer, Mixing, Mlp, ParameterGroup, State, VarBuilder, in_blocks,
};
use semisep_kernels::{Activation, activation, linear, state_dtype};

const KIND: &str = "moe";

/// The layer.
pub struct Moe {
    config: MoeConfig,
    d_model: usize,
    router: Tensor, // (experts, d)
    bias: Option<Tensor>,
    experts: Vec<Mlp>,
    latent: Option<[Linear; 2]>,
    shared: Option<Mlp>,
    shared_gate: Option<Linear>,
    groups: Vec<ParameterGroup>,
    element: usize,
}

impl Moe {
    /// With the parameters of `vb`.
    ///
    /// # Errors
    /// If a parameter is missing or has another shape.
    pub fn new(d_model: usize, config: &MoeConfig, vb: &VarBuilder) -> Result<Self> {
        let (e, gate) = (config.num_experts, vb.pp("gate"));
        let router = ParameterGroup {
            full_precision: true,
            ..ParameterGroup::weight("weight", (e, d_model), Init::linear(d_model))
        };
        let router = gate.get_group(router)?;
        let bias = ParameterGroup::buffer("e_score_correction_bias", e, Init::ZEROS);
        let bias = config.expert_bias.then(|| gate.get_group(bias)).transpose()?;
        let width = config.latent_size.unwrap_or(d_model);
        let expert = config.mlp(config.d_intermediate);
        let experts =
            (0..e).map(|i| Mlp::new(width, &expert, &vb.pp("experts").pp(i))).collect::<Result<_>>()?;
        let latent = config.latent_size.map(|width| -> Result<[Linear; 2]> {
            let map = |from, to, name| Linear::new(from, to, false, &vb.pp(name));
            Ok([map(d_model, width, "fc1_latent_proj")?, map(width, d_model, "fc2_latent_proj")?])
        });
        let shared = config.shared_d_intermediate.map(|hidden| config.mlp(hidden));
        let shared = shared.map(|shared| Mlp::new(d_model, &shared, &vb.pp("shared_expert")));
        let shared_gate =
            config.shared_gate.then(|| Linear::new(d_model, 1, false, &vb.pp("shared_expert_gate")));
        Ok(Self {
            config: config.clone(),
            d_model,
            router,
            bias,
            experts,
            latent: latent.transpose()?,
            shared: shared.transpose()?,
            shared_gate: shared_gate.transpose()?,
            groups: vb.groups(),
            element: vb.dtype().size_in_bytes(),
        })
    }

    /// Scores of tokens x (t, d) in full precision: logits and scores, (t, experts).
    fn scores(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let logits = linear(&x.to_dtype(state_dtype(x.dtype()))?, &self.router, None)?;
        let scores = match self.config.scoring {
            Scoring::Softmax => softmax(&logits)?,
            Scoring::Sigmoid => activation(&logits, Activation::Sigmoid)?,
        };
        Ok((logits, scores))
    }

    fn routes(&self, x: &Tensor) -> Result<Routes> {
        let (logits, scores) = self.scores(x)?;
        Routes::new(&self.config, &logits, &scores, self.bias.as_ref())
    }

    /// (..., d) -> (..., d)
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let tokens = x.flatten_to(x.rank() - 2)?; // (t, d)
        let t = tokens.dim(0)?;
        if t == 0 {
            return x.zeros_like();
        }
        let routes = self.routes(&tokens)?;
        let inner = match &self.latent {
            Some([into, _]) => into.forward(&tokens)?,
            None => tokens.clone(),
        }; // (t, latent or d)
        let mut answers = Vec::new();
        for (expert, part) in self.experts.iter().zip(&routes.tokens) {
            if !part.is_empty() {
                answers.push(run(expert, &inner.index_select(&indices(part, x.device())?, 0)?)?);
            }
        }
        let k = self.config.num_experts_per_tok;
        let answers = Tensor::cat(&answers, 0)?; // by expert; back to the order of tokens and choices:
        let answers = answers.index_select(&indices(&routes.places, x.device())?, 0)?.reshape((t, k, ()))?;
        let weights = routes.weights.to_dtype(x.dtype())?.unsqueeze(D::Minus1)?; // (t, k, 1)
        let mut y = answers.broadcast_mul(&weights)?.sum(1)?;
        if let Some([_, back]) = &self.latent {
            y = back.forward(&y)?;
        }
        if let Some(shared) = &self.shared {
            let mut extra = run(shared, &tokens)?;
            if let Some(gate) = &self.shared_gate {
                extra = extra.broadcast_mul(&activation(&gate.forward(&tokens)?, Activation::Sigmoid)?)?;
            }
            y = (y + extra)?;
        }
        y.reshape(x.shape())
    }

    /// How evenly x (b, l, d) loads the experts: shares, and the auxiliary loss of the Switch transformer. Nothing of it
    /// enters the output; trainers add [`Balance::loss`] times a small factor to theirs.
    ///
    /// # Errors
    /// If the width of x differs.
    pub fn balance(&self, x: &Tensor) -> Result<Balance> {
        let tokens = x.flatten_to(x.rank() - 2)?;
        let (logits, scores) = self.scores(&tokens)?;
        let routes = Routes::new(&self.config, &logits, &scores, self.bias.as_ref())?;
        Balance::new(&routes, &scores)
    }
}

/// An MLP over tokens (t, d).
fn run(mlp: &Mlp, tokens: &Tensor) -> Result<Tensor> {
    mlp.forward(&tokens.unsqueeze(0)?, &mut Context::default())?.squeeze(0)
}

fn indices(values: &[u32], device: &Device) -> Result<Tensor> {
    Tensor::from_slice(values, values.len(), device)
}

/// Over the last dimension, differentiable.
fn softmax(x: &Tensor) -> Result<Tensor> {
    let e = x.broadcast_sub(&x.detach().max_keepdim(D::Minus1)?)?.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
}

impl Moe {
    /// The parallel form over all of the input at once.
    fn forward_once(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, l, _) = x.dims3()?;
        let lengths = ctx.check(KIND, b, l)?;
        let y = self.apply(x)?;
        ctx.leave(&[], &lengths)?;
        Ok(y)
    }
}

impl Mixer for Moe {
    fn forward(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        in_blocks(self, x, ctx, self.router.track_op(), &|x, ctx| self.forward_once(x, ctx))
    }

    fn step(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let state = ctx.state_mut()?;
        let b = x.dims2()?.0;
        state.check(KIND, b)?;
        let y = self.apply(x)?;
        state.advance(&vec![1; b]);
        Ok(y)
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        Ok(State::new(KIND, batch))
    }

    /// FLOPs of the experts that tokens pass through; bytes of as many experts as the tokens can reach.
    fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        let (rows, k) = (batch * seqlen, self.config.num_experts_per_tok);
        let router = Cost::linear(rows, self.d_model, self.experts.len(), false, size_of::<f32>());
        let shared = self.shared.iter().map(|mlp| mlp.cost(batch, seqlen)).sum::<Cost>();
        let gate = self
            .shared_gate
            .iter()
            .map(|_| Cost::linear(rows, self.d_model, 1, false, self.element))
            .sum::<Cost>();
        let latent = self.config.latent_size.map_or(Cost::default(), |width| {
            Cost::linear(rows, self.d_model, width, false, self.element)
                + Cost::linear(rows, width, self.d_model, false, self.element)
        });
        let routed = self.experts.first().map(|mlp| mlp.cost(batch * k, seqlen)).unwrap_or_default();
        let touched = self.experts.len().min(rows * k).saturating_sub(1) as u64;
        let all = router + shared + gate + latent + routed;
        let size = self.element as u64;
        Cost {
            parameters: self.groups.iter().map(|g| g.elements() as u64).sum(),
            bytes: all.bytes + touched * routed.parameters * size,
            ..all
        }
    }

    fn active_parameters(&self) -> u64 {
        let all: u64 = self.groups.iter().map(|g| g.elements() as u64).sum();
        let expert = self.experts.first().map_or(0, |mlp| mlp.cost(0, 0).parameters);
        all - expert * (self.experts.len() - self.config.num_experts_per_tok) as u64
    }

    fn parameter_groups(&self) -> Vec<ParameterGroup> {
        self.groups.clone()
    }

    fn matrix(&self, _: &Tensor) -> Result<Option<Mixing>> {
        Ok(None)
    }
}
