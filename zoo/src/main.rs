//! The `semisep` command.
fn main() {}
