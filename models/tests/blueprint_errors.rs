//! What is said of wrong blueprints: all of it at once, each where it is.

use proptest::prelude::*;
use semisep_models::blueprint::Diagnostics;
use semisep_models::{Blueprint, Registry, blueprints};

fn errors(source: &str) -> Diagnostics {
    match Blueprint::parse(source, "hybrid.toml", &Registry::builtin()) {
        Ok(_) => panic!("no error in\n{source}"),
        Err(errors) => errors,
    }
}

const GOOD: &str = r#"name = "hybrid"

[model]
d_model = 64
vocab_size = 256

[blocks.ssd]
mixer = "mamba2"
headdim = 16

[blocks.attn]
mixer = "attention"
n_heads = 4
rope = { dim = 8 }

[stack]
n_layer = 8
default = "ssd"
at = { attn = [2, 5] }
"#;

/// `GOOD` with replacements.
fn with(replacements: &[(&str, &str)]) -> String {
    replacements.iter().fold(GOOD.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replacen(from, to, 1)
    })
}

#[test]
fn unknown_names() {
    insta::assert_snapshot!(errors(&with(&[
        ("d_model = 64", "d_model = 64\nhidden_size = 64"),
        ("mixer = \"mamba2\"", "mixer = \"mamba3\""),
        ("n_heads = 4", "n_heads = 4\nhead_dmi = 16\nzebra = 1\nnrom = \"pre\""),
        ("dim = 8", "dim = 8, tetha = 1e4"),
        ("default = \"ssd\"", "default = \"sdd\""),
        ("attn = [2, 5]", "atn = [2, 5]"),
        ("[stack]", "[extra]\n[stack]"),
    ])));
}

#[test]
fn wrong_types_and_sizes() {
    insta::assert_snapshot!(errors(&with(&[
        ("d_model = 64", "d_model = -64\ntie_embeddings = \"yes\"\nnorm = { kind = \"rsm\", eps = true }"),
        ("vocab_size = 256", "vocab_size = 1e18"),
        ("headdim = 16", "headdim = \"16\"\nnorm = \"prenorm\"\noutput_multiplier = inf\nshare = 3"),
        ("n_heads = 4", "n_heads = 4.5\nqk_norm = 1e-6"),
        ("n_layer = 8", "n_layer = 99999999999999999999999999999999999999999999"),
        ("[2, 5]", "[2, \"5\", -1]"),
    ])));
}

#[test]
fn sizes_that_do_not_fit() {
    insta::assert_snapshot!(errors(&with(&[
        ("headdim = 16", "headdim = 48\ndt_min = 0.5"),
        ("n_heads = 4", "n_heads = 5"),
        ("n_layer = 8", "n_layer = 6"),
        ("[2, 5]", "[2, 6, 2, 40]"),
    ])));
}

#[test]
fn one_error_does_not_hide_another() {
    let found = errors(&with(&[
        ("vocab_size = 256\n", ""),
        ("n_heads = 4", "n_heads = 5\nzebra = 1"),
        ("\"ssd\"\nat", "\"sd\"\nat"),
    ]));
    let keys: Vec<&str> = found.diagnostics.iter().map(|d| d.key.as_str()).collect();
    assert_eq!(keys, ["model.vocab_size", "blocks.attn.n_heads", "blocks.attn.zebra", "stack.default"]);
}

#[test]
fn missing_keys() {
    insta::assert_snapshot!(
        "in_tables",
        errors("name = \"\"\n[model]\n[blocks.a]\n[blocks.b]\nmixer = \"attention\"\n[stack]\n")
    );
    insta::assert_snapshot!("tables", errors(""));
    insta::assert_snapshot!("layers", errors(&with(&[("default = \"ssd\"\n", "")])));
    insta::assert_snapshot!("n_layer", errors(&with(&[("n_layer = 8\n", "")])));
}

#[test]
fn layouts() {
    let stack = |stack: &str| {
        let (head, _) = GOOD.split_once("[stack]").unwrap();
        errors(&format!("{head}[stack]\n{stack}\n"))
    };
    insta::assert_snapshot!("two_forms", stack("n_layer = 8\npattern = [\"ssd\"]\nat = { attn = [1] }"));
    insta::assert_snapshot!(
        "every",
        stack(
            "n_layer = 8\ndefault = \"ssd\"\nevery = { attn = { period = 4, offset = 4 }, ssd = { period = 0 } }"
        )
    );
    insta::assert_snapshot!(
        "every_twice",
        stack("n_layer = 4\nevery = { attn = { period = 2 }, ssd = { period = 3 } }")
    );
    insta::assert_snapshot!("pattern", stack("default = \"ssd\"\npattern = [\"ssd*0\", \"attn\"]"));
    insta::assert_snapshot!("pattern_count", stack("pattern = [\"ssd*99999999999999999999\"]"));
    insta::assert_snapshot!("pattern_sum", stack("pattern = [\"ssd*4000\", \"attn*97\"]"));
    insta::assert_snapshot!("pattern_empty", stack("pattern = []"));
    insta::assert_snapshot!("layers_count", stack("n_layer = 4\nlayers = [\"ssd*2\", \"attn\"]"));
    insta::assert_snapshot!("n_layer_bound", stack("n_layer = 5000\npattern = [\"ssd\", \"attn\"]"));
    insta::assert_snapshot!("n_layer_zero", stack("n_layer = 0\npattern = [\"ssd\", \"attn\"]"));
}

