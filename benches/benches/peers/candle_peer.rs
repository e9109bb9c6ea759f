//! candle-transformers' Mamba and Mamba-2, on the same tensors.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{mamba, mamba2};

use crate::figures::{Figures, Limits, beside_bandwidth, median};
use crate::ours::Weights;

/// Tokens of the peer's prefill: it is some fifty times slower than ours, so it gets fewer.
const PREFILL: usize = 128;

pub(crate) struct Peer {
    model: Model,
    /// Elements of all weights, and of the embedding, which is also the head.
    elements: usize,
    head: usize,
}

enum Model {
    Mamba(mamba::Model, mamba::Config),
    Mamba2(mamba2::Model, mamba2::Config),
}

pub(crate) enum PeerState {
    Mamba(mamba::State),
    Mamba2(mamba2::State),
}

impl Peer {
    pub(crate) fn new(name: &str, weights: &Weights) -> Result<Self> {
        // Its Mamba-2 reads the embedding under another name.
        let two = name.starts_with("mamba2");
        let rename =
            |n: &str| if two { n.replace("embedding.weight", "embeddings.weight") } else { n.into() };
        let tensors = weights.0.iter().map(|(n, t)| (rename(n), t.clone())).collect();
        let vb = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        let mut config = serde_json::json!({
            "d_model": 768, "n_layer": 24, "vocab_size": 50277, "pad_vocab_size_multiple": 8,
        });
        let elements = weights.0.values().map(Tensor::elem_count).sum();
        let head = weights.0.get("backbone.embedding.weight").map_or(0, Tensor::elem_count);
        let model = if two {
            config["d_state"] = 128.into();
            config["pad_vocab_size_multiple"] = 16.into();
            let config: mamba2::Config = serde_json::from_value(config).map_err(candle_core::Error::wrap)?;
            Model::Mamba2(mamba2::Model::new(&config, vb.pp("backbone"))?, config)
        } else {
            let config: mamba::Config = serde_json::from_value(config).map_err(candle_core::Error::wrap)?;
            Model::Mamba(mamba::Model::new(&config, vb.pp("backbone"))?, config)
        };
        Ok(Self { model, elements, head })
    }

    pub(crate) fn new_state(&self) -> Result<PeerState> {
        Ok(match &self.model {
            Model::Mamba(_, c) => PeerState::Mamba(mamba::State::new(1, c, DType::F32, &Device::Cpu)?),
            Model::Mamba2(_, c) => PeerState::Mamba2(mamba2::State::new(1, c, DType::F32, &Device::Cpu)?),
        })
    }

    /// ids (1) -> logits of one token.
    pub(crate) fn step(&self, id: &Tensor, state: &mut PeerState) -> Result<Tensor> {
        match (&self.model, state) {
            (Model::Mamba(model, _), PeerState::Mamba(state)) => model.forward(id, state),
            (Model::Mamba2(model, _), PeerState::Mamba2(state)) => model.forward(id, state),
            _ => candle_core::bail!("the state is of the other model"),
        }
    }
}

pub(crate) fn measure(name: &'static str, peer: &Peer, limits: &Limits) -> Result<Figures> {
    let mut state = peer.new_state()?;
    let id = Tensor::new(&[17u32], &Device::Cpu)?;
    let (decode, bandwidth) = beside_bandwidth(12, || peer.step(&id, &mut state).map(drop))?;
    let prefill = match &peer.model {
        Model::Mamba(..) => None,
        Model::Mamba2(model, _) => {
            let ids: Vec<u32> = (0..PREFILL as u32).map(|i| i * 97 % 50_000).collect();
            let ids = Tensor::from_vec(ids, (1, PREFILL), &Device::Cpu)?;
            let seconds = median(1, || {
                let PeerState::Mamba2(mut state) = peer.new_state()? else { return Ok(()) };
                model.forward_prefill(&ids, &mut state, 64).map(drop)
            })?;
            Some((PREFILL, PREFILL as f64 / seconds))
        }
    };
    Ok(Figures {
        model: name,
        who: "candle-transformers f32".into(),
        decode: 1.0 / decode,
        decode_of_bandwidth: (4 * peer.elements) as f64 / decode / bandwidth,
        prefill,
        prefill_of_gemm: prefill
            .map_or(0.0, |(_, rate)| 2.0 * (peer.elements - peer.head) as f64 * rate / limits.gemm_rate),
    })
}
