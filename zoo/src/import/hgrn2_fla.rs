//! flash-linear-attention's `HGRN2ForCausalLM`.

use std::sync::Arc;

use semisep_hgrn2::Hgrn2Config;

use super::{Folder, Import, Importer, fla, is_type};
use crate::Result;

/// `model_type` "hgrn2".
pub(super) const HGRN2: Importer =
    Importer { family: "hgrn2-fla", detects: |config| is_type(config, "hgrn2", "HGRN2ForCausalLM"), import };

fn import(folder: &Folder<'_>) -> Result<Import> {
    let (config, default) = (&folder.config, Hgrn2Config::default());
    let (width, heads) = (config.size("hidden_size"), config.size_from("num_heads", 1));
    // Either says the other; where both are there the reference goes by the expansion.
    let said = config.size_from("expand_ratio", 1);
    let expand_ratio = said.or(heads.map(|h| (width / h).max(1))).unwrap_or(default.expand_ratio);
    let mixer = Hgrn2Config {
        expand_ratio,
        use_lower_bound: config.flag_or("use_lower_bound", default.use_lower_bound),
        use_short_conv: config.flag_or("use_short_conv", false),
        conv_size: config.size_or("conv_size", default.conv_size),
        conv_bias: config.flag_or("conv_bias", false),
        elementwise_affine: config.flag_or("elementwise_affine", true),
        // The reference's fused norm and output map takes no eps from the configuration: this is its own.
        norm_eps: 1e-5,
    };
    let mut import = fla::import(folder, HGRN2.family, 4.0, Arc::new(mixer))?;
    import.names = import.names.rename("model.lower_bounds", "backbone.lower_bounds");
    if let Some(heads) = heads.filter(|heads| heads.saturating_mul(expand_ratio) != width) {
        import.notes.push(format!("num_heads = {heads} has no effect beside expand_ratio = {expand_ratio}"));
    }
    Ok(import)
}
