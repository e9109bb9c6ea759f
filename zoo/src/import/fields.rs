//! Typed reading of a configuration, with every problem collected: the key, what was expected, what was found.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use semisep_core::{Issue, MAX_WIDTH};
use serde_json::{Map, Value};

use super::json;
use crate::{Error, Result};

/// An object of a configuration file. Reading a key that is absent or wrong records a problem and gives a harmless value;
/// [`Fields::finish`] reports all problems at once.
#[derive(Debug, Clone)]
pub struct Fields {
    path: PathBuf,
    prefix: String,
    object: Map<String, Value>,
    read: RefCell<BTreeSet<String>>,
    problems: Rc<RefCell<Vec<String>>>,
}

impl Fields {
    /// The object in a JSON file.
    ///
    /// # Errors
    /// If it cannot be read, is not JSON, or is another value than an object.
    pub fn open(path: &Path) -> Result<Self> {
        match json::read(path)? {
            Value::Object(object) => Ok(Self::new(path, object)),
            other => Err(Error::at(path, format!("expected an object, found {}", brief(&other)))),
        }
    }

    /// An object read from `path`.
    pub fn new(path: &Path, object: Map<String, Value>) -> Self {
        let (read, problems) = Default::default();
        Self { path: path.into(), prefix: String::new(), object, read, problems }
    }

    /// The value of a key; `null` counts as absent.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.read.borrow_mut().insert(key.into());
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// Whether a key is there and says `null`.
    pub fn is_null(&self, key: &str) -> bool {
        self.object.get(key).is_some_and(Value::is_null)
    }

    /// Of several names for one thing the first that is there, or the first of all.
    pub fn first_of<'k>(&self, keys: &[&'k str]) -> &'k str {
        keys.iter().find(|key| self.get(key).is_some()).or(keys.first()).copied().unwrap_or_default()
    }

    /// A whole number from 1 to [`MAX_WIDTH`], which must be there.
    pub fn size(&self, key: &str) -> usize {
        self.size_up_to(key, MAX_WIDTH)
    }

    /// A whole number from 1 to `max`, which must be there.
    pub fn size_up_to(&self, key: &str, max: usize) -> usize {
        let expected = format!("a whole number from 1 to {max}");
        match self.get(key) {
            None => {
                self.problem(key, format!("expected {expected}, found nothing"));
                1
            }
            Some(value) => self.whole(value, 1, max).unwrap_or_else(|| self.wrong(key, &expected, value, 1)),
        }
    }

    /// A whole number from `min` to [`MAX_WIDTH`], if it is there.
    pub fn size_from(&self, key: &str, min: usize) -> Option<usize> {
        let value = self.get(key)?;
        let expected = format!("a whole number from {min} to {MAX_WIDTH}");
        Some(
            self.whole(value, min, MAX_WIDTH)
                .unwrap_or_else(|| self.wrong(key, &expected, value, min.max(1))),
        )
    }

    /// A whole number from 1 to [`MAX_WIDTH`], or this default.
    pub fn size_or(&self, key: &str, default: usize) -> usize {
        self.size_from(key, 1).unwrap_or(default)
    }

    fn whole(&self, value: &Value, min: usize, max: usize) -> Option<usize> {
        // 2.0 is a whole number too: some configurations write `expand` so.
        let number = json::number(value).filter(|n| n.fract() == 0.0)?;
        (number >= min as f64 && number <= max as f64).then_some(number as usize)
    }

    /// A finite number, if it is there.
    pub fn number(&self, key: &str) -> Option<f64> {
        let value = self.get(key)?;
        let finite = json::number(value).filter(|n| n.is_finite());
        Some(finite.unwrap_or_else(|| self.wrong(key, "a number", value, 1.0)))
    }

    /// A pair of numbers, the second possibly infinite (`None`), if it is there and limits anything.
    pub fn limits(&self, key: &str) -> Option<(f64, Option<f64>)> {
        let value = self.get(key)?;
        let pair = value.as_array().filter(|pair| pair.len() == 2).and_then(|pair| {
            let (low, high) = (json::number(&pair[0])?, json::number(&pair[1])?);
            (low >= 0.0 && low.is_finite() && high >= low).then_some((low, high.is_finite().then_some(high)))
        });
        let pair =
            pair.unwrap_or_else(|| self.wrong(key, "[low, high] with 0 <= low <= high", value, (0.0, None)));
        (pair != (0.0, None)).then_some(pair)
    }

    /// So many finite numbers, if they are there.
    pub fn numbers<const N: usize>(&self, key: &str) -> Option<[f64; N]> {
        let value = self.get(key)?;
        let numbers = value.as_array().filter(|items| items.len() == N).and_then(|items| {
            let mut numbers = [0.0; N];
            for (number, item) in numbers.iter_mut().zip(items) {
                *number = json::number(item).filter(|n| n.is_finite())?;
            }
            Some(numbers)
        });
        Some(numbers.unwrap_or_else(|| self.wrong(key, &format!("a list of {N} numbers"), value, [1.0; N])))
    }

    /// A truth value, if it is there.
    pub fn flag(&self, key: &str) -> Option<bool> {
        let value = self.get(key)?;
        Some(value.as_bool().unwrap_or_else(|| self.wrong(key, "true or false", value, false)))
    }

    /// A truth value, or this default.
    pub fn flag_or(&self, key: &str, default: bool) -> bool {
        self.flag(key).unwrap_or(default)
    }

    /// A string, if it is there.
    pub fn text(&self, key: &str) -> Option<&str> {
        let value = self.get(key)?;
        Some(value.as_str().unwrap_or_else(|| self.wrong(key, "a string", value, "")))
    }

    /// Distinct whole numbers below `end`, none if absent.
    pub fn indices(&self, key: &str, end: usize) -> BTreeSet<usize> {
        let Some(value) = self.get(key) else { return BTreeSet::new() };
        let items = value.as_array().and_then(|items| {
            items.iter().map(|item| item.as_u64().filter(|&i| i < end as u64).map(|i| i as usize)).collect()
        });
        let expected = format!("a list of whole numbers below {end}");
        items.unwrap_or_else(|| self.wrong(key, &expected, value, BTreeSet::new()))
    }

    /// The object at a key, an empty one if absent; its problems join these.
    pub fn section(&self, key: &str) -> Self {
        let object = match self.get(key) {
            None => Map::new(),
            Some(Value::Object(object)) => object.clone(),
            Some(other) => self.wrong(key, "an object", other, Map::new()),
        };
        Self {
            path: self.path.clone(),
            prefix: format!("{}{key}.", self.prefix),
            object,
            read: RefCell::default(),
            problems: self.problems.clone(),
        }
    }

    /// Reads keys that say nothing here.
    pub fn ignore(&self, keys: &[&str]) {
        for key in keys {
            self.get(key);
        }
    }

    /// Keys that nobody has read.
    pub fn unread(&self) -> Vec<&str> {
        let read = self.read.borrow();
        self.object.keys().filter(|key| !read.contains(*key)).map(String::as_str).collect()
    }

    /// Records a problem for each key that nobody has read.
    pub fn refuse_others(&self) {
        let read = self.read.borrow();
        let known: Vec<&str> = read.iter().map(String::as_str).collect();
        for key in self.unread() {
            self.problem(key, format!("unknown key; known are {}", known.join(", ")));
        }
    }

    /// Records a problem with a key.
    pub fn problem(&self, key: &str, message: impl std::fmt::Display) {
        let problem = format!("{}{key}: {message}", self.prefix);
        let mut problems = self.problems.borrow_mut();
        if !problems.contains(&problem) {
            problems.push(problem);
        }
    }

    /// Records the issues of a mixer's configuration made from this object.
    pub fn issues(&self, issues: Vec<Issue>) {
        for issue in issues {
            self.problem(&issue.key, issue.message);
        }
    }

    fn wrong<T>(&self, key: &str, expected: &str, found: &Value, harmless: T) -> T {
        self.problem(key, format!("expected {expected}, found {}", brief(found)));
        harmless
    }

    /// Whether no problem was found so far.
    pub fn ok(&self) -> bool {
        self.problems.borrow().is_empty()
    }

    /// Reports what was wrong.
    ///
    /// # Errors
    /// If anything was.
    pub fn finish(&self) -> Result<()> {
        const SHOWN: usize = 8;
        let problems = self.problems.borrow();
        if problems.is_empty() {
            return Ok(());
        }
        let mut message = problems.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
        if problems.len() > SHOWN {
            message += &format!("; and {} more", problems.len() - SHOWN);
        }
        Err(Error::at(&self.path, message))
    }
}

