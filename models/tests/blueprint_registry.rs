//! Mixers of other crates: registered with one line, then as good as the built-in ones.

use std::collections::BTreeSet;

use candle_core::Result;
use schemars::JsonSchema;
use semisep_core::{Issue, Mixer, MixerConfig, MlpConfig, Nested, VarBuilder, in_range};
use semisep_models::blueprint::json_schema;
use semisep_models::{Blueprint, Registry, RegistryError};
use serde::{Deserialize, Serialize};

/// An MLP by another name.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct LeakyConfig {
    /// Longest initial time constant, in tokens.
    tau_max: usize,
}

impl MixerConfig for LeakyConfig {
    fn kind(&self) -> &'static str {
        "leaky"
    }
    fn check(&self, _: usize) -> Vec<Issue> {
        in_range("tau_max", self.tau_max, 2).into_iter().collect()
    }
    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        MlpConfig { d_intermediate: Some(self.tau_max), ..MlpConfig::default() }.build(d_model, vb)
    }
    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}

/// Whatever mixer it is told to be.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AroundConfig {
    /// The mixer inside.
    inner: Nested,
}

impl MixerConfig for AroundConfig {
    fn kind(&self) -> &'static str {
        "around"
    }
    fn check(&self, d_model: usize) -> Vec<Issue> {
        self.inner.check("inner", d_model)
    }
    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        self.inner.get()?.build(d_model, vb.pp("inner"))
    }
    fn nested(&mut self) -> Vec<(&'static str, &mut Nested)> {
        vec![("inner", &mut self.inner)]
    }
    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}

/// Its field is a key of every block.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Greedy {
    norm: usize,
}

impl MixerConfig for Greedy {
    fn kind(&self) -> &'static str {
        "greedy"
    }
    fn check(&self, _: usize) -> Vec<Issue> {
        vec![]
    }
    fn build(&self, d_model: usize, vb: VarBuilder) -> Result<Box<dyn Mixer>> {
        MlpConfig::default().build(d_model, vb)
    }
    fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}

const TEXT: &str = "name = \"x\"\n[model]\nd_model = 8\nvocab_size = 8\n[blocks.l]\nmixer = \"leaky\"\ntau_max = 9\n\
                    norm = \"post\"\n[stack]\nn_layer = 2\npattern = [\"l\"]\n";

#[test]
fn a_mixer_of_another_crate_is_read_checked_and_written() {
    let mut registry = Registry::builtin();
    registry.register::<LeakyConfig>("leaky").unwrap();
    let mut names: Vec<_> = Registry::builtin().names().map(String::from).chain(["leaky".into()]).collect();
    names.sort();
    assert!(registry.names().eq(names));
    let architecture = Blueprint::parse(TEXT, "x.toml", &registry).unwrap().architecture();
    assert_eq!(architecture.layers[1].stages[0].branches[0].mixer.kind(), "leaky");
    let again = Blueprint::parse(&architecture.to_toml(), "y.toml", &registry).unwrap().architecture();
    assert_eq!(again.hash(), architecture.hash());
    let schema = json_schema(&registry);
    assert_eq!(schema["$defs"]["block.leaky"]["required"], serde_json::json!(["tau_max", "mixer"]));

    let errors = Blueprint::parse(&TEXT.replace("= 9", "= 1\ntau = 2"), "x.toml", &registry).unwrap_err();
    let found: Vec<_> = errors.diagnostics.iter().map(|d| (d.line, d.key.as_str())).collect();
    assert_eq!(found, [(7, "blocks.l.tau_max"), (8, "blocks.l.tau")]);
    let unknown = Blueprint::parse(&TEXT.replace("leaky", "leeky"), "x.toml", &registry).unwrap_err();
    assert_eq!(unknown.diagnostics[0].help.as_deref(), Some("did you mean `leaky`?"));
}

