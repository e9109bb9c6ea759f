//! Parameters in the order in which they were built, to be found by what their names begin with.

use std::collections::BTreeSet;

use crate::ParameterGroup;

/// Models have tens of thousands of parameters and ask for those of every layer, expert by expert: no search goes through
/// all of them.
#[derive(Default)]
pub(crate) struct Built {
    all: Vec<ParameterGroup>,
    by_name: BTreeSet<(String, usize)>,
}

impl Built {
    pub(crate) fn push(&mut self, group: ParameterGroup) {
        self.by_name.insert((group.name.clone(), self.all.len()));
        self.all.push(group);
    }

    /// Those below any of these paths, once each.
    pub(crate) fn below<'a>(&self, paths: impl IntoIterator<Item = &'a str>) -> Vec<ParameterGroup> {
        let mut found = BTreeSet::new();
        for path in paths {
            if path.is_empty() {
                return self.all.clone();
            }
            // '/' follows '.'.
            let range = (format!("{path}."), 0)..(format!("{path}/"), 0);
            found.extend(self.by_name.range(range).map(|(_, place)| *place));
        }
        found.into_iter().filter_map(|place| self.all.get(place).cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Init;

    #[test]
    fn below_is_at_a_dot_and_in_order() {
        let mut built = Built::default();
        for name in ["b.w", "a.10.w", "a.1.w", "a.1x", "a-b", "a.1.b", "a.1.w"] {
            built.push(ParameterGroup::weight(name, 1, Init::ZEROS));
        }
        let names = |paths: &[&str]| -> Vec<String> {
            built.below(paths.iter().copied()).into_iter().map(|group| group.name).collect()
        };
        assert_eq!(names(&["a.1"]), ["a.1.w", "a.1.b", "a.1.w"]);
        assert_eq!(names(&["a.1", "b"]), ["b.w", "a.1.w", "a.1.b", "a.1.w"]);
        assert_eq!(names(&["a"]), ["a.10.w", "a.1.w", "a.1x", "a.1.b", "a.1.w"]);
        assert_eq!(names(&[""]).len(), 7);
        assert!(names(&["c"]).is_empty());
    }
}
