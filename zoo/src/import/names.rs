//! Tensor names of other layouts, turned into ours.

/// Rules from the names in a checkpoint to the names that the model asks for.
///
/// In a pattern `*` stands for one dotted segment. The first rule that matches the beginning of a name (at a dot) replaces
/// that part; other names stay as they are.
#[derive(Debug, Clone, Default)]
pub struct Names {
    renames: Vec<(&'static str, &'static str)>,
    ignored: Vec<&'static str>,
    tied: Option<(&'static str, &'static str)>,
}

impl Names {
    /// Every name stays as it is.
    pub fn new() -> Self {
        Self::default()
    }

    /// Names that begin with `foreign` begin with `native` instead.
    pub fn rename(mut self, foreign: &'static str, native: &'static str) -> Self {
        self.renames.push((foreign, native));
        self
    }

    /// As [`Names::rename`], before all rules so far.
    pub fn first(mut self, foreign: &'static str, native: &'static str) -> Self {
        self.renames.insert(0, (foreign, native));
        self
    }

    /// Names that begin with this are known and not needed.
    pub fn ignore(mut self, foreign: &'static str) -> Self {
        self.ignored.push(foreign);
        self
    }

    /// The tensor `alias` (a name of ours) is stored as well, but is the same as `original`.
    pub fn tie(mut self, alias: &'static str, original: &'static str) -> Self {
        self.tied = Some((alias, original));
        self
    }

    /// Alias and original of tied tensors.
    pub fn tied(&self) -> Option<(&'static str, &'static str)> {
        self.tied
    }

    /// Our name of a tensor of the checkpoint; `None` if it is not needed.
    pub fn native(&self, foreign: &str) -> Option<String> {
        if self.ignored.iter().any(|pattern| matched(pattern, foreign).is_some()) {
            return None;
        }
        let renamed = self.renames.iter().find_map(|(pattern, native)| {
            let (segments, rest) = matched(pattern, foreign)?;
            let mut segments = segments.into_iter();
            let filled: Vec<&str> = native
                .split('.')
                .map(|part| if part == "*" { segments.next().unwrap_or("*") } else { part })
                .collect();
            Some(filled.join(".") + rest)
        });
        Some(renamed.unwrap_or_else(|| foreign.into()))
    }
}

/// What the stars stand for, and what follows the pattern in the name.
fn matched<'a>(pattern: &str, name: &'a str) -> Option<(Vec<&'a str>, &'a str)> {
    let mut rest = name;
    let mut stars = Vec::new();
    for (i, part) in pattern.split('.').enumerate() {
        if i > 0 {
            rest = rest.strip_prefix('.')?;
        }
        let end = rest.find('.').unwrap_or(rest.len());
        let segment = &rest[..end];
        match part {
            "*" => stars.push(segment),
            _ if part == segment => {}
            _ => return None,
        }
        rest = &rest[end..];
    }
    Some((stars, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_stars_and_ignored_names() {
        let names = Names::new()
            .rename("backbone.embeddings", "backbone.embedding")
            .rename("model.layers.*.mamba", "backbone.layers.*.mixer")
            .ignore("model.layers.*.rotary.inv_freq");
        let native = |name| names.native(name);
        assert_eq!(native("backbone.embeddings.weight").as_deref(), Some("backbone.embedding.weight"));
        assert_eq!(native("backbone.embeddingsX.weight").as_deref(), Some("backbone.embeddingsX.weight"));
        assert_eq!(native("model.layers.12.mamba.D").as_deref(), Some("backbone.layers.12.mixer.D"));
        assert_eq!(native("model.layers.12.rotary.inv_freq"), None);
        assert_eq!(native("model.layers").as_deref(), Some("model.layers"));
    }
}
