//! Prints the JSON Schema of blueprints: `cargo run -p semisep-models --example schema > models/blueprint.schema.json`.

fn main() {
    println!("{:#}", semisep_models::blueprint::json_schema(&semisep_models::Registry::builtin()));
}
