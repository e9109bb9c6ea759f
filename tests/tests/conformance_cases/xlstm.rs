//! The mLSTM with every option, its input gate nearly shut and wide open.

use semisep_xlstm::MlstmConfig;

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    let plain = MlstmConfig { num_heads: 2, ..Default::default() };
    let open = MlstmConfig { num_heads: 4, input_gate_bias_init: 2.0, ..Default::default() };
    let options = MlstmConfig {
        num_heads: 2,
        qk_dim_factor: 1.0,
        v_dim_factor: 1.5,
        gate_soft_cap: None,
        use_bias: true,
        input_gate_bias_init: 0.5,
        ..Default::default()
    };
    vec![
        ("mlstm", Box::new(plain)),
        ("mlstm open", Box::new(open)),
        ("mlstm wide, biases, uncapped", Box::new(options)),
    ]
}