#[test]
fn a_mixer_inside_a_mixer_is_read_checked_and_written() {
    let mut registry = Registry::builtin();
    registry.register::<AroundConfig>("around").unwrap();
    let nested =
        |inner: &str| TEXT.replace("\"leaky\"\ntau_max = 9", &format!("\"around\"\ninner = {inner}"));
    let text = nested("{ mixer = \"around\", inner = { mixer = \"mlp\", d_intermediate = 24 } }");
    let architecture = Blueprint::parse(&text, "x.toml", &registry).unwrap().architecture();
    let again = Blueprint::parse(&architecture.to_toml(), "y.toml", &registry).unwrap().architecture();
    assert_eq!(again.hash(), architecture.hash());
    let other = Blueprint::parse(&text.replace("24", "32"), "x.toml", &registry).unwrap().architecture();
    assert_ne!(other.hash(), architecture.hash());
    let mixer = &architecture.layers[0].stages[0].branches[0].mixer;
    let vb = VarBuilder::shapes(candle_core::DType::F32);
    mixer.build(8, vb.clone()).unwrap();
    assert!(vb.groups().iter().any(|g| g.name == "inner.inner.fc1.weight"), "{:?}", vb.groups());

    let complaint = |inner: &str| {
        let errors = Blueprint::parse(&nested(inner), "x.toml", &registry).unwrap_err().diagnostics;
        let all = errors.iter().map(|d| format!("{}:{} {} {:?}", d.line, d.key, d.message, d.help));
        all.collect::<Vec<_>>().join("\n")
    };
    let expect = |inner: &str, parts: &[&str]| {
        let found = complaint(inner);
        assert!(parts.iter().all(|p| found.contains(p)), "{inner}: {found}");
    };
    expect("3", &["7:blocks.l.inner expected a table, found 3"]);
    expect("{}", &["7:blocks.l.inner a nested mixer needs `mixer`"]);
    expect(
        "{ mixer = \"mpl\" }",
        &["7:blocks.l.inner.mixer no mixer is called \"mpl\"", "did you mean `mlp`?"],
    );
    let unknown = "{ mixer = \"mlp\", d_intermediat = 4 }";
    expect(unknown, &["7:blocks.l.inner.d_intermediat unknown key", "did you mean `d_intermediate`?"]);
    expect(
        "{ mixer = \"mlp\", d_intermediate = 0 }",
        &["7:blocks.l.inner.d_intermediate `inner.d_intermediate`"],
    );
    expect(
        "{ mixer = \"attention\" }",
        &["7:blocks.l.inner.n_heads mixer \"attention\" needs the key `n_heads`"],
    );
    let schema = json_schema(&registry);
    assert_eq!(schema["$defs"]["block.around"]["properties"]["inner"]["$ref"], "#/$defs/mixer");
    assert_eq!(schema["$defs"]["mixer.mlp"]["required"], serde_json::json!(["mixer"]));
}

#[test]
fn names_and_fields_that_clash_are_refused() {
    let mut registry = Registry::builtin();
    assert_eq!(registry.register::<LeakyConfig>("mlp"), Err(RegistryError::Taken("mlp".into())));
    assert_eq!(registry.register::<LeakyConfig>("my mixer"), Err(RegistryError::Name("my mixer".into())));
    let clash = registry.register::<Greedy>("greedy").unwrap_err();
    assert_eq!(clash, RegistryError::Field { kind: "greedy".into(), field: "norm".into() });
}

#[test]
fn no_built_in_mixer_clashes_with_the_keys_of_blocks() {
    let registry = Registry::builtin();
    let schema = json_schema(&registry);
    let keys = |definition: String| -> BTreeSet<String> {
        schema["$defs"][definition]["properties"].as_object().unwrap().keys().cloned().collect()
    };
    let around: BTreeSet<String> = &keys("block.mlp".into()) - &keys("mixer.mlp".into());
    assert!(around.contains("norm") && around.contains("share") && !around.contains("mixer"), "{around:?}");
    for kind in registry.names() {
        let clash: Vec<String> = around.intersection(&keys(format!("mixer.{kind}"))).cloned().collect();
        assert!(clash.is_empty(), "{kind}: {clash:?}");
    }
}
