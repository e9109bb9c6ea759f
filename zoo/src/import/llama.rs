//! Llama and the decoders that are Llama with other options: Mistral, Qwen2, Qwen3.

use semisep_attention::{AttentionConfig, QkNorm};
use semisep_core::MlpConfig;

use super::decoder::{Decoder, Family, names};
use super::{Folder, Import, Importer, is_type, layer, layout, residual};
use crate::Result;

/// `model_type` "llama".
pub(super) const LLAMA: Importer = Importer {
    family: "llama",
    detects: |config| is_type(config, "llama", "LlamaForCausalLM"),
    import: |folder| {
        import(folder, LLAMA.family, |decoder, attention, mlp| {
            let bias = decoder.config().flag_or("attention_bias", false);
            (attention.qkv_bias, attention.out_bias) = (bias, bias);
            mlp.bias = decoder.config().flag_or("mlp_bias", false);
            None
        })
    },
};

/// `model_type` "mistral": all layers see `sliding_window` tokens, the query's own included.
pub(super) const MISTRAL: Importer = Importer {
    family: "mistral",
    detects: |config| is_type(config, "mistral", "MistralForCausalLM"),
    import: |folder| {
        import(folder, MISTRAL.family, |decoder, _, _| {
            let config = decoder.config();
            let default = (!config.is_null("sliding_window")).then_some(4096);
            Some((config.size_from("sliding_window", 1).or(default)?, 0))
        })
    },
};

/// `model_type` "qwen2": biases on queries, keys and values.
pub(super) const QWEN2: Importer = Importer {
    family: "qwen2",
    detects: |config| is_type(config, "qwen2", "Qwen2ForCausalLM"),
    import: |folder| {
        import(folder, QWEN2.family, |decoder, attention, _| {
            attention.qkv_bias = true;
            if decoder.config().flag_or("use_mrope", false) {
                decoder.config().problem("use_mrope", "expected false (not supported), found true");
            }
            qwen_window(decoder)
        })
    },
};

/// `model_type` "qwen3": queries and keys are normed.
pub(super) const QWEN3: Importer = Importer {
    family: "qwen3",
    detects: |config| is_type(config, "qwen3", "Qwen3ForCausalLM"),
    import: |folder| {
        import(folder, QWEN3.family, |decoder, attention, _| {
            let bias = decoder.config().flag_or("attention_bias", false);
            (attention.qkv_bias, attention.out_bias) = (bias, bias);
            attention.qk_norm = Some(QkNorm::new(decoder.config().number("rms_norm_eps").unwrap_or(1e-6)));
            qwen_window(decoder)
        })
    },
};

/// What a family adds to attention and MLP, and the window (tokens, first layer) if there is one.
type Options = fn(&Decoder<'_>, &mut AttentionConfig, &mut MlpConfig) -> Option<(usize, usize)>;

fn import(folder: &Folder<'_>, family: &'static str, options: Options) -> Result<Import> {
    let (config, decoder) = (&folder.config, Decoder::new(folder));
    let eps = config.number("rms_norm_eps").unwrap_or(1e-6);
    let (mut attention, mut mlp) =
        (decoder.attention(Some(decoder.rope())), decoder.mlp("intermediate_size"));
    let window = options(&decoder, &mut attention, &mut mlp);
    let mut notes = Vec::new();
    let windows = windows(&decoder, window, &mut notes);
    let mlp = decoder.checked(mlp);
    let [full, windowed] = [None, window.map(|(tokens, _)| tokens)]
        .map(|window| decoder.checked(AttentionConfig { window, ..attention.clone() }));
    let layers = windows.into_iter().map(|window| {
        let (block, mixer) = if window { ("window", &windowed) } else { ("attn", &full) };
        layer(block, vec![residual(mixer.clone(), "mixer", "norm"), residual(mlp.clone(), "mlp", "norm2")])
    });
    let layers = layers.collect();
    let names = decoder.attention_names(names(), "*", 1);
    decoder.import(Family::llama(config, family, eps), layers, names, notes)
}

/// The tokens that windowed layers see, and the first of them.
fn qwen_window(decoder: &Decoder<'_>) -> Option<(usize, usize)> {
    let config = decoder.config();
    let first = config.size_from("max_window_layers", 0).unwrap_or(28);
    let default = (!config.is_null("sliding_window")).then_some(4096);
    let window = config.size_from("sliding_window", 1).or(default);
    if !config.flag_or("use_sliding_window", false) {
        return None;
    }
    Some((window?, first))
}

/// Whether each layer is windowed: by `layer_types`, else from the first on.
fn windows(decoder: &Decoder<'_>, window: Option<(usize, usize)>, notes: &mut Vec<String>) -> Vec<bool> {
    let (config, kinds) = (decoder.config(), [("full_attention", false), ("sliding_attention", true)]);
    match layout::types(config, "layer_types", decoder.n_layer, &kinds, notes) {
        Some(types) => {
            if window.is_none() && types.contains(&true) {
                config.problem(
                    "layer_types",
                    "expected a sliding_window for \"sliding_attention\", found none",
                );
            }
            types
        }
        None => (0..decoder.n_layer).map(|i| window.is_some_and(|(_, first)| i >= first)).collect(),
    }
}
