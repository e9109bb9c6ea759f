//! The selective scan without gate, as a layer.