/// A value as it is written, cut to a readable length.
fn brief(value: &Value) -> String {
    const SHOWN: usize = 40;
    let kind = match value {
        Value::Object(_) => return "an object".into(),
        Value::Array(items) if items.len() > 4 => return format!("a list of {}", items.len()),
        Value::String(_) => "the string ",
        _ => "",
    };
    let text = value.to_string();
    let cut: String = text.chars().take(SHOWN).collect();
    format!("{kind}{cut}{}", if cut.len() < text.len() { "…" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields {
        let object = serde_json::from_str(text).unwrap();
        Fields::new(Path::new("config.json"), object)
    }

    #[test]
    fn every_problem_is_located() {
        let f = fields(r#"{"a": -3, "b": 1e18, "c": "48", "e": 2.5, "g": {"h": [1, 9]}, "n": null}"#);
        for key in ["a", "b", "c", "d", "e", "n"] {
            f.size(key);
        }
        let g = f.section("g");
        g.indices("h", 4);
        let message = f.finish().unwrap_err().to_string();
        for part in [
            "a: expected a whole number from 1 to 16777216, found -3",
            "b: ",
            "found 1e+18",
            "d: ",
            "nothing",
        ] {
            assert!(message.contains(part), "{message:?} lacks {part:?}");
        }
        assert!(
            message.contains(r#"c: expected a whole number from 1 to 16777216, found the string "48""#),
            "{message}"
        );
        assert!(message.contains("g.h: expected a list of whole numbers below 4, found [1,9]"), "{message}");
    }

    #[test]
    fn good_values_pass() {
        let f = fields(
            r#"{"a": 48, "b": 2.0, "l": [0.5, {"__float__": "Infinity"}], "m": [0.0, {"__float__": "Infinity"}],
                "t": true, "i": [2, 0]}"#,
        );
        assert_eq!((f.size("a"), f.size("b"), f.size_or("z", 7)), (48, 2, 7));
        assert_eq!((f.limits("l"), f.limits("m"), f.flag("t")), (Some((0.5, None)), None, Some(true)));
        assert_eq!(f.indices("i", 3).into_iter().collect::<Vec<_>>(), [0, 2]);
        f.refuse_others();
        f.finish().unwrap();
        f.get("nothing");
        let other = fields(r#"{"typo": 1}"#);
        other.get("known");
        other.refuse_others();
        assert!(other.finish().unwrap_err().to_string().contains("typo: unknown key; known are known"));
    }
}
