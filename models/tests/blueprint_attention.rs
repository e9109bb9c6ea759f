//! Options of attention, block-state and gated attention layers in a blueprint: what goes together, and where what does
//! not is pointed at.
#![allow(clippy::unwrap_used, reason = "tests")]

use semisep_models::{Blueprint, Registry, blueprints};

fn text(block: &str) -> String {
    format!(
        "name = \"x\"\n[model]\nd_model = 32\nvocab_size = 8\n[blocks.a]\n{block}\n[stack]\nn_layer = 1\npattern = [\"a\"]\n"
    )
}

/// The keys at fault, below `blocks.a`, with their messages.
fn faults(block: &str) -> Vec<(String, String)> {
    match Blueprint::parse(&text(block), "x.toml", &Registry::builtin()) {
        Ok(_) => vec![],
        Err(errors) => {
            let all = errors.diagnostics.into_iter();
            all.map(|d| (d.key.trim_start_matches("blocks.a.").to_owned(), d.message)).collect()
        }
    }
}

#[track_caller]
fn refused(block: &str, key: &str, part: &str) {
    let found = faults(block);
    assert!(found.iter().any(|(k, message)| k == key && message.contains(part)), "{block}: {found:?}");
}

#[track_caller]
fn accepted(block: &str) {
    let architecture = match Blueprint::parse(&text(block), "x.toml", &Registry::builtin()) {
        Ok(blueprint) => blueprint.architecture(),
        Err(errors) => panic!("{block}: {:?}", errors.diagnostics),
    };
    let again = Blueprint::parse(&architecture.to_toml(), "y.toml", &Registry::builtin()).unwrap();
    assert_eq!(again.architecture().hash(), architecture.hash(), "{block}");
}

#[test]
fn one_mistake_hides_no_other() {
    let block = "mixer = \"attention\"\nn_heads = 4\nwindow = 0\nrope = { dim = 7 }";
    refused(block, "window", "found 0");
    refused(block, "rope", "even");
}

#[test]
fn attention_has_one_kind_of_positions() {
    let attention = |options: &str| format!("mixer = \"attention\"\nn_heads = 4\n{options}");
    for options in [
        "nope = true",
        "alibi = true\nwindow = 4\nwindow_mode = \"block\"",
        "rel_bias = {}",
        "cope = { npos_max = 9, per_head = true }",
        "output_gate = true\nqk_norm = { unit_offset = true }\nrope = { dim = 2 }",
    ] {
        accepted(&attention(options));
    }
    let no = |options: &str, key: &str, part: &str| refused(&attention(options), key, part);
    no("window = 0", "window", "expected 1 to");
    no("rope = { dim = 3 }", "rope", "expected an even dim up to head_dim = 8, found 3");
    no("rope = { dim = 10 }", "rope", "found 10");
    no("rope = {}\nalibi = true", "alibi", "`alibi` beside `rope`");
    no("nope = true\ncope = {}", "nope", "`nope` beside `cope`");
    no("alibi = true\ncausal = false", "alibi", "without `causal`");
    no("rel_bias = {}\nsoftcap = 2.0", "softcap", "beside `rel_bias`");
    no("window_mode = \"block\"", "window_mode", "needs a `window`");
    no("output_gate = true\nd_conv = 4", "d_conv", "beside `output_gate`");
    no("rel_bias = { buckets = 7 }", "rel_bias.buckets", "an even number");
    no("rel_bias = { max_distance = 4 }", "rel_bias.max_distance", "from 17");
    no("cope = { npos_max = 0 }", "cope.npos_max", "expected 1 to");
    no("window_mode = \"blocks\"\nwindow = 4", "window_mode", "found \"blocks\"");
}

#[test]
fn a_block_state_layer_takes_any_mixer() {
    let layer = |options: &str| format!("mixer = \"block_state\"\nnorm = \"none\"\nn_heads = 4\n{options}");
    for ssm in [
        "mixer = \"s5\"",
        "mixer = \"s4d\", d_state = 8",
        "mixer = \"mamba1\"",
        "mixer = \"unstructured\", l_max = 9",
    ] {
        for variant in ["sh", "mh", "mf"] {
            accepted(&layer(&format!("variant = \"{variant}\"\nwindow = 8\nssm = {{ {ssm} }}")));
        }
    }
    let no = |options: &str, key: &str, part: &str| refused(&layer(options), key, part);
    let good = "variant = \"mf\"\nwindow = 8\nssm = { mixer = \"s5\" }\n";
    no("variant = \"mf\"\nwindow = 8", "ssm", "needs the key `ssm`");
    no("variant = \"fm\"\nwindow = 8\nssm = { mixer = \"s5\" }", "variant", "found \"fm\"");
    no("variant = \"mf\"\nwindow = 0\nssm = { mixer = \"s5\" }", "window", "expected 1 to");
    no("variant = \"sh\"\nwindow = 8\nssm = { mixer = \"s55\" }", "ssm.mixer", "no mixer is called \"s55\"");
    no("variant = \"sh\"\nwindow = 8\nssm = { mixer = \"s5\", d_state = 0 }", "ssm.d_state", "`ssm.d_state`");
    no(&format!("{good}contexts = 0"), "contexts", "expected 1 to");
    no(&format!("{good}qk_eps = 0.0"), "qk_eps", "above 0");
    no(&format!("{good}rel_bias = {{ buckets = 3 }}"), "rel_bias.buckets", "an even number");
}

#[test]
fn gated_attention_units_say_how_they_scale() {
    let gau = |options: &str| format!("mixer = \"gau\"\n{options}");
    accepted(&gau("d_qk = 8"));
    accepted(&gau("scale = \"constant\"\nscale_value = 0.1\nrope = {}"));
    accepted(&gau("attention = \"softmax\"\ncausal = false"));
    let no = |options: &str, key: &str, part: &str| refused(&gau(options), key, part);
    no("scale = \"constant\"", "scale_value", "needs a `scale_value`");
    no("scale_value = 0.5", "scale_value", "without");
    no("scale = \"constant\"\nscale_value = -1.0", "scale_value", "above 0");
    no("d_qk = 0", "d_qk", "expected 1 to");
    no("rope = { dim = 5 }", "rope", "even dim");
}

/// The layouts of the paper: one block-state layer of twelve, or three.
#[test]
fn block_state_layouts_are_the_papers() {
    for variant in ["sh", "mh", "mf"] {
        for kind in ["s4", "unstructured"] {
            for (size, at) in [("small", &[9][..]), ("large", &[1, 7, 9])] {
                let source = blueprints::source(&format!("bst-{variant}-{kind}-{size}")).unwrap();
                let architecture =
                    Blueprint::parse(source, "x.toml", &Registry::builtin()).unwrap().architecture();
                let mixer = |i: usize| architecture.layers[i].stages[0].branches[0].mixer.kind();
                let found: Vec<usize> = (0..12).filter(|&i| mixer(i) == "block_state").collect();
                assert_eq!(
                    (architecture.layers.len(), found.as_slice()),
                    (12, at),
                    "{variant} {kind} {size}"
                );
            }
        }
    }
}
