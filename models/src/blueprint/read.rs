//! Typed reading of a table that finds all errors, not the first: what is wrong is reported, taken out, and the rest is
//! read again.

use std::collections::BTreeSet;

use serde_json::Value;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue, ValueDeserializer};

use super::document::{Document, Step, Table, innermost, join};
use super::suggest::{advice, nearest};

/// What is known of a table beside its type.
pub(super) struct Expected<'a> {
    /// Its place: `blocks.ssd`.
    pub(super) key: &'a str,
    /// What it is, in messages: `mixer "mamba2"`.
    pub(super) what: &'a str,
    /// The JSON schema of the type, for its keys.
    pub(super) schema: &'a Value,
    /// Valid keys that are not of the type.
    pub(super) others: &'a [String],
}

/// What was read, and the keys in doubt.
pub(super) struct Section<T> {
    /// `None` if a required key is missing or nothing could be read.
    pub(super) value: Option<T>,
    /// Keys that were taken out, and those that were probably meant by unknown ones.
    pub(super) doubtful: BTreeSet<String>,
}

/// Reads a table, reports all that is wrong, and gives what is left.
pub(super) fn read<'d, T>(
    document: &mut Document<'d>,
    expected: &Expected<'_>,
    mut table: Table<'d>,
    parse: impl Fn(ValueDeserializer<'d>) -> Result<T, toml::de::Error>,
) -> Section<T> {
    let mut doubtful = BTreeSet::new();
    loop {
        let whole = Spanned::new(table.span(), DeValue::Table(table.get_ref().clone()));
        let error = match parse(ValueDeserializer::from(whole)) {
            Ok(value) => return Section { value: Some(value), doubtful },
            Err(error) => error,
        };
        let span = error.span().unwrap_or_else(|| table.span());
        let path = if span == table.span() { None } else { innermost(table.get_ref(), &span) };
        let Some(path) = path else {
            whole_table(document, expected, &table, &doubtful, error.message());
            return Section { value: None, doubtful };
        };
        let problem = Problem::of(error.message(), document.text(&span), expected, &path);
        let key = document.key_at(&span);
        document.span(span, &key, problem.message, problem.help);
        doubtful.extend(path.first().map(Step::name));
        doubtful.extend(problem.meant);
        remove(table.get_mut(), &path);
    }
}

/// An error of the table as a whole: required keys are missing, unless they were there and wrong.
fn whole_table(
    document: &mut Document<'_>,
    expected: &Expected<'_>,
    table: &Table<'_>,
    doubtful: &BTreeSet<String>,
    message: &str,
) {
    if !message.starts_with("missing field") {
        document.span(table.span(), expected.key, plain(message, None), None);
        return;
    }
    let required = expected.schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    for name in required.filter(|name| !table.get_ref().contains_key(*name) && !doubtful.contains(*name)) {
        let about = expected.schema["properties"][name]["description"].as_str();
        let key = format!("{}.{name}", expected.key);
        let help = about.map(|about| format!("`{name}`: {}", about.lines().next().unwrap_or(about)));
        document.absent(&key, format!("{} needs the key `{name}`", expected.what), help);
    }
}

struct Problem {
    message: String,
    help: Option<String>,
    /// The key that an unknown one was probably meant to be.
    meant: Option<String>,
}

impl Problem {
    fn of(message: &str, text: Option<&str>, expected: &Expected<'_>, path: &[Step]) -> Self {
        let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
        let (name, valid) = match quoted.split_first() {
            Some((name, valid)) => (*name, valid),
            None => ("", &[][..]),
        };
        if message.starts_with("unknown field") {
            let at_root = path.len() == 1;
            let others = expected.others.iter().filter(|_| at_root).map(String::as_str);
            let valid: Vec<&str> = valid.iter().copied().chain(others).collect();
            let owner = match path.split_last() {
                Some((_, above)) if !at_root => format!("`{}`", join(expected.key, above)),
                _ => expected.what.to_owned(),
            };
            return Self {
                message: format!("unknown key `{name}` in {owner}"),
                meant: nearest(name, valid.iter().copied()).filter(|_| at_root).map(String::from),
                help: advice(name, valid),
            };
        }
        if message.starts_with("unknown variant") {
            let all: Vec<String> = valid.iter().map(|v| format!("\"{v}\"")).collect();
            let help = nearest(name, valid.iter().copied()).map(|n| format!("did you mean \"{n}\"?"));
            return Self { message: format!("expected {}, found \"{name}\"", list(&all)), help, meant: None };
        }
        Self { message: plain(message, text), help: None, meant: None }
    }
}

fn list(all: &[String]) -> String {
    match all {
        [one] => one.clone(),
        [rest @ .., last] => format!("{} or {last}", rest.join(", ")),
        [] => "nothing".into(),
    }
}

/// serde's words in ours: `invalid type: string "64", expected usize`. `text` is what stands in the file.
fn plain(message: &str, text: Option<&str>) -> String {
    let parts = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "));
    let Some((found, wanted)) = parts.and_then(|p| p.rsplit_once(", expected ")) else {
        return match message {
            "wanted string or table" => "expected a string or a table".into(),
            "integer number overflowed" => "expected a smaller number".into(),
            other => other.into(),
        };
    };
    let wanted = match wanted {
        "usize" | "u64" | "u32" | "u16" | "u8" => "a whole number from 0".into(),
        "isize" | "i64" | "i32" | "i16" | "i8" => "a whole number".into(),
        "f64" | "f32" => "a number".into(),
        "a boolean" => "true or false".into(),
        "a map" => "a table".into(),
        "a sequence" => "an array".into(),
        w if w.starts_with("struct ") => "a table".into(),
        w if w.starts_with("enum ") || w.starts_with("string") => "a string".into(),
        w => w.to_owned(),
    };
    let found = match (found.split(' ').next().unwrap_or_default(), text) {
        ("map", _) => "a table".into(),
        ("sequence", _) => "an array".into(),
        ("string", _) => found.to_owned(),
        (_, Some(text)) => text.to_owned(),
        _ => found.replace('`', ""),
    };
    format!("expected {wanted}, found {found}")
}

/// Takes an entry out. Later elements of an array move up.
fn remove(table: &mut DeTable<'_>, path: &[Step]) {
    let [Step::Key(name), rest @ ..] = path else { return };
    match table.get_mut(name.as_str()).map(Spanned::get_mut) {
        Some(value) if !rest.is_empty() => remove_within(value, rest),
        _ => drop(table.remove(name.as_str())),
    }
}

fn remove_within(value: &mut DeValue<'_>, path: &[Step]) {
    match (value, path) {
        (DeValue::Table(table), _) => remove(table, path),
        (DeValue::Array(array), [Step::Index(index)]) => {
            let kept = array.iter().enumerate().filter(|(i, _)| i != index).map(|(_, v)| v.clone());
            let mut rest = DeArray::new();
            kept.for_each(|v| rest.push(v));
            *array = rest;
        }
        (DeValue::Array(array), [Step::Index(index), rest @ ..]) => {
            if let Some(element) = array.get_mut(*index) {
                remove_within(element.get_mut(), rest);
            }
        }
        _ => {}
    }
}
