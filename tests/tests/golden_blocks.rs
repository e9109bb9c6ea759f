//! Delta-rule and mixture-of-experts layers inside recorded models: each block's layers, built from the checkpoint's own
//! tensors, take the recorded residual stream before the block to the one after it.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};
use semisep_core::{
    Activation, Context, Mixer, MixerConfig, MlpConfig, Norm, NormConfig, NormKind, ParameterGroup, Source,
    VarBuilder,
};
use semisep_deltanet::{DeltaNetConfig, GatedDeltaNetConfig};
use semisep_moe::{MoeConfig, Scoring};
use semisep_tests::{assert_close, golden};
use serde_json::Value;

/// A recorded model.
struct Model {
    config: Value,
    weights: Arc<HashMap<String, Tensor>>,
    expected: HashMap<String, Tensor>,
}

impl Model {
    fn open(name: &str) -> Result<Self> {
        let folder = golden(name);
        let load = |file: &str| candle_core::safetensors::load(folder.join(file), &Device::Cpu);
        // Some hold this literal, which is no JSON, where a limit has no bound.
        let text = std::fs::read_to_string(folder.join("config.json"))?.replace("Infinity", "null");
        Ok(Self {
            config: serde_json::from_str(&text).map_err(candle_core::Error::wrap)?,
            weights: Arc::new(load("model.safetensors")?),
            expected: load("expected.safetensors")?,
        })
    }

    fn size(&self, key: &str) -> usize {
        self.config[key].as_u64().unwrap_or_else(|| panic!("config.json has no {key}")) as usize
    }

    fn number(&self, key: &str) -> f64 {
        self.config[key].as_f64().unwrap_or_else(|| panic!("config.json has no {key}"))
    }

    /// The residual stream before block `i`, and after it.
    fn around(&self, i: usize, dtype: DType) -> Result<(Tensor, Tensor)> {
        let before = if i == 0 { "hidden.embed".into() } else { format!("hidden.{}", i - 1) };
        Ok((self.expected[&before].to_dtype(dtype)?, self.expected[&format!("hidden.{i}")].clone()))
    }

    fn vb(&self, prefix: &str, dtype: DType) -> VarBuilder {
        let source = Renamed { weights: self.weights.clone(), prefix: prefix.to_owned() };
        VarBuilder::new(Arc::new(source), dtype, Device::Cpu)
    }

    /// An RMS norm; `added` is one where the checkpoint stores what is added to one.
    fn norm(&self, name: &str, eps: f64, added: f64, x: &Tensor) -> Result<Tensor> {
        let weight = (&self.weights[&format!("{name}.weight")] + added)?;
        let vb = VarBuilder::new(Arc::new(One(weight)), x.dtype(), Device::Cpu);
        Norm::new(x.dim(2)?, NormConfig { kind: NormKind::Rms, eps }, &vb)?.forward(x)
    }

    /// `x + mixer(x')`, the mixer's tensors lying under `prefix`.
    fn add(&self, config: &dyn MixerConfig, prefix: &str, x: &Tensor, normed: &Tensor) -> Result<Tensor> {
        let d = x.dim(2)?;
        assert!(config.check(d).is_empty(), "{:?}", config.check(d));
        x + run(&*config.build(d, self.vb(prefix, x.dtype()))?, normed)?
    }
}

/// The layer in one piece; and the same by steps after a part.
fn run(mixer: &dyn Mixer, x: &Tensor) -> Result<Tensor> {
    let whole = mixer.forward(x, &mut Context::default())?;
    let (b, l, _) = x.dims3()?;
    let mut state = mixer.new_state(b)?;
    let mut parts = vec![mixer.forward(&x.narrow(1, 0, 20)?, &mut Context::with_state(&mut state))?];
    for t in 20..l {
        let token = x.narrow(1, t, 1)?.squeeze(1)?.contiguous()?;
        parts.push(mixer.step(&token, &mut Context::with_state(&mut state))?.unsqueeze(1)?);
    }
    let tolerance = if x.dtype() == DType::F64 { 1e-12 } else { 1e-5 };
    assert_close("by steps", &Tensor::cat(&parts, 1)?, &whole, tolerance);
    Ok(whole)
}

/// The checkpoint's tensors under our names.
struct Renamed {
    weights: Arc<HashMap<String, Tensor>>,
    prefix: String,
}