#[test]
fn compositions() {
    let blocks = |blocks: &str| errors(&with(&[("[stack]", &format!("{blocks}\n[stack]"))]));
    insta::assert_snapshot!(
        "composed_names",
        blocks(
            "[blocks.x]\nparallel = [\"attn\", \"sdd\"]\nmerge = \"max\"\n[blocks.y]\nseries = []\nmerge = \"sum\""
        )
    );
    insta::assert_snapshot!(
        "cycle",
        blocks("[blocks.x]\nseries = [\"attn\", \"y\"]\n[blocks.y]\nseries = [\"x\"]")
    );
    insta::assert_snapshot!(
        "unfit",
        blocks(
            "[blocks.m]\nmixer = \"mlp\"\nmlp = {}\n[blocks.s]\nmixer = \"mlp\"\nshare = true\n[blocks.x]\nparallel = [\"m\", \"s\"]"
        )
    );
    insta::assert_snapshot!("same_path", blocks("[blocks.x]\nseries = [\"attn\", \"attn\"]"));
    insta::assert_snapshot!("two_forms_of_block", blocks("[blocks.x]\nseries = [\"attn\"]\nmixer = \"mlp\""));
    insta::assert_snapshot!(
        "share",
        blocks(
            "[blocks.x]\nmixer = \"mlp\"\nshare = \"s\"\n[blocks.y]\nmixer = \"mlp\"\nbias = true\nshare = \"s\""
        )
    );
    insta::assert_snapshot!(
        "paths",
        blocks(
            "[blocks.x]\nmixer = \"mlp\"\npath = \"a..b\"\npost_norm_path = \"c\"\nmlp = true\n[blocks.\"y.z\"]\nmixer = \"mlp\""
        )
    );
}

#[test]
fn syntax() {
    insta::assert_snapshot!(
        "syntax_lines",
        errors(&with(&[
            ("d_model = 64", "d_model 64"),
            ("headdim = 16", "headdim = 16\nheaddim = 32"),
            ("dim = 8", "dmi = 8"),
            ("\"ssd\"\nat", "\"ssd\nat"),
        ]))
    );
    insta::assert_snapshot!("syntax_unclosed", errors(&with(&[("64", "sixty"), ("dim = 8 }", "dim = 8")])));
    insta::assert_snapshot!("syntax_header", errors(&with(&[("[blocks.ssd]", "[blocks.ssd")])));
}

#[test]
fn too_large() {
    insta::assert_snapshot!("embedding", errors(&with(&[("256", "16777216"), ("64", "2097152")])));
    insta::assert_snapshot!(
        "parameters",
        errors(&with(&[("64", "1048576"), ("n_layer = 8", "n_layer = 4096")]))
    );
    insta::assert_snapshot!("width", errors(&with(&[("headdim = 16", "expand = 18446744073709551615")])));
    assert_eq!(errors(&" ".repeat(2 << 20)).diagnostics.len(), 1);
}

#[test]
fn the_drawing_survives_odd_text() {
    let odd = "# \u{1b}[31m\nname = 1\n".to_owned() + &"\t".repeat(3) + "größe = 1 # " + &"x".repeat(400);
    let drawn = errors(&odd).to_string();
    assert!(!drawn.contains('\u{1b}') && drawn.lines().all(|l| l.chars().count() < 140), "{drawn}");
    insta::assert_snapshot!(drawn);
}

#[test]
fn as_json() {
    let found = errors(&with(&[("n_heads = 4", "n_heads = 5"), ("default = \"ssd\"", "default = \"sdd\"")]));
    insta::assert_snapshot!(serde_json::to_string_pretty(&found).unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    /// Any damage to a blueprint gives a blueprint or diagnostics inside the file, never a panic.
    #[test]
    fn damaged_blueprints(
        name in 0..18usize,
        cuts in prop::collection::vec((any::<prop::sample::Index>(), 0..6usize, "[\\[\\]{}=\".,#0-9a-z\\-\n *é]{0,6}"), 1..6),
    ) {
        let mut text: Vec<char> = blueprints::names().nth(name).and_then(blueprints::source).unwrap().chars().collect();
        for (at, length, insert) in cuts {
            let at = at.index(text.len());
            let end = (at + length).min(text.len());
            text.splice(at..end, insert.chars());
        }
        let text: String = text.into_iter().collect();
        if let Err(found) = Blueprint::parse(&text, "x.toml", &Registry::builtin()) {
            prop_assert!(found.errors() > 0);
            prop_assert!(!found.to_string().is_empty());
            for d in &found.diagnostics {
                prop_assert!(d.line >= 1 && d.column >= 1 && d.span.start <= d.span.end && d.span.end <= text.len());
            }
        }
    }
}
