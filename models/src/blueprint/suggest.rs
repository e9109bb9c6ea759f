//! The nearest valid name.

/// What other libraries call our keys.
const ALIASES: [(&str, &str); 16] = [
    ("hidden_size", "d_model"),
    ("n_embd", "d_model"),
    ("dim", "d_model"),
    ("num_hidden_layers", "n_layer"),
    ("n_layers", "n_layer"),
    ("num_layers", "n_layer"),
    ("intermediate_size", "d_intermediate"),
    ("state_size", "d_state"),
    ("conv_kernel", "d_conv"),
    ("time_step_rank", "dt_rank"),
    ("n_groups", "ngroups"),
    ("num_heads", "n_heads"),
    ("num_attention_heads", "n_heads"),
    ("num_key_value_heads", "n_kv_heads"),
    ("sliding_window", "window"),
    ("tie_word_embeddings", "tie_embeddings"),
];

/// The candidates that were probably meant, if any are near: the nearest, several if they are equally near.
fn near<'a>(name: &str, candidates: &[&'a str]) -> Vec<&'a str> {
    let alias = ALIASES
        .iter()
        .filter(|(theirs, _)| *theirs == name)
        .find_map(|(_, ours)| candidates.iter().find(|c| *c == ours));
    if let Some(ours) = alias {
        return vec![ours];
    }
    let plain = |s: &str| s.to_lowercase().replace('-', "_");
    let distances = candidates.iter().map(|c| (distance(&plain(name), &plain(c)), *c));
    let far = |c: &str| (name.chars().count().max(c.chars().count()) + 1) / 3;
    let near: Vec<(usize, &str)> = distances.filter(|(d, c)| *d <= far(c).max(1)).collect();
    let least = near.iter().map(|(d, _)| *d).min();
    near.into_iter().filter(|(d, _)| Some(*d) == least).map(|(_, c)| c).take(3).collect()
}

/// The candidate that was probably meant, if any is near.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    near(name, &candidates.into_iter().collect::<Vec<_>>()).first().copied()
}

/// Help for a wrong name: the nearest, or all if they are few.
pub(super) fn advice<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let mut candidates: Vec<&str> = candidates.into_iter().collect();
    candidates.sort_unstable();
    candidates.dedup();
    let quote =
        |all: &[&str], between| all.iter().map(|c| format!("`{c}`")).collect::<Vec<_>>().join(between);
    let near = near(name, &candidates);
    if !near.is_empty() {
        return Some(format!("did you mean {}?", quote(&near, " or ")));
    }
    candidates.truncate(24);
    (!candidates.is_empty()).then(|| format!("valid here: {}", quote(&candidates, ", ")))
}

/// Edits (insert, delete, replace, swap neighbours) from one string to the other.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replace.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(rows[i - 2][j - 2] + 1);
            }
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted() {
        for (a, b, d) in
            [("", "abc", 3), ("headdim", "haeddim", 1), ("mamba", "mamba2", 1), ("kitten", "sitting", 3)]
        {
            assert_eq!((distance(a, b), distance(b, a)), (d, d), "{a} {b}");
        }
    }

    #[test]
    fn near_names_and_foreign_names_are_found() {
        assert_eq!(nearest("d_sate", ["d_state", "d_conv"]), Some("d_state"));
        assert_eq!(nearest("hidden_size", ["d_model", "vocab_size"]), Some("d_model"));
        assert_eq!(nearest("Mamba-2", ["mamba1", "mamba_2"]), Some("mamba_2"));
        assert_eq!(nearest("zebra", ["d_model", "vocab_size"]), None);
        assert_eq!(advice("zebra", ["b", "a"]).as_deref(), Some("valid here: `a`, `b`"));
    }
}