impl Source for Renamed {
    fn get(&self, p: &ParameterGroup, dtype: DType, device: &Device) -> Result<Tensor> {
        let at = |name: &str| self.weights.get(&format!("{}.{name}", self.prefix));
        let found = at(&p.name).or_else(|| at(&p.name.replace("shared_expert.", "shared_experts.")));
        match found {
            Some(tensor) => tensor.to_dtype(dtype)?.to_device(device),
            None => bail!("{}: no tensor {}", self.prefix, p.name),
        }
    }

    fn contains(&self, _: &str) -> bool {
        true
    }
}

struct One(Tensor);

impl Source for One {
    fn get(&self, _: &ParameterGroup, dtype: DType, device: &Device) -> Result<Tensor> {
        self.0.to_dtype(dtype)?.to_device(device)
    }

    fn contains(&self, _: &str) -> bool {
        true
    }
}

/// f64 against values that a reference computed in f64 and stored in f32 (or computed in f32: `f32_reference`); f32.
fn ladder(f32_reference: bool) -> [(DType, f64); 2] {
    [(DType::F64, if f32_reference { 1e-5 } else { 5e-7 }), (DType::F32, 1e-5)]
}

/// flash-linear-attention's blocks: the mixer, then a gated MLP, each behind a norm.
fn fla(name: &str, mixer: impl Fn(&Model) -> Box<dyn MixerConfig>) -> Result<()> {
    let model = Model::open(name)?;
    let (mixer, eps) = (mixer(&model), model.number("norm_eps"));
    let mlp = MlpConfig {
        d_intermediate: Some(model.size("intermediate_size")),
        fused: false,
        ..MlpConfig::default()
    };
    for (dtype, tolerance) in ladder(true) {
        for i in 0..model.size("num_hidden_layers") {
            let (x, want) = model.around(i, dtype)?;
            let at = |name: &str| format!("model.layers.{i}.{name}");
            let normed = model.norm(&at("attn_norm"), eps, 0.0, &x)?;
            let x = model.add(&*mixer, &at("attn"), &x, &normed)?;
            let normed = model.norm(&at("mlp_norm"), eps, 0.0, &x)?;
            let x = model.add(&mlp, &at("mlp"), &x, &normed)?;
            assert_close(&format!("{name}: block {i}, {dtype:?}"), &x, &want, tolerance);
        }
    }
    Ok(())
}

#[test]
fn delta_net_of_fla() -> Result<()> {
    fla("delta_net-fla", |model| {
        let keys = [
            "num_heads",
            "expand_k",
            "expand_v",
            "use_beta",
            "use_gate",
            "use_short_conv",
            "conv_size",
            "qk_activation",
            "qk_norm",
            "norm_eps",
        ];
        let fields: serde_json::Map<String, Value> =
            keys.iter().map(|key| ((*key).to_owned(), model.config[key].clone())).collect();
        let config: DeltaNetConfig = serde_json::from_value(fields.into()).unwrap_or_else(|e| panic!("{e}"));
        Box::new(config)
    })
}

#[test]
fn gated_deltanet_of_fla() -> Result<()> {
    fla("gated_deltanet-fla", |model| {
        Box::new(GatedDeltaNetConfig {
            num_heads: model.size("num_heads"),
            head_dim: model.size("head_dim"),
            expand_v: model.number("expand_v"),
            conv_size: model.size("conv_size"),
            norm_eps: model.number("norm_eps"),
            ..Default::default()
        })
    })
}

/// The sizes of a gated DeltaNet in transformers' configurations.
fn linear_attention(model: &Model) -> GatedDeltaNetConfig {
    GatedDeltaNetConfig {
        num_heads: model.size("linear_num_key_heads"),
        num_v_heads: Some(model.size("linear_num_value_heads")),
        head_dim: model.size("linear_key_head_dim"),
        head_v_dim: Some(model.size("linear_value_head_dim")),
        conv_size: model.size("linear_conv_kernel_dim"),
        ..Default::default()
    }
}

