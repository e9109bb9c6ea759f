//! Golden checkpoints turned into what llama.cpp makes of them, by the steps of its `conversion/*.py`.

use std::collections::BTreeMap;

use crate::common::golden;
use crate::listing::Listing;
use crate::rwkv;
use crate::writer::{Gguf, Numbers, mapped, numbers};

type Tensors = BTreeMap<String, Numbers>;

const MAMBA: &[(&str, &str)] = &[
    ("backbone.embeddings", "token_embd"),
    ("backbone.norm_f", "output_norm"),
    ("backbone.layers", "blk"),
    ("mixer.", ""),
    ("dt_bias", "ssm_dt.bias"),
    ("dt_proj", "ssm_dt"),
];

const LLAMA: &[(&str, &str)] = &[
    ("model.embed_tokens", "token_embd"),
    ("model.embedding_norm", "token_embd_norm"),
    ("model.final_layernorm", "output_norm"),
    ("model.norm", "output_norm"),
    ("model.layers", "blk"),
    ("input_layernorm", "attn_norm"),
    ("operator_norm", "attn_norm"),
    ("pre_ff_layernorm", "ffn_norm"),
    ("self_attn.", ""),
    ("mamba.", ""),
    ("linear_attn.", ""),
    ("q_layernorm", "attn_q_norm"),
    ("k_layernorm", "attn_k_norm"),
    ("dt_layernorm", "ssm_dt_norm"),
    ("b_layernorm", "ssm_b_norm"),
    ("c_layernorm", "ssm_c_norm"),
    ("dt_bias", "ssm_dt.bias"),
    ("dt_proj", "ssm_dt"),
    ("feed_forward.router", "ffn_gate_inp"),
    ("feed_forward.expert_bias", "exp_probs_b.bias"),
    ("block_sparse_moe.router.layer", "ffn_gate_inp"),
    ("block_sparse_moe.output_linear", "ffn_down_exps"),
    ("shared_expert_gate", "ffn_gate_inp_shexp"),
    ("shared_expert.gate_proj", "ffn_gate_shexp"),
    ("shared_expert.up_proj", "ffn_up_shexp"),
    ("shared_expert.down_proj", "ffn_down_shexp"),
    ("mlp.gate.", "ffn_gate_inp."),
    ("feed_forward.gate.", "ffn_gate_inp."),
    (".mlp.", "."),
    ("feed_forward.", ""),
    ("w1.", "gate_proj."),
    ("w2.", "down_proj."),
    ("w3.", "up_proj."),
];

