//! Windows of attention.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which tokens a window holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WindowMode {
    /// The last ones before each query.
    #[default]
    Sliding,
    /// Those of the query's block.
    Block,
}

impl WindowMode {
    /// Whether it is the default.
    pub fn is_sliding(&self) -> bool {
        *self == Self::Sliding
    }
}

impl From<WindowMode> for semisep_kernels::WindowMode {
    fn from(mode: WindowMode) -> Self {
        match mode {
            WindowMode::Sliding => Self::Sliding,
            WindowMode::Block => Self::Block,
        }
    }
}
