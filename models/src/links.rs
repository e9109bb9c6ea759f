//! What layers hand to later ones: whether each finds what it needs, before any of them runs.

use std::collections::BTreeMap;

use semisep_core::{Issue, Mixer, Shared};

use crate::normal::{Branch, Layer};

/// What one mixer needs of earlier ones and leaves for later ones: names and widths.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    receives: Vec<(&'static str, usize)>,
    hands_on: Vec<(&'static str, usize)>,
}

impl Link {
    pub(crate) fn new(mixer: &dyn Mixer) -> Self {
        Self { receives: mixer.receives(), hands_on: mixer.hands_on() }
    }
}

/// Mixers in the order in which they run.
pub(crate) struct Row {
    /// What a mixer finds here.
    left: BTreeMap<&'static str, usize>,
}

/// Something that a mixer needs and does not find.
pub(crate) struct Lack {
    /// The mixer's place among those passed at once.
    mixer: usize,
    name: &'static str,
    width: usize,
    /// The width that there is.
    found: Option<usize>,
}

impl Row {
    pub(crate) fn new(d_model: usize) -> Self {
        Self { left: BTreeMap::from([(Shared::EMBEDDING, d_model)]) }
    }

    /// The next layer's mixers. All of them are passed, the first lack is told.
    pub(crate) fn pass(&mut self, links: &[Link]) -> Result<(), Lack> {
        let mut lack = None;
        for (mixer, link) in links.iter().enumerate() {
            for &(name, width) in &link.receives {
                let found = self.left.get(name).copied();
                if found != Some(width) && lack.is_none() {
                    lack = Some(Lack { mixer, name, width, found });
                }
            }
            self.left.extend(link.hands_on.iter().copied());
        }
        lack.map_or(Ok(()), Err)
    }
}

impl Lack {
    /// What is wrong with layer `index`: the key is one of the mixer's, or empty.
    pub(crate) fn issue(&self, index: usize, layer: &Layer) -> Issue {
        let branch: Option<&Branch> = layer.stages.iter().flat_map(|s| &s.branches).nth(self.mixer);
        let (kind, name, width) = (branch.map_or("mixer", |b| b.mixer.kind()), self.name, self.width);
        let layer = format!("layer {index} ({})", layer.block);
        if let Some(found) = self.found {
            let message = format!("{layer}: {kind} expects `{name}` {width} wide, found {found}");
            return Issue::new("", message).help("give both layers the same widths");
        }
        match branch.and_then(|b| b.mixer.unreceived(name)) {
            Some(issue) => Issue { message: format!("{layer}: {}", issue.message), ..issue },
            None => {
                Issue::new("", format!("{layer}: {kind} needs `{name}`, which no earlier layer hands on"))
                    .help("put a layer that does before it")
            }
        }
    }

    /// [`Lack::issue`] as an error.
    pub(crate) fn error(&self, index: usize, layer: &Layer) -> candle_core::Error {
        let Issue { message, help, .. } = self.issue(index, layer);
        let help = help.map_or_else(String::new, |help| format!(" ({help})"));
        candle_core::Error::Msg(format!("{message}{help}")).bt()
    }
}