const NEOX: &[(&str, &str)] = &[
    ("gpt_neox.embed_in", "token_embd"),
    ("embed_out", "output"),
    ("gpt_neox.final_layer_norm", "output_norm"),
    ("gpt_neox.layers", "blk"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("attention.query_key_value", "attn_qkv"),
    ("attention.dense", "attn_output"),
    ("mlp.dense_h_to_4h", "ffn_up"),
    ("mlp.dense_4h_to_h", "ffn_down"),
];

const NEMOTRON: &[(&str, &str)] = &[
    ("mixer.gate.e_score_correction_bias", "exp_probs_b.bias"),
    ("mixer.gate.", "ffn_gate_inp."),
    ("shared_experts.up_proj", "ffn_up_shexp"),
    ("shared_experts.down_proj", "ffn_down_shexp"),
    ("mixer.norm", "ssm_norm"),
    (".norm.", ".attn_norm."),
];

/// After all others.
const LAST: &[(&str, &str)] = &[
    ("lm_head", "output"),
    ("in_proj_ba", "ssm_ba"),
    ("q_proj", "attn_q"),
    ("k_proj", "attn_k"),
    ("v_proj", "attn_v"),
    ("o_proj", "attn_output"),
    ("gate_proj", "ffn_gate"),
    ("up_proj", "ffn_up"),
    ("down_proj", "ffn_down"),
    ("conv1d", "ssm_conv1d"),
    ("A_log", "ssm_a"),
    (".D", ".ssm_d"),
    ("x_proj", "ssm_x"),
];

/// What the family is called here, for the steps that are its own.
fn family(name: &str) -> &str {
    name.split('-').next().unwrap_or(name)
}

fn renamed(name: &str, tensor: &str) -> String {
    let own: &[&[(&str, &str)]] = match family(name) {
        "mamba" | "falcon_mamba" => {
            &[MAMBA, &[(".norm.", ".attn_norm."), ("in_proj", "ssm_in"), ("out_proj", "ssm_out")]]
        }
        "mamba2" => &[
            // The norm of the mixer, then that before it.
            &[
                ("mixer.norm", "ssm_norm"),
                (".norm.", ".attn_norm."),
                ("in_proj", "ssm_in"),
                ("out_proj", "ssm_out"),
            ],
            MAMBA,
        ],
        "nemotron_h" => &[NEMOTRON, MAMBA, &[("in_proj", "ssm_in"), ("out_proj", "ssm_out")]],
        "gpt_neox" => &[NEOX],
        "lfm2" | "lfm2_moe" => &[
            &[
                ("self_attn.out_proj", "attn_output"),
                ("conv.in_proj", "shortconv.in_proj"),
                ("conv.out_proj", "shortconv.out_proj"),
                ("conv.conv.", "shortconv.conv."),
            ],
            LLAMA,
        ],
        "olmo2" => &[
            &[
                ("post_attention_layernorm", "post_attention_norm"),
                ("post_feedforward_layernorm", "post_ffw_norm"),
                ("q_norm", "attn_q_norm"),
                ("k_norm", "attn_k_norm"),
            ],
            LLAMA,
        ],
        "qwen3_next" => &[
            &[
                ("post_attention_layernorm", "post_attention_norm"),
                ("linear_attn.norm", "ssm_norm"),
                ("linear_attn.out_proj", "ssm_out"),
                ("q_norm", "attn_q_norm"),
                ("k_norm", "attn_k_norm"),
            ],
            LLAMA,
        ],
        _ => &[
            &[
                ("post_attention_layernorm", "ffn_norm"),
                ("mamba.norm", "ssm_norm"),
                ("mamba.in_proj", "ssm_in"),
                ("mamba.out_proj", "ssm_out"),
                ("self_attn.q_norm", "attn_q_norm"),
                ("self_attn.k_norm", "attn_k_norm"),
                ("shared_mlp.output_linear", "ffn_down_shexp"),
            ],
            LLAMA,
        ],
    };
    let tensor = own.iter().fold(tensor.to_string(), |tensor, parts| mapped(&tensor, parts));
    mapped(&tensor, LAST)
}

/// The steps of a tensor, under its new name.
fn changed(name: &str, config: &serde_json::Value, new: &str, tensor: Numbers) -> Vec<(String, Numbers)> {
    let size = |key: &str| config[key].as_u64().unwrap() as usize;
    let part = |from: &str, to: &str, tensor: Numbers| (new.replace(from, to), tensor);
    let permutes = matches!(family(name), "llama" | "mistral" | "granitemoehybrid" | "bamba" | "nemotron_h");
    let kind = new.split('.').nth(2).unwrap_or_default();
    match (family(name), kind) {
        (_, "ssm_a") => vec![(new.into(), tensor.map(|a| -a.exp()))],
        (_, "attn_q") if permutes => vec![(new.into(), tensor.paired(size("num_attention_heads")))],
        (_, "attn_k") if permutes => vec![(new.into(), tensor.paired(size("num_key_value_heads")))],
        ("gpt_neox", "attn_qkv") => {
            let heads = size("num_attention_heads");
            let features = tensor.shape[0] / (3 * heads);
            let rows = (0..3 * heads).flat_map(|i| {
                let (part, head) = (i / heads, i % heads);
                (0..features).map(move |f| (head * 3 + part) * features + f)
            });
            vec![(new.into(), tensor.rows(rows))]
        }
        ("granitemoehybrid", "shared_mlp") | ("granitemoehybrid", "block_sparse_moe") => {
            let (from, suffix) = match kind {
                "shared_mlp" => ("shared_mlp.input_linear", "shexp"),
                _ => ("block_sparse_moe.input_linear", "exps"),
            };
            let [gate, up] = tensor.halves();
            vec![part(from, &format!("ffn_gate_{suffix}"), gate), part(from, &format!("ffn_up_{suffix}"), up)]
        }
        ("qwen3_next", "in_proj_qkvz") => {
            let (heads, keys) = (size("linear_num_key_heads"), size("linear_key_head_dim"));
            let values = size("linear_num_value_heads") / heads * size("linear_value_head_dim");
            let each = 2 * (keys + values);
            let of = |start: usize, len: usize| {
                (0..heads).flat_map(move |h| (0..len).map(move |i| h * each + start + i)).collect::<Vec<_>>()
            };
            let qkv = [of(0, keys), of(keys, keys), of(2 * keys, values)].concat();
            vec![
                part("in_proj_qkvz", "attn_qkv", tensor.clone().rows(qkv)),
                part("in_proj_qkvz", "attn_gate", tensor.rows(of(2 * keys + values, values))),
            ]
        }
        ("qwen3_next", _) if new.ends_with("norm.weight") && kind != "ssm_norm" => {
            vec![(new.into(), tensor.map(|w| w + 1.0))]
        }
        ("falcon_h1", _) => vec![(new.replace("ffn_norm.weight", "ffn_norm"), scaled(config, new, tensor))],
        _ => vec![(new.into(), tensor)],
    }
}

/// Falcon-H1's factors, multiplied into the tensors.
fn scaled(config: &serde_json::Value, new: &str, tensor: Numbers) -> Numbers {
    let factor = |key: &str| config[key].as_f64().unwrap() as f32;
    let nth = |key: &str, i: usize| config[key][i].as_f64().unwrap() as f32;
    let size = |key: &str| config[key].as_u64().unwrap() as usize;
    match new
        .split('.')
        .find(|part| !matches!(*part, "blk" | "weight") && part.parse::<usize>().is_err())
        .unwrap()
    {
        "ffn_down" => tensor.map(|w| w * nth("mlp_multipliers", 1)),
        "ffn_gate" => tensor.map(|w| w * nth("mlp_multipliers", 0)),
        "attn_k" => tensor.map(|w| w * factor("key_multiplier") * factor("attention_in_multiplier")),
        "attn_q" | "attn_v" => tensor.map(|w| w * factor("attention_in_multiplier")),
        "attn_output" => tensor.map(|w| w * factor("attention_out_multiplier")),
        "ssm_out" => tensor.map(|w| w * factor("ssm_out_multiplier")),
        "output" => tensor.map(|w| w * factor("lm_head_multiplier")),
        "token_embd" => tensor.map(|w| w * factor("embedding_multiplier")),
        "ssm_in" => {
            let (inner, state) = (size("mamba_d_ssm"), size("mamba_n_groups") * size("mamba_d_state"));
            let columns = tensor.shape[1];
            let ends = [inner, 2 * inner, 2 * inner + state, 2 * inner + 2 * state, usize::MAX];
            let mut row = 0;
            tensor.map(|w| {
                let part = ends.iter().position(|end| row / columns < *end).unwrap();
                row += 1;
                w * factor("ssm_in_multiplier") * nth("ssm_multipliers", part)
            })
        }
        _ => tensor,
    }
}

/// The matrices of experts, stacked.
fn stacked(tensors: Tensors) -> Tensors {
    let (mut all, mut experts) = (Tensors::new(), BTreeMap::<String, BTreeMap<usize, Numbers>>::new());
    for (name, tensor) in tensors {
        let Some((layer, rest)) = name.split_once(".experts.") else {
            all.insert(name, tensor);
            continue;
        };
        let (expert, map) = rest.split_once('.').unwrap();
        let layer: Vec<&str> = layer.split('.').collect();
        let place = layer.iter().position(|part| *part == "layers").unwrap();
        let map = mapped(map, &[("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")]);
        let map = mapped(&map, &[("_proj.weight", "_exps.weight"), ("gate", "ffn_gate"), ("up_", "ffn_up_")]);
        let map = map.replace("down", "ffn_down");
        let stack = experts.entry(format!("blk.{}.{map}", layer[place + 1])).or_default();
        stack.insert(expert.parse().unwrap(), tensor);
    }
    all.extend(experts.into_iter().map(|(name, stack)| (name, Numbers::stack(stack.into_values()))));
    all
}

/// The file that llama.cpp makes of a golden checkpoint, in f32 or q8_0: its metadata, and tensors of its names and shapes.
pub fn gguf(name: &str, q8_0: bool) -> Gguf {
    let listing = Listing::of(name);
    let tensors = match family(name) {
        "rwkv6" => rwkv::rwkv6(0),
        "rwkv7" => rwkv::rwkv7(),
        _ => converted(name),
    };
    filled(&listing, tensors, q8_0)
}

fn converted(name: &str) -> Tensors {
    let text = std::fs::read_to_string(golden(name).join("config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&text.replace("Infinity", "1e300")).unwrap();
    let not_needed = ["attention.bias", "attention.masked_bias", "rotary_emb.inv_freq"];
    let tensors = stacked(numbers(&golden(name))).into_iter();
    let tensors = tensors.filter(|(name, _)| !not_needed.iter().any(|end| name.ends_with(end)));
    tensors.flat_map(|(tensor, numbers)| changed(name, &config, &renamed(name, &tensor), numbers)).collect()
}

/// The listing's metadata and these tensors, which must be all that it lists.
pub fn filled(listing: &Listing, tensors: Tensors, q8_0: bool) -> Gguf {
    let mut file = listing.file(q8_0);
    let names: Vec<&String> = tensors.keys().filter(|name| !listing.shapes.contains_key(*name)).collect();
    // A tied head is stored in none of these files.
    assert!(names.iter().all(|name| *name == "output.weight"), "not in the listing: {names:?}");
    for (name, shape) in &listing.shapes {
        let tensor = tensors.get(name).unwrap_or_else(|| panic!("{name} is in the listing alone"));
        file.tensor(name, &tensor.clone().reshaped(shape));
    }
    file
}