/// Its output norm adds 1e-5 whatever the configuration says.
#[test]
fn gated_deltanet_of_olmo_hybrid() -> Result<()> {
    let model = Model::open("olmo_hybrid")?;
    let eps = model.number("rms_norm_eps");
    let allow_neg_eigval = model.config["linear_allow_neg_eigval"] == true;
    let mixer = GatedDeltaNetConfig { allow_neg_eigval, norm_eps: 1e-5, ..linear_attention(&model) };
    let mlp = MlpConfig {
        d_intermediate: Some(model.size("intermediate_size")),
        fused: false,
        ..MlpConfig::default()
    };
    for (dtype, tolerance) in ladder(false) {
        for i in (0..model.size("num_hidden_layers"))
            .filter(|&i| model.config["layer_types"][i] == "linear_attention")
        {
            let (x, want) = model.around(i, dtype)?;
            let at = |name: &str| format!("model.layers.{i}.{name}");
            let normed = model.norm(&at("attention_layer_norm"), eps, 0.0, &x)?;
            let x = model.add(&mixer, &at("linear_attn"), &x, &normed)?;
            let normed = model.norm(&at("feedforward_layer_norm"), eps, 0.0, &x)?;
            let x = model.add(&mlp, &at("mlp"), &x, &normed)?;
            assert_close(&format!("olmo_hybrid: block {i}, {dtype:?}"), &x, &want, tolerance);
        }
    }
    Ok(())
}

/// Grouped heads, interleaved maps, a joint convolution; then experts with a gated shared one.
#[test]
fn gated_deltanet_and_experts_of_qwen3_next() -> Result<()> {
    let model = Model::open("qwen3_next")?;
    let eps = model.number("rms_norm_eps");
    let mixer = GatedDeltaNetConfig { fused_proj: true, norm_eps: eps, ..linear_attention(&model) };
    let moe = MoeConfig {
        num_experts: model.size("num_experts"),
        num_experts_per_tok: model.size("num_experts_per_tok"),
        d_intermediate: model.size("moe_intermediate_size"),
        norm_topk_prob: model.config["norm_topk_prob"] == true,
        shared_d_intermediate: Some(model.size("shared_expert_intermediate_size")),
        shared_gate: true,
        fused: false,
        ..Default::default()
    };
    for (dtype, tolerance) in ladder(false) {
        for i in (0..model.size("num_hidden_layers"))
            .filter(|i| (i + 1) % model.size("full_attention_interval") != 0)
        {
            let (x, want) = model.around(i, dtype)?;
            let at = |name: &str| format!("model.layers.{i}.{name}");
            let normed = model.norm(&at("input_layernorm"), eps, 1.0, &x)?;
            let x = model.add(&mixer, &at("linear_attn"), &x, &normed)?;
            let normed = model.norm(&at("post_attention_layernorm"), eps, 1.0, &x)?;
            let x = model.add(&moe, &at("mlp"), &x, &normed)?;
            assert_close(&format!("qwen3_next: block {i}, {dtype:?}"), &x, &want, tolerance);
        }
    }
    Ok(())
}

/// Ungated squared-ReLU experts, sigmoid scores with a bias that only chooses, a scaling factor, a shared expert.
#[test]
fn experts_of_nemotron_h() -> Result<()> {
    let model = Model::open("nemotron_h-moe")?;
    let eps = model.number("layer_norm_epsilon");
    let moe = MoeConfig {
        num_experts: model.size("n_routed_experts"),
        num_experts_per_tok: model.size("num_experts_per_tok"),
        d_intermediate: model.size("moe_intermediate_size"),
        gated: false,
        fused: false,
        activation: Activation::Relu2,
        scoring: Scoring::Sigmoid,
        norm_topk_prob: model.config["norm_topk_prob"] == true,
        expert_bias: true,
        n_group: model.size("n_group"),
        topk_group: model.size("topk_group"),
        routed_scaling_factor: model.number("routed_scaling_factor"),
        shared_d_intermediate: Some(model.size("moe_shared_expert_intermediate_size")),
        ..Default::default()
    };
    let pattern = model.config["hybrid_override_pattern"].as_str().unwrap_or_default();
    for (dtype, tolerance) in ladder(false) {
        for (i, _) in pattern.chars().enumerate().filter(|(_, kind)| *kind == 'E') {
            let (x, want) = model.around(i, dtype)?;
            let normed = model.norm(&format!("backbone.layers.{i}.norm"), eps, 0.0, &x)?;
            let x = model.add(&moe, &format!("backbone.layers.{i}.mixer"), &x, &normed)?;
            assert_close(&format!("nemotron_h-moe: block {i}, {dtype:?}"), &x, &want, tolerance);
        }
    }
    Ok(())
}
